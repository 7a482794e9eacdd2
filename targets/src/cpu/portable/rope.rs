//! Rotary positions.

/// Turns the pairs (2i, 2i + 1) of every head of `x` by the angles with these cosines and sines.
///
/// `x`: `[heads, head_dim]`; `cos`, `sin`: `[head_dim / 2]`.
#[inline(always)]
pub fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for head in x.chunks_exact_mut(2 * cos.len()) {
        for ((pair, &c), &s) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
            let [a, b] = *pair;
            *pair = [a * c - b * s, a * s + b * c];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_turn() {
        let mut x = [1.0, 0.0, 5.0, 7.0, 0.0, 2.0, 1.0, 1.0];
        rotate(&mut x, &[0.0, 1.0], &[1.0, 0.0]);
        assert_eq!(x, [0.0, 1.0, 5.0, 7.0, -2.0, 0.0, 1.0, 1.0]);
    }
}
