//! Softmax of rows of scores.

/// Of each row turns the first `valid[i]` scores into `exp(scale · (score − top))`, `top` being the largest of them, and
/// the others into 0; notes the top and the sum of each. A row without a valid score has a top of −∞ and a sum of 0.
///
/// Rows are `width` numbers, `stride` apart. The caller divides by the sum where it has fewer numbers to divide.
pub fn exp(scores: &mut [f32], stride: usize, width: usize, valid: &[usize], scale: f32, tops: &mut [f32], sums: &mut [f32]) {
    for (((row, &valid), top), sum) in scores.chunks_mut(stride).zip(valid).zip(tops).zip(sums) {
        let (row, rest) = row[..width].split_at_mut(valid);
        rest.fill(0.0);
        *top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut lanes = [0f32; 16];
        for (i, v) in row.iter_mut().enumerate() {
            *v = ((*v - *top) * scale).exp();
            lanes[i % 16] += *v;
        }
        *sum = lanes.iter().sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_to_one_and_ignores_the_rest() {
        let mut rows = [1.0, 2.0, 3.0, f32::NAN, 9.0, f32::NAN, 2.0, 5.0, 7.0, 9.0];
        let (mut tops, mut sums) = ([0.0; 2], [9.0; 2]);
        exp(&mut rows, 5, 4, &[3, 0], 0.5, &mut tops, &mut sums);
        let want: f64 = [(-1.0f64).exp(), (-0.5f64).exp(), 1.0].iter().sum();
        assert!((f64::from(sums[0]) - want).abs() < 1e-6);
        assert_eq!((tops, sums[1]), ([3.0, f32::NEG_INFINITY], 0.0));
        assert_eq!(rows[2..], [1.0, 0.0, 9.0, 0.0, 0.0, 0.0, 0.0, 9.0]);
    }
}
