//! Activation functions, in place, and sums of what a branch adds to its stream.

/// `gelu(x) = x · (1 + erf(x / √2)) / 2`, the exact form.
pub fn gelu(x: &mut [f32]) {
    for v in x {
        *v = *v * 0.5 * (1.0 + libm::erff(*v * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// `x · sigmoid(1.702 x)`.
pub fn quick_gelu(x: &mut [f32]) {
    for v in x {
        *v /= 1.0 + (-1.702 * *v).exp();
    }
}

/// `gate = silu(gate) ⊙ up`, with `silu(x) = x · sigmoid(x)`.
pub fn silu_gate(gate: &mut [f32], up: &[f32]) {
    for (g, &u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + (-*g).exp()) * u;
    }
}

/// `x = y`; siblings write past the caches, for results that are larger than those. [`settle`] comes after.
pub fn set(x: &mut [f32], y: &[f32]) {
    x.copy_from_slice(y);
}

/// Makes sure that what [`set`] wrote is seen by other threads no later than what is written next.
pub fn settle() {}

/// `x += y`.
#[inline(always)]
pub fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// `x += scale ⊙ y`.
#[inline(always)]
pub fn add_scaled(x: &mut [f32], scale: &[f32], y: &[f32]) {
    x.iter_mut().zip(y).zip(scale).for_each(|((x, y), s)| *x += s * y);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let mut x = [0.0, 1.0, -1.0, 3.0, -6.0, 20.0, -20.0];
        gelu(&mut x);
        let want = [0.0, 0.841_344_7, -0.158_655_26, 2.995_950_2, -5.919e-9, 20.0, 0.0];
        for (got, want) in x.iter().zip(want) {
            assert!((got - want).abs() < 3e-7 * want.abs() + 4e-7, "{got} {want}");
        }
        let mut x = [0.0, 1.0, -100.0];
        quick_gelu(&mut x);
        assert!((x[1] - 0.845_795_75).abs() < 1e-6 && x[0] == 0.0 && x[2] == 0.0, "{x:?}");
        let mut x = [0.0, 1.0, -2.0, -200.0];
        silu_gate(&mut x, &[3.0, 2.0, 1.0, 1.0]);
        assert!((x[1] - 1.462_117_2).abs() < 1e-6 && (x[2] + 0.238_405_84).abs() < 1e-6 && x[3] == 0.0, "{x:?}");
    }
}
