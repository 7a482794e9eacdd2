//! Softmax of one row of scores.

/// Turns the first `valid` scores into `exp(scale · (score − max))`, the rest into 0, and returns the sum.
///
/// The caller divides by the sum where it has fewer numbers to divide. `valid` is at least 1.
pub fn exp(scores: &mut [f32], valid: usize, scale: f32) -> f32 {
    let (row, rest) = scores.split_at_mut(valid);
    rest.fill(0.0);
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut lanes = [0f32; 16];
    for (i, v) in row.iter_mut().enumerate() {
        *v = ((*v - max) * scale).exp();
        lanes[i % 16] += *v;
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_to_one_and_ignores_the_rest() {
        let mut row = [1.0, 2.0, 3.0, f32::NAN, 5.0];
        let sum = exp(&mut row, 3, 0.5);
        let want: f64 = [(-1.0f64).exp(), (-0.5f64).exp(), 1.0].iter().sum();
        assert!((f64::from(sum) - want).abs() < 1e-6);
        assert_eq!(row[2..], [1.0, 0.0, 0.0]);
    }
}
