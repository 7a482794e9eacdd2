//! Weighted sums of 8-bit pixels: AVX2. Sibling of `portable/resample.rs`; sums are integers and match it exactly.

pub mod avx2 {
    use std::arch::x86_64::*;

    use crate::cpu::portable::resample::{FRACTION, whole};

    /// 8 samples, widened.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(x: &[u8; 8]) -> __m256i {
        // SAFETY: the array holds the 8 bytes read here; `loadl` asks for no alignment.
        _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(x.as_ptr().cast()) })
    }

    /// See [`crate::cpu::portable::resample::across`]. A pixel is read with the byte behind it.
    #[target_feature(enable = "avx2")]
    pub fn across(row: &[u8], firsts: &[u32], weights: &[i32], starts: &[[i32; 3]], out: &mut [u8]) {
        let taps = weights.len() / firsts.len();
        for (((out, &first), weights), &[a, b, c]) in
            out.as_chunks_mut::<3>().0.iter_mut().zip(firsts).zip(weights.chunks_exact(taps)).zip(starts)
        {
            let row = &row[first as usize * 3..][..taps * 3 + 1];
            let mut sums = _mm_setr_epi32(a, b, c, 0);
            for (pixel, &weight) in row.windows(4).step_by(3).zip(weights) {
                // SAFETY: a window holds the 4 bytes read here; `loadu` asks for no alignment.
                let pixel = _mm_cvtepu8_epi32(unsafe { _mm_loadu_si32(pixel.as_ptr().cast()) });
                sums = _mm_add_epi32(sums, _mm_mullo_epi32(pixel, _mm_set1_epi32(weight)));
            }
            let sum = _mm_srai_epi32::<{ FRACTION as i32 }>(sums);
            let bytes = _mm_cvtsi128_si32(_mm_packus_epi16(_mm_packs_epi32(sum, sum), sum)).to_le_bytes();
            *out = [bytes[0], bytes[1], bytes[2]];
        }
    }

    /// See [`crate::cpu::portable::resample::down`].
    #[target_feature(enable = "avx2")]
    pub fn down(rows: &[&[u8]], weights: &[i32], start: [i32; 3], out: &mut [u8]) {
        /// Vectors whose sums are made together: they begin at the same channel each time.
        const VECTORS: usize = 6;
        let mut starts = [0; 8 * VECTORS];
        starts.as_chunks_mut().0.fill(start);
        let (whole_parts, rest) = out.as_chunks_mut::<{ 8 * VECTORS }>();
        for (c, out) in whole_parts.iter_mut().enumerate() {
            let mut sums: [__m256i; VECTORS] = std::array::from_fn(|v| {
                let [a, b, c, d, e, f, g, h] = starts.as_chunks::<8>().0[v];
                _mm256_setr_epi32(a, b, c, d, e, f, g, h)
            });
            for (row, &weight) in rows.iter().zip(weights) {
                let weight = _mm256_set1_epi32(weight);
                let part = row[8 * VECTORS * c..][..8 * VECTORS].as_chunks::<8>().0;
                for v in 0..VECTORS {
                    sums[v] = _mm256_add_epi32(sums[v], _mm256_mullo_epi32(load(&part[v]), weight));
                }
            }
            for (out, sum) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
                let sum = _mm256_srai_epi32::<{ FRACTION as i32 }>(sum);
                let (low, high) = (_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
                let bytes = _mm_packus_epi16(_mm_packs_epi32(low, high), low);
                *out = _mm_cvtsi128_si64(bytes).to_le_bytes();
            }
        }
        let done = 8 * VECTORS * whole_parts.len();
        for (i, out) in rest.iter_mut().enumerate() {
            let sum = rows.iter().zip(weights).fold(start[i % 3], |sum, (row, weight)| sum + weight * i32::from(row[done + i]));
            *out = whole(sum);
        }
    }
}
