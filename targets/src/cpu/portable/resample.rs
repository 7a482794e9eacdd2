//! Weighted sums of 8-bit pixels, in whole numbers: the two passes of a picture's resize.

/// Fractional bits of a weight.
pub const FRACTION: u32 = 22;

/// One row `[.., 3]`, resized: output `o` is the sum of as many pixels from `firsts[o]` on as there are weights for each.
///
/// `weights`: `[outputs, taps]`; `starts`: what each sum starts with, its rounding too; `out`: `[outputs, 3]`. Behind the last
/// pixel that is read lies another byte, which siblings read along and ignore.
pub fn across(row: &[u8], firsts: &[u32], weights: &[i32], starts: &[[i32; 3]], out: &mut [u8]) {
    let taps = weights.len() / firsts.len();
    for (((out, &first), weights), &start) in out.as_chunks_mut::<3>().0.iter_mut().zip(firsts).zip(weights.chunks_exact(taps)).zip(starts)
    {
        let mut sums = start;
        for (pixel, &weight) in row[first as usize * 3..].as_chunks::<3>().0.iter().zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                *sum += weight * i32::from(value);
            }
        }
        *out = sums.map(whole);
    }
}

/// A row of sums over rows, each as long as `out` and with a weight. `start` is what the sums of a pixel start with.
pub fn down(rows: &[&[u8]], weights: &[i32], start: [i32; 3], out: &mut [u8]) {
    const ACROSS: usize = 16;
    for (c, out) in out.chunks_mut(3 * ACROSS).enumerate() {
        let mut sums = [0; 3 * ACROSS];
        sums.as_chunks_mut().0.fill(start);
        for (row, &weight) in rows.iter().zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(&row[3 * ACROSS * c..][..out.len()]) {
                *sum += weight * i32::from(value);
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = whole(sum));
    }
}

/// A sum as a sample.
#[inline(always)]
pub fn whole(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: i32 = 1 << FRACTION;

    #[test]
    fn sums_are_rounded_and_clamped() {
        let row = [0, 10, 200, 4, 20, 250, 99];
        let mut out = [7; 9];
        across(&row, &[0, 0, 0], &[ONE / 2, ONE / 2, 2 * ONE, -ONE, -ONE, 2 * ONE], &[[ONE / 2; 3]; 3], &mut out);
        assert_eq!(out, [2, 15, 225, 0, 0, 150, 8, 30, 255]);
        let mut out = [7; 3];
        down(&[&row[..3], &row[3..6]], &[ONE / 2, ONE / 4], [ONE / 2, 0, ONE], &mut out);
        assert_eq!(out, [1, 10, 163]);
    }
}
