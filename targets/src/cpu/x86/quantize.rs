//! Activations to 8 bits: AVX2 and AVX-512. Results equal those of `portable/quantize.rs`.

use crate::cpu::portable::quantize::TINY;
use crate::cpu::q8::Q8RowMut;

pub mod avx2 {
    use std::arch::x86_64::*;

    use super::*;

    /// See [`crate::cpu::portable::quantize::q8`].
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn q8(x: &[f32], out: Q8RowMut<'_>) {
        let (blocks, qs, sums) = (x.as_chunks::<32>().0, out.qs.as_chunks_mut::<32>().0, out.sums.as_chunks_mut::<2>().0);
        for (((x, q), d), sums) in blocks.iter().zip(qs).zip(out.d).zip(sums) {
            // SAFETY: a block holds the four times 8 numbers read here.
            let v: [__m256; 4] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * i)) });
            let magnitude = |v: __m256| _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fff_ffff));
            let m =
                _mm256_max_epu32(_mm256_max_epu32(magnitude(v[0]), magnitude(v[1])), _mm256_max_epu32(magnitude(v[2]), magnitude(v[3])));
            let m = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256::<1>(m));
            let m = _mm_max_epu32(m, _mm_shuffle_epi32::<0b01_00_11_10>(m));
            let m = _mm_max_epu32(m, _mm_shuffle_epi32::<0b10_11_00_01>(m));
            let largest = f32::from_bits(_mm_cvtsi128_si32(m) as u32);
            if largest < TINY {
                (*q, *d, *sums) = ([0; 32], 0.0, [0; 2]);
                continue;
            }
            *d = largest / 127.0;
            let inverse = _mm256_set1_ps(127.0 / largest);
            let whole = v.map(|v| _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse)));
            // Packing works within halves; the permutation puts the groups of four back in order.
            let pairs = (_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(pairs.0, pairs.1), order);
            // SAFETY: the block of codes holds the 32 bytes written here.
            unsafe { _mm256_storeu_si256(q.as_mut_ptr().cast(), bytes) };
            for (sum, pair) in sums.iter_mut().zip([pairs.0, pairs.1]) {
                let fours = _mm256_madd_epi16(pair, _mm256_set1_epi16(1));
                let fours = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256::<1>(fours));
                let twos = _mm_add_epi32(fours, _mm_shuffle_epi32::<0b01_00_11_10>(fours));
                *sum = _mm_cvtsi128_si32(_mm_add_epi32(twos, _mm_shuffle_epi32::<0b10_11_00_01>(twos))) as i16;
            }
        }
    }
}

pub mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    /// See [`crate::cpu::portable::quantize::q8`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn q8(x: &[f32], out: Q8RowMut<'_>) {
        let ((eights, x), (eights_qs, qs)) = (x.as_chunks::<256>(), out.qs.as_chunks_mut::<256>());
        let ((eights_d, d), (eights_sums, sums)) = (out.d.as_chunks_mut::<8>(), out.sums.as_chunks_mut::<16>());
        for (((x, qs), d), sums) in eights.iter().zip(eights_qs).zip(eights_d).zip(eights_sums) {
            eight_blocks(x, qs, d, sums);
        }
        blocks(x, Q8RowMut { qs, d, sums });
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    fn magnitude(v: __m512) -> __m512i {
        _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fff_ffff))
    }

    /// Eight blocks at a time: their extremes and sums are found side by side, and scales divided together.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    fn eight_blocks(x: &[f32; 256], qs: &mut [i8; 256], d: &mut [f32; 8], sums: &mut [i16; 16]) {
        // SAFETY: the array holds the 16 numbers read here.
        let v: [__m512; 16] = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(x.as_ptr().add(16 * i)) });
        let of_block = |b: usize| _mm512_max_epu32(magnitude(v[2 * b]), magnitude(v[2 * b + 1]));
        // Two blocks to a vector, then four, then eight: quarter `q` ends with block `q` at even and `4 + q` at odd places.
        let two = |b: usize| {
            let (a, b) = (of_block(b), of_block(b + 1));
            _mm512_max_epu32(_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b))
        };
        let four = |b: usize| {
            let (a, b) = (two(b), two(b + 2));
            _mm512_max_epu32(_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b))
        };
        let (a, b) = (four(0), four(4));
        let all = _mm512_max_epu32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let all = _mm512_max_epu32(all, _mm512_shuffle_epi32::<0b01_00_11_10>(all));
        let in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 4, 8, 12, 1, 5, 9, 13);
        let largest = _mm512_castsi512_ps(_mm512_permutexvar_epi32(in_order, all));
        // A block of nothing has scale 0, one with a fault a scale that is one.
        let some = !_mm512_cmp_ps_mask::<_CMP_LT_OQ>(largest, _mm512_set1_ps(TINY));
        let scales = _mm512_maskz_div_ps(some, largest, _mm512_set1_ps(127.0));
        let inverses = _mm512_maskz_div_ps(some, _mm512_set1_ps(127.0), largest);
        // SAFETY: the array holds the 8 numbers written here.
        unsafe { _mm256_storeu_ps(d.as_mut_ptr(), _mm512_castps512_ps256(scales)) };
        let mut fours = [_mm512_setzero_si512(); 4];
        for p in 0..4 {
            let whole = |i: usize| {
                let inverse = _mm512_permutexvar_ps(_mm512_set1_epi32((2 * p + i / 2) as i32), inverses);
                _mm512_cvtps_epi32(_mm512_mul_ps(v[4 * p + i], inverse))
            };
            // Packing works within quarters; the permutation puts the groups of four back in order.
            let bytes = _mm512_packs_epi16(_mm512_packs_epi32(whole(0), whole(1)), _mm512_packs_epi32(whole(2), whole(3)));
            let in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let bytes = _mm512_permutexvar_epi32(in_order, bytes);
            // SAFETY: the array holds the 64 bytes written here.
            unsafe { _mm512_storeu_si512(qs.as_mut_ptr().add(64 * p).cast(), bytes) };
            fours[p] = _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_set1_epi8(1), bytes), _mm512_set1_epi16(1));
        }
        // Quarter `q` gets the sum of half block `4 · p + q` at place `p`.
        let pair = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (ab, cd) = (pair(fours[0], fours[1]), pair(fours[2], fours[3]));
        let all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
        let in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let all = _mm512_cvtepi32_epi16(_mm512_permutexvar_epi32(in_order, all));
        // SAFETY: the array holds the 16 numbers written here.
        unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), all) };
    }

    /// Blocks one by one.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    fn blocks(x: &[f32], out: Q8RowMut<'_>) {
        let (blocks, qs, sums) = (x.as_chunks::<32>().0, out.qs.as_chunks_mut::<32>().0, out.sums.as_chunks_mut::<2>().0);
        for (((x, q), d), sums) in blocks.iter().zip(qs).zip(out.d).zip(sums) {
            // SAFETY: a block holds the twice 16 numbers read here.
            let v: [__m512; 2] = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(x.as_ptr().add(16 * i)) });
            let largest = f32::from_bits(_mm512_reduce_max_epu32(_mm512_max_epu32(magnitude(v[0]), magnitude(v[1]))));
            if largest < TINY {
                (*q, *d, *sums) = ([0; 32], 0.0, [0; 2]);
                continue;
            }
            *d = largest / 127.0;
            let inverse = _mm512_set1_ps(127.0 / largest);
            for ((v, q), sum) in v.into_iter().zip(q.as_chunks_mut::<16>().0).zip(sums) {
                let whole = _mm512_cvtps_epi32(_mm512_mul_ps(v, inverse));
                // SAFETY: the half block of codes holds the 16 bytes written here.
                unsafe { _mm_storeu_si128(q.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(whole)) };
                *sum = _mm512_reduce_add_epi32(whole) as i16;
            }
        }
    }
}
