//! Dot products of one weight row with one activation row: AVX2, AVX-VNNI and AVX-512 VNNI.
//!
//! Siblings of `portable/dot.rs`: integer sums match it exactly, blocks are added in its order, and products and sums
//! of floats are rounded together.

use sphinx_quant::block::{BlockQ2_K, BlockQ3_K, BlockQ4_0, BlockQ4_1, BlockQ4_K, BlockQ5_0, BlockQ5_1, BlockQ5_K, BlockQ6_K, BlockQ8_0};

use crate::cpu::portable::dot::{LANES, Pieces, rest, sum, sum_without};
use crate::cpu::portable::unpack::{Codes, q3_k_scales};
use crate::cpu::q8::{FineRow, Q8Row};
use crate::cpu::x86::opaque;

/// How far ahead of the row being read memory is asked for, in bytes.
const AHEAD: usize = 8192;

/// A format's products with activations in 8 and in 16 bits, from one function over both.
macro_rules! coarse_and_fine {
    ($features:literal: $($name:ident, $fine:ident: $rows:ident, $block:ty;)*) => {$(
        /// See [`crate::cpu::portable::dot`].
        #[target_feature(enable = $features)]
        pub fn $name(w: &[$block], x: Q8Row<'_>, out: &mut [f32]) {
            let blocks = x.qs.len() / <$block>::LEN;
            for (i, out) in out.iter_mut().enumerate() {
                *out = $rows::<false>(&w[i * blocks..][..blocks], [x, x]);
            }
        }

        /// See [`crate::cpu::portable::dot`].
        #[target_feature(enable = $features)]
        pub fn $fine(w: &[$block], x: FineRow<'_>, out: &mut [f32]) {
            let blocks = x[0].qs.len() / <$block>::LEN;
            for (i, out) in out.iter_mut().enumerate() {
                *out = $rows::<true>(&w[i * blocks..][..blocks], x);
            }
        }
    )*};
}

/// The formats with blocks of 32 nibbles on 256-bit vectors, from the module's `products`: `$codes` makes a block's
/// codes, `$offset` is what is taken off them, and `$min` says whether blocks have a minimum `m`.
macro_rules! short_dots {
    ($features:literal: $($rows:ident: $block:ty, |$b:ident| $codes:expr, offset $offset:literal $(, min $m:ident)?;)*) => {$(
        #[inline]
        #[target_feature(enable = $features)]
        #[allow(unused_mut)] // for formats without minima
        fn $rows<const FINE: bool>(w: &[$block], x: FineRow<'_>) -> f32 {
            let (mut acc, mut min) = (_mm256_setzero_ps(), _mm256_setzero_ps());
            let (chunks, _) = w.as_chunks::<8>();
            let pieces = Pieces::of(x, chunks.len());
            for (i, w) in chunks.iter().enumerate() {
                prefetch(w, 3);
                let (qs, d, x_sums) = pieces.at(i);
                let mut dots = [_mm256_setzero_si256(); 8];
                for (j, $b) in w.iter().enumerate() {
                    dots[j] = products::<FINE>($codes, qs, 32 * j);
                }
                let dots = if FINE { eights::<0>(dots) } else { eights::<2>(dots) };
                let x_sums = block_sums::<FINE>(x_sums);
                let dots = _mm256_sub_epi32(dots, _mm256_mullo_epi32(x_sums, _mm256_set1_epi32($offset)));
                let block = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), scales(w.each_ref().map(|w| w.d)));
                let d = float8(d);
                acc = _mm256_fmadd_ps(block, d, acc);
                // What is stored is added, and what a minimum takes off is the opposite.
                $(min = _mm256_fnmadd_ps(scales(w.each_ref().map(|w| w.$m)), _mm256_mul_ps(d, _mm256_cvtepi32_ps(x_sums)), min);)?
            }
            let (mut acc, mut min) = (lanes(acc), lanes(min));
            rest::<$block, true, FINE>(w, x, chunks.len() * 8, &mut acc, &mut min);
            sum_without(&acc, &min)
        }
    )*};
}

/// The products of all formats on 256-bit vectors, from the module's `products` and `signed_products`.
macro_rules! dots {
    ($features:literal) => {
        coarse_and_fine! {
            $features:
            q4_0, fine_q4_0: q4_0_rows, BlockQ4_0;
            q4_1, fine_q4_1: q4_1_rows, BlockQ4_1;
            q5_0, fine_q5_0: q5_0_rows, BlockQ5_0;
            q5_1, fine_q5_1: q5_1_rows, BlockQ5_1;
            q8_0, fine_q8_0: q8_0_rows, BlockQ8_0;
            q2_k, fine_q2_k: q2_k_rows, BlockQ2_K;
            q3_k, fine_q3_k: q3_k_rows, BlockQ3_K;
            q4_k, fine_q4_k: q4_k_rows, BlockQ4_K;
            q5_k, fine_q5_k: q5_k_rows, BlockQ5_K;
            q6_k, fine_q6_k: q6_k_rows, BlockQ6_K;
        }

        short_dots! {
            $features:
            q4_0_rows: BlockQ4_0, |b| nibbles(&b.qs), offset 8;
            q4_1_rows: BlockQ4_1, |b| nibbles(&b.qs), offset 0, min m;
            q5_0_rows: BlockQ5_0, |b| five_bits(&b.qs, b.qh), offset 16;
            q5_1_rows: BlockQ5_1, |b| five_bits(&b.qs, b.qh), offset 0, min m;
        }

        /// Σ over blocks of `w.d · x.d · Σ w.q · x.q`.
        #[inline]
        #[target_feature(enable = $features)]
        fn q8_0_rows<const FINE: bool>(w: &[BlockQ8_0], x: FineRow<'_>) -> f32 {
            let mut acc = _mm256_setzero_ps();
            let (chunks, _) = w.as_chunks::<8>();
            let pieces = Pieces::of(x, chunks.len());
            for (i, w) in chunks.iter().enumerate() {
                prefetch(w, 5);
                let (qs, d, _) = pieces.at(i);
                let mut dots = [_mm256_setzero_si256(); 8];
                for b in 0..8 {
                    dots[b] = signed_products::<FINE>(load32(&w[b].qs), qs, 32 * b);
                }
                let block = _mm256_mul_ps(_mm256_cvtepi32_ps(eights::<0>(dots)), scales(w.each_ref().map(|w| w.d)));
                acc = _mm256_fmadd_ps(block, float8(d), acc);
            }
            let mut lanes = lanes(acc);
            rest::<BlockQ8_0, true, FINE>(w, x, chunks.len() * 8, &mut lanes, &mut [0.0; LANES]);
            sum(&lanes)
        }

        /// Σ over sub-blocks of `x.d · (d · s · Σ w.q · x.q − dmin · m · Σ x.q)`.
        #[inline]
        #[target_feature(enable = $features)]
        fn q4_k_rows<const FINE: bool>(w: &[BlockQ4_K], x: FineRow<'_>) -> f32 {
            let low = _mm256_set1_epi8(15);
            let (mut acc, mut min) = (_mm256_setzero_ps(), _mm256_setzero_ps());
            let pieces = Pieces::of(x, w.len());
            for (i, w) in w.iter().enumerate() {
                prefetch(w, 3);
                let (qs, d, x_sums) = pieces.at(i);
                let mut dots = [_mm256_setzero_si256(); 8];
                for p in 0..4 {
                    let q = load32(&w.qs[32 * p..]);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(q), low);
                    dots[2 * p] = products::<FINE>(_mm256_and_si256(q, low), qs, 64 * p);
                    dots[2 * p + 1] = products::<FINE>(high, qs, 64 * p + 32);
                }
                let dots = if FINE { eights::<0>(dots) } else { eights::<2>(dots) };
                (acc, min) = k_block(w.d, w.dmin, &w.scales, dots, d, block_sums::<FINE>(x_sums), acc, min);
            }
            sum_without(&lanes(acc), &lanes(min))
        }

        /// As `q4_k_rows`, with a fifth bit per code.
        #[inline]
        #[target_feature(enable = $features)]
        fn q5_k_rows<const FINE: bool>(w: &[BlockQ5_K], x: FineRow<'_>) -> f32 {
            let (low, fifth) = (_mm256_set1_epi8(15), _mm256_set1_epi8(16));
            let (mut acc, mut min) = (_mm256_setzero_ps(), _mm256_setzero_ps());
            let pieces = Pieces::of(x, w.len());
            for (i, w) in w.iter().enumerate() {
                prefetch(w, 3);
                let (qs, d, x_sums) = pieces.at(i);
                let mut dots = [_mm256_setzero_si256(); 8];
                let mut top = load32(&w.qh);
                for p in 0..4 {
                    let q = load32(&w.qs[32 * p..]);
                    let even = _mm256_and_si256(_mm256_slli_epi16::<4>(top), fifth);
                    let odd = _mm256_and_si256(_mm256_slli_epi16::<3>(top), fifth);
                    // The next two bits; what comes from other bytes is masked out.
                    top = _mm256_srli_epi16::<2>(top);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(q), low);
                    dots[2 * p] = products::<FINE>(_mm256_or_si256(_mm256_and_si256(q, low), even), qs, 64 * p);
                    dots[2 * p + 1] = products::<FINE>(_mm256_or_si256(high, odd), qs, 64 * p + 32);
                }
                let dots = if FINE { eights::<0>(dots) } else { eights::<2>(dots) };
                (acc, min) = k_block(w.d, w.dmin, &w.scales, dots, d, block_sums::<FINE>(x_sums), acc, min);
            }
            sum_without(&lanes(acc), &lanes(min))
        }

        /// Σ over sub-blocks of 16 of `x.d · d · s · Σ (w.q − 32) · x.q`.
        #[inline]
        #[target_feature(enable = $features)]
        fn q6_k_rows<const FINE: bool>(w: &[BlockQ6_K], x: FineRow<'_>) -> f32 {
            let (low, two) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
            let mut acc = _mm256_setzero_ps();
            let pieces = Pieces::of(x, w.len());
            for (i, w) in w.iter().enumerate() {
                prefetch(w, 4);
                let (qs, d, x_sums) = pieces.at(i);
                // Each vector: four partial sums of an even sub-block, four of an odd one.
                let mut dots = [_mm256_setzero_si256(); 8];
                for h in 0..2 {
                    let (a, b, top) = (load32(&w.ql[64 * h..]), load32(&w.ql[64 * h + 32..]), load32(&w.qh[32 * h..]));
                    let (a_high, b_high) = (_mm256_srli_epi16::<4>(a), _mm256_srli_epi16::<4>(b));
                    let q = [
                        _mm256_or_si256(_mm256_and_si256(a, low), _mm256_and_si256(_mm256_slli_epi16::<4>(top), two)),
                        _mm256_or_si256(_mm256_and_si256(b, low), _mm256_and_si256(_mm256_slli_epi16::<2>(top), two)),
                        _mm256_or_si256(_mm256_and_si256(a_high, low), _mm256_and_si256(top, two)),
                        _mm256_or_si256(_mm256_and_si256(b_high, low), _mm256_and_si256(_mm256_srli_epi16::<2>(top), two)),
                    ];
                    for j in 0..4 {
                        dots[4 * h + j] = products::<FINE>(q[j], qs, 128 * h + 32 * j);
                    }
                }
                let (even, odd) = if FINE { sixteens::<0>(dots) } else { sixteens::<1>(dots) };
                let (x_even, x_odd) = half_sums::<FINE>(x_sums);
                let even = _mm256_cvtepi32_ps(_mm256_sub_epi32(even, _mm256_slli_epi32::<5>(x_even)));
                let odd = _mm256_cvtepi32_ps(_mm256_sub_epi32(odd, _mm256_slli_epi32::<5>(x_odd)));
                let s = sixteen_scales(w.d, load16(&w.scales));
                let block = _mm256_fmadd_ps(odd, s.1, _mm256_mul_ps(even, s.0));
                acc = _mm256_fmadd_ps(block, float8(d), acc);
            }
            sum(&lanes(acc))
        }

        /// Σ over sub-blocks of 16 of `x.d · (d · s · Σ w.q · x.q − dmin · m · Σ x.q)`.
        #[inline]
        #[target_feature(enable = $features)]
        fn q2_k_rows<const FINE: bool>(w: &[BlockQ2_K], x: FineRow<'_>) -> f32 {
            let (two, low) = (_mm256_set1_epi8(3), _mm_set1_epi8(15));
            let (mut acc, mut min) = (_mm256_setzero_ps(), _mm256_setzero_ps());
            let pieces = Pieces::of(x, w.len());
            for (i, w) in w.iter().enumerate() {
                prefetch(w, 2);
                let (qs, d, x_sums) = pieces.at(i);
                let mut dots = [_mm256_setzero_si256(); 8];
                for h in 0..2 {
                    let mut q = load32(&w.qs[32 * h..]);
                    for p in 0..4 {
                        dots[4 * h + p] = products::<FINE>(_mm256_and_si256(q, two), qs, 128 * h + 32 * p);
                        q = _mm256_srli_epi16::<2>(q);
                    }
                }
                let (even, odd) = if FINE { sixteens::<0>(dots) } else { sixteens::<2>(dots) };
                let (x_even, x_odd) = half_sums::<FINE>(x_sums);
                let both = load16(&w.scales);
                let s = sixteen_scales(w.d, _mm_and_si128(both, low));
                let m = sixteen_scales(w.dmin, _mm_and_si128(_mm_srli_epi16::<4>(both), low));
                let block = _mm256_mul_ps(_mm256_cvtepi32_ps(even), s.0);
                let block = _mm256_fmadd_ps(_mm256_cvtepi32_ps(odd), s.1, block);
                let d = float8(d);
                acc = _mm256_fmadd_ps(block, d, acc);
                min = _mm256_fmadd_ps(m.0, _mm256_mul_ps(d, _mm256_cvtepi32_ps(x_even)), min);
                min = _mm256_fmadd_ps(m.1, _mm256_mul_ps(d, _mm256_cvtepi32_ps(x_odd)), min);
            }
            sum_without(&lanes(acc), &lanes(min))
        }

        /// Σ over sub-blocks of 16 of `x.d · d · s · Σ (w.q − 4) · x.q`.
        #[inline]
        #[target_feature(enable = $features)]
        fn q3_k_rows<const FINE: bool>(w: &[BlockQ3_K], x: FineRow<'_>) -> f32 {
            let (two, one) = (_mm256_set1_epi8(3), _mm256_set1_epi8(1));
            let mut acc = _mm256_setzero_ps();
            let pieces = Pieces::of(x, w.len());
            for (i, w) in w.iter().enumerate() {
                prefetch(w, 2);
                let (qs, d, x_sums) = pieces.at(i);
                let mut dots = [_mm256_setzero_si256(); 8];
                let mut top = load32(&w.hmask);
                for h in 0..2 {
                    let mut q = load32(&w.qs[32 * h..]);
                    for p in 0..4 {
                        let third = _mm256_slli_epi16::<2>(_mm256_and_si256(top, one));
                        let code = _mm256_or_si256(_mm256_and_si256(q, two), third);
                        dots[4 * h + p] = products::<FINE>(code, qs, 128 * h + 32 * p);
                        (q, top) = (_mm256_srli_epi16::<2>(q), _mm256_srli_epi16::<1>(top));
                    }
                }
                let (even, odd) = if FINE { sixteens::<0>(dots) } else { sixteens::<2>(dots) };
                let (x_even, x_odd) = half_sums::<FINE>(x_sums);
                let even = _mm256_cvtepi32_ps(_mm256_sub_epi32(even, _mm256_slli_epi32::<2>(x_even)));
                let odd = _mm256_cvtepi32_ps(_mm256_sub_epi32(odd, _mm256_slli_epi32::<2>(x_odd)));
                let s = sixteen_scales(w.d, q3_k_scales(&w.scales));
                let block = _mm256_fmadd_ps(odd, s.1, _mm256_mul_ps(even, s.0));
                acc = _mm256_fmadd_ps(block, float8(d), acc);
            }
            sum(&lanes(acc))
        }

        /// The float part of a `Q4_K` or `Q5_K` block: new sums and what minima take off.
        #[inline]
        #[target_feature(enable = $features)]
        #[allow(clippy::too_many_arguments)] // one step of two loops
        fn k_block(
            d: ::half::f16,
            dmin: ::half::f16,
            scales: &[u8; 12],
            dots: __m256i,
            x_d: &[f32; 8],
            x_sums: __m256i,
            acc: __m256,
            min: __m256,
        ) -> (__m256, __m256) {
            let (s, m) = k_scales(scales);
            let (s, m, x_d) = (_mm256_mul_ps(wide(d), s), _mm256_mul_ps(wide(dmin), m), float8(x_d));
            let acc = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(dots), s), x_d, acc);
            (acc, _mm256_fmadd_ps(m, _mm256_mul_ps(x_d, _mm256_cvtepi32_ps(x_sums)), min))
        }
    };
}

pub mod avx2 {
    use std::arch::x86_64::*;

    use super::*;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn load32<T>(x: &[T]) -> __m256i {
        assert!(size_of_val(x) >= 32);
        // SAFETY: the slice holds the 32 bytes read here, as asserted; `loadu` asks for no alignment.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn load16<T>(x: &[T]) -> __m128i {
        assert!(size_of_val(x) >= 16);
        // SAFETY: the slice holds the 16 bytes read here, as asserted; `loadu` asks for no alignment.
        unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
    }

    /// Eight half-precision scales, gathered in general registers.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn scales(d: [::half::f16; 8]) -> __m256 {
        let four = |i: usize| opaque((0..4).fold(0u64, |all, j| all | u64::from(d[i + j].to_bits()) << (16 * j))) as i64;
        _mm256_cvtph_ps(_mm_set_epi64x(four(4), four(0)))
    }

    /// The eight lanes.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn lanes(v: __m256) -> [f32; LANES] {
        let mut out = [0f32; LANES];
        // SAFETY: the array holds the 8 numbers written here.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) };
        out
    }

    /// Sums of the activations of eight blocks, from `x[16]` of sixteen columns.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn block_sums<const FINE: bool>(x: [&[i16; 16]; 2]) -> __m256i {
        let sums = |x: &[i16; 16]| _mm256_madd_epi16(load32(x), _mm256_set1_epi16(1));
        if FINE { _mm256_add_epi32(_mm256_slli_epi32::<8>(sums(x[0])), sums(x[1])) } else { sums(x[0]) }
    }

    /// Sums of the activations of 16 half blocks: even ones, then odd ones.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn half_sums<const FINE: bool>(x: [&[i16; 16]; 2]) -> (__m256i, __m256i) {
        let sums = |x: &[i16; 16]| {
            let x = load32(x);
            (_mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(x)), _mm256_srai_epi32::<16>(x))
        };
        let (even, odd) = sums(x[0]);
        if !FINE {
            return (even, odd);
        }
        let (low_even, low_odd) = sums(x[1]);
        (_mm256_add_epi32(_mm256_slli_epi32::<8>(even), low_even), _mm256_add_epi32(_mm256_slli_epi32::<8>(odd), low_odd))
    }

    /// Products of 32 codes with the activations from `at` on, added up by fours.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn products<const FINE: bool>(q: __m256i, x: [&[i8; 256]; 2], at: usize) -> __m256i {
        let ones = _mm256_set1_epi16(1);
        // Codes are at most 63, so that two products add up in 16 bits.
        let high = _mm256_madd_epi16(_mm256_maddubs_epi16(q, load32(&x[0][at..])), ones);
        if !FINE {
            return high;
        }
        let low = _mm256_madd_epi16(_mm256_maddubs_epi16(q, load32(&x[1][at..])), ones);
        _mm256_add_epi32(_mm256_slli_epi32::<8>(high), low)
    }

    /// The same for codes with signs.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn signed_products<const FINE: bool>(q: __m256i, x: [&[i8; 256]; 2], at: usize) -> __m256i {
        let (ones, size) = (_mm256_set1_epi16(1), _mm256_abs_epi8(q));
        // |q| is at most 128 and |x| at most 127, so that two products add up in 16 bits.
        let high = _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_sign_epi8(load32(&x[0][at..]), q)), ones);
        if !FINE {
            return high;
        }
        let low = _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_sign_epi8(load32(&x[1][at..]), q)), ones);
        _mm256_add_epi32(_mm256_slli_epi32::<8>(high), low)
    }

    dots!("avx2,fma,f16c");

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn float8(x: &[f32; 8]) -> __m256 {
        // SAFETY: the array holds the 8 numbers read here.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    /// A half-precision number, eight times.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::cpu::x86) fn wide(d: ::half::f16) -> __m256 {
        _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(d.to_bits()))))
    }

    /// Scales and minima of a block's eight sub-blocks.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::cpu::x86) fn k_scales(packed: &[u8; 12]) -> (__m256, __m256) {
        let word = |i: usize| u32::from_le_bytes([packed[4 * i], packed[4 * i + 1], packed[4 * i + 2], packed[4 * i + 3]]);
        let (a, b, c) = (word(0), word(1), word(2));
        let join = |low: u32, high: u32| (u64::from(high) << 32 | u64::from(low)) as i64;
        let s = join(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | (a >> 2) & 0x3030_3030);
        let m = join(b & 0x3f3f_3f3f, (c >> 4) & 0x0f0f_0f0f | (b >> 2) & 0x3030_3030);
        let wide = |v: i64| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(v)));
        (wide(s), wide(m))
    }

    /// The 16 scales of a `Q3_K` block, as [`crate::cpu::portable::unpack::q3_k_scales`] gives them.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::cpu::x86) fn q3_k_scales(packed: &[u8; 12]) -> __m128i {
        let word = |i: usize| u64::from(u32::from_le_bytes([packed[4 * i], packed[4 * i + 1], packed[4 * i + 2], packed[4 * i + 3]]));
        let (low, top) = (word(1) << 32 | word(0), word(2));
        let eight = |low: u64, top: u64| {
            let top = (top & 0x0303_0303) << 4 | (top >> 2 & 0x0303_0303) << 36;
            (low & 0x0f0f_0f0f_0f0f_0f0f | top) as i64
        };
        _mm_sub_epi8(_mm_set_epi64x(eight(low >> 4, top >> 4), eight(low, top)), _mm_set1_epi8(32))
    }

    /// 16 scales times `d`: even ones, then odd ones.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn sixteen_scales(d: ::half::f16, s: __m128i) -> (__m256, __m256) {
        let (s, d) = (_mm256_cvtepi8_epi16(s), wide(d));
        let even = _mm256_cvtepi32_ps(_mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(s)));
        (_mm256_mul_ps(d, even), _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_srai_epi32::<16>(s))))
    }

    /// 32 codes from 16 bytes: low nibbles, then high nibbles.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn nibbles(qs: &[u8; 16]) -> __m256i {
        let q = load16(qs);
        let q = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(q), _mm_srli_epi16::<4>(q));
        _mm256_and_si256(q, _mm256_set1_epi8(15))
    }

    /// As [`nibbles`], with a fifth bit per code.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn five_bits(qs: &[u8; 16], top: [u8; 4]) -> __m256i {
        let byte = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let alone = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let top = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(top)), byte);
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(top, alone), alone);
        _mm256_or_si256(nibbles(qs), _mm256_and_si256(set, _mm256_set1_epi8(16)))
    }

    /// The sums of the fours of each half of four vectors: in each half of the result, one number per vector. `STEPS` says
    /// whether sums of four (1) and of eight (2) fit into 16 bits, which is quicker.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn fours<const STEPS: usize>(v: [__m256i; 4]) -> __m256i {
        let ones = _mm256_set1_epi16(1);
        if STEPS == 0 {
            return _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
        }
        let ab = _mm256_madd_epi16(_mm256_packs_epi32(v[0], v[1]), ones);
        let cd = _mm256_madd_epi16(_mm256_packs_epi32(v[2], v[3]), ones);
        if STEPS == 1 { _mm256_hadd_epi32(ab, cd) } else { _mm256_madd_epi16(_mm256_packs_epi32(ab, cd), ones) }
    }

    /// The sums of the fours of eight vectors, that is of 16 sub-blocks of 16: even ones, then odd ones.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn sixteens<const STEPS: usize>(v: [__m256i; 8]) -> (__m256i, __m256i) {
        let (first, second) = (fours::<STEPS>([v[0], v[1], v[2], v[3]]), fours::<STEPS>([v[4], v[5], v[6], v[7]]));
        (_mm256_permute2x128_si256::<0x20>(first, second), _mm256_permute2x128_si256::<0x31>(first, second))
    }

    /// The sums of the eight numbers of each of eight vectors, in order.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn eights<const STEPS: usize>(v: [__m256i; 8]) -> __m256i {
        let (low, high) = sixteens::<STEPS>(v);
        _mm256_add_epi32(low, high)
    }

    /// Asks for `lines` cache lines some way ahead of `at`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn prefetch<T>(at: &T, lines: usize) {
        let ahead = std::ptr::from_ref(at).cast::<i8>().wrapping_add(AHEAD);
        for line in 0..lines {
            // A hint, which may name any address.
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line));
        }
    }
}

pub mod avxvnni {
    use std::arch::x86_64::*;

    use super::avx2::{
        block_sums, eights, five_bits, float8, half_sums, k_scales, lanes, load16, load32, nibbles, prefetch, q3_k_scales, scales,
        sixteen_scales, sixteens, wide,
    };
    use super::*;

    /// Products of 32 codes with the activations from `at` on, added up by fours.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    fn products<const FINE: bool>(q: __m256i, x: [&[i8; 256]; 2], at: usize) -> __m256i {
        let dots = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), q, load32(&x[0][at..]));
        if FINE { _mm256_dpbusd_avx_epi32(_mm256_slli_epi32::<8>(dots), q, load32(&x[1][at..])) } else { dots }
    }

    /// The same for codes with signs.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    fn signed_products<const FINE: bool>(q: __m256i, x: [&[i8; 256]; 2], at: usize) -> __m256i {
        let size = _mm256_abs_epi8(q);
        let dots = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), size, _mm256_sign_epi8(load32(&x[0][at..]), q));
        if !FINE {
            return dots;
        }
        _mm256_dpbusd_avx_epi32(_mm256_slli_epi32::<8>(dots), size, _mm256_sign_epi8(load32(&x[1][at..]), q))
    }

    dots!("avx2,fma,f16c,avxvnni");
}

pub mod vnni {
    use std::arch::x86_64::*;

    use super::avx2::{half_sums, prefetch, wide};
    use super::*;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn load64<T>(x: &[T]) -> __m512i {
        assert!(size_of_val(x) >= 64);
        // SAFETY: the slice holds the 64 bytes read here, as asserted; `loadu` asks for no alignment.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn load32<T>(x: &[T]) -> __m256i {
        assert!(size_of_val(x) >= 32);
        // SAFETY: the slice holds the 32 bytes read here, as asserted; `loadu` asks for no alignment.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn load16<T>(x: &[T]) -> __m128i {
        assert!(size_of_val(x) >= 16);
        // SAFETY: the slice holds the 16 bytes read here, as asserted; `loadu` asks for no alignment.
        unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
    }

    /// The sums of neighbouring fours across four vectors: part `q` of the result has that of each vector's part `q`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn fours(v: [__m512i; 4]) -> __m512i {
        let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
        let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
        _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
    }

    /// [`eights`] for sums of eight that fit into 16 bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn small_eights(v: [__m512i; 4]) -> __m256i {
        let ones = _mm512_set1_epi16(1);
        let ab = _mm512_madd_epi16(_mm512_packs_epi32(v[0], v[1]), ones);
        let cd = _mm512_madd_epi16(_mm512_packs_epi32(v[2], v[3]), ones);
        let fours = _mm512_madd_epi16(_mm512_packs_epi32(ab, cd), ones);
        let both = _mm512_add_epi32(fours, _mm512_shuffle_i32x4::<0b10_11_00_01>(fours, fours));
        let order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 0, 0, 0, 0, 0, 0, 0, 0);
        _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, both))
    }

    /// The sums of the eight numbers of each half of four vectors, in order.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn eights(v: [__m512i; 4]) -> __m256i {
        let fours = fours(v);
        let both = _mm512_add_epi32(fours, _mm512_shuffle_i32x4::<0b10_11_00_01>(fours, fours));
        let order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 0, 0, 0, 0, 0, 0, 0, 0);
        _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, both))
    }

    /// Eight half-precision scales, gathered in general registers: vector shuffles are scarce here.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn scales(d: [::half::f16; 8]) -> __m256 {
        let four = |i: usize| opaque((0..4).fold(0u64, |all, j| all | u64::from(d[i + j].to_bits()) << (16 * j))) as i64;
        _mm256_cvtph_ps(_mm_set_epi64x(four(4), four(0)))
    }

    /// The eight lanes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn lanes(v: __m256) -> [f32; LANES] {
        let mut out = [0f32; LANES];
        // SAFETY: the array holds the 8 numbers written here.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) };
        out
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn float8(x: &[f32; 8]) -> __m256 {
        // SAFETY: the array holds the 8 numbers read here.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    /// Sums of the activations of eight blocks, from those of sixteen halves.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn block_sums<const FINE: bool>(x: [&[i16; 16]; 2]) -> __m256i {
        let sums = |x: &[i16; 16]| _mm256_madd_epi16(load32(x), _mm256_set1_epi16(1));
        if FINE { _mm256_add_epi32(_mm256_slli_epi32::<8>(sums(x[0])), sums(x[1])) } else { sums(x[0]) }
    }

    /// Products of 64 codes with the activations from `at` on, added up by fours.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn products<const FINE: bool>(q: __m512i, x: [&[i8; 256]; 2], at: usize) -> __m512i {
        let dots = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q, load64(&x[0][at..]));
        if FINE { _mm512_dpbusd_epi32(_mm512_slli_epi32::<8>(dots), q, load64(&x[1][at..])) } else { dots }
    }

    /// Shifts by 0 in the low and by 4 in the high half.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn low_then_high(q: __m512i) -> __m512i {
        let shift = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
        _mm512_and_si512(_mm512_srlv_epi64(q, shift), _mm512_set1_epi8(15))
    }

    coarse_and_fine! {
        "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni":
        q4_0, fine_q4_0: q4_0_rows, BlockQ4_0;
        q4_1, fine_q4_1: q4_1_rows, BlockQ4_1;
        q5_0, fine_q5_0: q5_0_rows, BlockQ5_0;
        q5_1, fine_q5_1: q5_1_rows, BlockQ5_1;
        q8_0, fine_q8_0: q8_0_rows, BlockQ8_0;
        q2_k, fine_q2_k: q2_k_rows, BlockQ2_K;
        q3_k, fine_q3_k: q3_k_rows, BlockQ3_K;
        q4_k, fine_q4_k: q4_k_rows, BlockQ4_K;
        q5_k, fine_q5_k: q5_k_rows, BlockQ5_K;
        q6_k, fine_q6_k: q6_k_rows, BlockQ6_K;
    }

    /// Σ over blocks of `w.d · x.d · Σ w.q · x.q`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn q8_0_rows<const FINE: bool>(w: &[BlockQ8_0], x: FineRow<'_>) -> f32 {
        let mut acc = _mm256_setzero_ps();
        let (chunks, _) = w.as_chunks::<8>();
        let pieces = Pieces::of(x, chunks.len());
        for (i, w) in chunks.iter().enumerate() {
            let (qs, d, x_sums) = pieces.at(i);
            prefetch(w, 5);
            let mut dots = [_mm512_setzero_si512(); 4];
            for p in 0..4 {
                let q = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(load32(&w[2 * p].qs)), load32(&w[2 * p + 1].qs));
                let q = _mm512_xor_si512(q, _mm512_set1_epi8(-128));
                dots[p] = products::<FINE>(q, qs, 64 * p);
            }
            let dots = _mm256_sub_epi32(eights(dots), _mm256_slli_epi32::<7>(block_sums::<FINE>(x_sums)));
            let block = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), scales(w.each_ref().map(|w| w.d)));
            acc = _mm256_fmadd_ps(block, float8(d), acc);
        }
        let mut lanes = lanes(acc);
        rest::<BlockQ8_0, true, FINE>(w, x, chunks.len() * 8, &mut lanes, &mut [0.0; LANES]);
        sum(&lanes)
    }

    /// Codes of a pair of blocks from their 16 bytes each: low nibbles, then high nibbles.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn nibbles(even: &[u8; 16], odd: &[u8; 16]) -> __m512i {
        let q = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(load16(even)), 0xff00, load16(odd));
        let shift = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
        _mm512_and_si512(_mm512_srlv_epi64(q, shift), _mm512_set1_epi8(15))
    }

    /// As [`nibbles`], with a fifth bit per code.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn five_bits(even: (&[u8; 16], [u8; 4]), odd: (&[u8; 16], [u8; 4])) -> __m512i {
        let top = u64::from(u32::from_le_bytes(odd.1)) << 32 | u64::from(u32::from_le_bytes(even.1));
        _mm512_or_si512(nibbles(even.0, odd.0), _mm512_maskz_set1_epi8(top, 16))
    }

    /// Σ over blocks of `w.d · x.d · Σ (w.q − 8) · x.q`.
    ///
    /// Eight blocks are loaded as they lie, in vectors that overlap, and a permutation of words takes from two of them the
    /// codes of four blocks, or the scales of all. Low and high nibbles of a block are added up in the same four numbers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn q4_0_rows<const FINE: bool>(w: &[BlockQ4_0], x: FineRow<'_>) -> f32 {
        const EIGHT: usize = 8 * size_of::<BlockQ4_0>();
        /// Which words to take of two vectors that begin with words `from` of the eight blocks, of nine words each; those of
        /// the second vector are counted from 32. Words are `heads`, or codes of four blocks from `first_block` on.
        const fn words<const N: usize>(first_block: usize, from: [usize; 2], heads: bool) -> [u16; N] {
            let (mut all, mut i) = ([0; N], 0);
            while i < N {
                let word = if heads { 9 * (i % 8) } else { 9 * (first_block + i / 8) + 1 + i % 8 };
                all[i] = (if word < from[0] + 32 { word - from[0] } else { 32 + word - from[1] }) as u16;
                i += 1;
            }
            all
        }
        const CODES: [[u16; 32]; 2] = [words(0, [0, 32], false), words(4, [32, 40], false)];
        const HEADS: [u16; 32] = words(0, [0, 32], true);
        let low = _mm512_set1_epi8(15);
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
        let mut acc = _mm256_setzero_ps();
        let (chunks, _) = w.as_chunks::<8>();
        let pieces = Pieces::of(x, chunks.len());
        for (i, w) in chunks.iter().enumerate() {
            let (qs, d, x_sums) = pieces.at(i);
            prefetch(w, 3);
            let bytes: &[u8; EIGHT] = bytemuck::cast_ref(w);
            let parts = [load64(&bytes[..64]), load64(&bytes[64..128]), load64(&bytes[80..])];
            let d_w = _mm512_permutex2var_epi16(parts[0], load64(&HEADS), parts[1]);
            let d_w = _mm256_cvtph_ps(_mm512_castsi512_si128(d_w));
            let mut dots = [_mm512_setzero_si512(); 2];
            for p in 0..2 {
                let q = _mm512_permutex2var_epi16(parts[p], load64(&CODES[p]), parts[p + 1]);
                let q = [_mm512_and_si512(q, low), _mm512_and_si512(_mm512_srli_epi16::<4>(q), low)];
                for term in 0..if FINE { 2 } else { 1 } {
                    // Codes of four blocks: the first halves of all, then the second.
                    let (a, b) = (load64(&qs[term][128 * p..]), load64(&qs[term][128 * p + 64..]));
                    if term == 1 {
                        dots[p] = _mm512_slli_epi32::<8>(dots[p]);
                    }
                    dots[p] = _mm512_dpbusd_epi32(dots[p], q[0], _mm512_shuffle_i64x2::<0x88>(a, b));
                    dots[p] = _mm512_dpbusd_epi32(dots[p], q[1], _mm512_shuffle_i64x2::<0xdd>(a, b));
                }
            }
            let twos = _mm512_add_epi32(_mm512_unpacklo_epi32(dots[0], dots[1]), _mm512_unpackhi_epi32(dots[0], dots[1]));
            let fours = _mm512_add_epi32(twos, _mm512_shuffle_epi32::<0b01_00_11_10>(twos));
            let dots = _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, fours));
            let dots = _mm256_sub_epi32(dots, _mm256_slli_epi32::<3>(block_sums::<FINE>(x_sums)));
            acc = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(dots), d_w), float8(d), acc);
        }
        let mut lanes = lanes(acc);
        rest::<BlockQ4_0, true, FINE>(w, x, chunks.len() * 8, &mut lanes, &mut [0.0; LANES]);
        sum(&lanes)
    }

    /// The formats with blocks of 32: `$codes` makes the codes of a pair of blocks, `$offset` is what is taken off
    /// them, and `$min` says whether blocks have a minimum `m`.
    macro_rules! short_blocks {
        ($($rows:ident: $block:ty, lines $lines:literal, |$even:ident, $odd:ident| $codes:expr, offset $offset:literal $(, min $m:ident)?;)*) => {$(
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
            #[allow(unused_mut)] // for formats without minima
            fn $rows<const FINE: bool>(w: &[$block], x: FineRow<'_>) -> f32 {
                let (mut acc, mut min) = (_mm256_setzero_ps(), _mm256_setzero_ps());
                let (chunks, _) = w.as_chunks::<8>();
                let pieces = Pieces::of(x, chunks.len());
                for (i, w) in chunks.iter().enumerate() {
                    let (qs, d, x_sums) = pieces.at(i);
                    prefetch(w, $lines);
                    let mut dots = [_mm512_setzero_si512(); 4];
                    for p in 0..4 {
                        let ($even, $odd) = (&w[2 * p], &w[2 * p + 1]);
                        dots[p] = products::<FINE>($codes, qs, 64 * p);
                    }
                    let x_sums = block_sums::<FINE>(x_sums);
                    let dots = _mm256_sub_epi32(eights(dots), _mm256_mullo_epi32(x_sums, _mm256_set1_epi32($offset)));
                    let block = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), scales(w.each_ref().map(|w| w.d)));
                    let d = float8(d);
                    acc = _mm256_fmadd_ps(block, d, acc);
                    // What is stored is added, and what a minimum takes off is the opposite.
                    $(min = _mm256_fnmadd_ps(scales(w.each_ref().map(|w| w.$m)), _mm256_mul_ps(d, _mm256_cvtepi32_ps(x_sums)), min);)?
                }
                let (mut acc, mut min) = (lanes(acc), lanes(min));
                rest::<$block, true, FINE>(w, x, chunks.len() * 8, &mut acc, &mut min);
                sum_without(&acc, &min)
            }
        )*};
    }
    short_blocks! {
        q4_1_rows: BlockQ4_1, lines 3, |a, b| nibbles(&a.qs, &b.qs), offset 0, min m;
        q5_0_rows: BlockQ5_0, lines 3, |a, b| five_bits((&a.qs, a.qh), (&b.qs, b.qh)), offset 16;
        q5_1_rows: BlockQ5_1, lines 3, |a, b| five_bits((&a.qs, a.qh), (&b.qs, b.qh)), offset 0, min m;
    }

    /// Σ over sub-blocks of 16 of `x.d · (d · s · Σ w.q · x.q − dmin · m · Σ x.q)`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn q2_k_rows<const FINE: bool>(w: &[BlockQ2_K], x: FineRow<'_>) -> f32 {
        let (mut acc, mut min) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        let pieces = Pieces::of(x, w.len());
        for (i, w) in w.iter().enumerate() {
            let (qs, d, x_sums) = pieces.at(i);
            prefetch(w, 2);
            let mut dots = [_mm512_setzero_si512(); 4];
            for z in 0..4 {
                dots[z] = products::<FINE>(two_bits(&w.qs, z), qs, 64 * z);
            }
            let (even, odd) = sixteens(dots);
            let (x_even, x_odd) = half_sums::<FINE>(x_sums);
            let both = load16(&w.scales);
            let low = _mm_set1_epi8(15);
            let s = sixteen_scales(w.d, _mm_and_si128(both, low));
            let m = sixteen_scales(w.dmin, _mm_and_si128(_mm_srli_epi16::<4>(both), low));
            let block = _mm256_mul_ps(_mm256_cvtepi32_ps(even), s.0);
            let block = _mm256_fmadd_ps(_mm256_cvtepi32_ps(odd), s.1, block);
            let d = float8(d);
            acc = _mm256_fmadd_ps(block, d, acc);
            min = _mm256_fmadd_ps(m.0, _mm256_mul_ps(d, _mm256_cvtepi32_ps(x_even)), min);
            min = _mm256_fmadd_ps(m.1, _mm256_mul_ps(d, _mm256_cvtepi32_ps(x_odd)), min);
        }
        sum_without(&lanes(acc), &lanes(min))
    }

    /// Σ over sub-blocks of 16 of `x.d · d · s · Σ (w.q − 4) · x.q`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn q3_k_rows<const FINE: bool>(w: &[BlockQ3_K], x: FineRow<'_>) -> f32 {
        let mut acc = _mm256_setzero_ps();
        let pieces = Pieces::of(x, w.len());
        for (i, w) in w.iter().enumerate() {
            let (qs, d, x_sums) = pieces.at(i);
            prefetch(w, 2);
            let top = _mm512_broadcast_i64x4(load32(&w.hmask));
            let mut dots = [_mm512_setzero_si512(); 4];
            for z in 0..4 {
                let shift = _mm512_add_epi64(_mm512_setr_epi64(0, 0, 0, 0, 1, 1, 1, 1), _mm512_set1_epi64(2 * z as i64));
                let bit = _mm512_and_si512(_mm512_srlv_epi64(top, shift), _mm512_set1_epi8(1));
                let q = _mm512_or_si512(two_bits(&w.qs, z), _mm512_slli_epi16::<2>(bit));
                dots[z] = products::<FINE>(q, qs, 64 * z);
            }
            let (even, odd) = sixteens(dots);
            let (x_even, x_odd) = half_sums::<FINE>(x_sums);
            let even = _mm256_cvtepi32_ps(_mm256_sub_epi32(even, _mm256_slli_epi32::<2>(x_even)));
            let odd = _mm256_cvtepi32_ps(_mm256_sub_epi32(odd, _mm256_slli_epi32::<2>(x_odd)));
            let s = sixteen_scales(w.d, load16(&q3_k_scales(&w.scales)));
            let block = _mm256_fmadd_ps(odd, s.1, _mm256_mul_ps(even, s.0));
            acc = _mm256_fmadd_ps(block, float8(d), acc);
        }
        sum(&lanes(acc))
    }

    /// Two-bit codes 64·z..64·z + 64 of a `Q2_K` or `Q3_K` block.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn two_bits(qs: &[u8; 64], z: usize) -> __m512i {
        let q = _mm512_broadcast_i64x4(load32(&qs[z / 2 * 32..]));
        let shift = _mm512_add_epi64(_mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2), _mm512_set1_epi64(z as i64 % 2 * 4));
        _mm512_and_si512(_mm512_srlv_epi64(q, shift), _mm512_set1_epi8(3))
    }

    /// The sums of neighbouring fours of four vectors, that is of 16 sub-blocks of 16: even ones, then odd ones.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn sixteens(v: [__m512i; 4]) -> (__m256i, __m256i) {
        // Sub-block 4·z + q is in part q at place z.
        let order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
        let sums = _mm512_permutexvar_epi32(order, fours(v));
        (_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64::<1>(sums))
    }

    /// 16 scales times `d`: even ones, then odd ones.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn sixteen_scales(d: ::half::f16, s: __m128i) -> (__m256, __m256) {
        let even_first = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
        let s = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_shuffle_epi8(s, even_first)));
        let s = _mm512_mul_ps(_mm512_broadcast_f32x8(wide(d)), s);
        (_mm512_castps512_ps256(s), _mm512_extractf32x8_ps::<1>(s))
    }

    /// Σ over sub-blocks of `x.d · (d · s · Σ w.q · x.q − dmin · m · Σ x.q)`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn q4_k_rows<const FINE: bool>(w: &[BlockQ4_K], x: FineRow<'_>) -> f32 {
        let mut sums = _mm512_setzero_ps();
        let pieces = Pieces::of(x, w.len());
        for (i, w) in w.iter().enumerate() {
            let (qs, d, x_sums) = pieces.at(i);
            prefetch(w, 3);
            let mut dots = [_mm512_setzero_si512(); 4];
            for p in 0..4 {
                let q = low_then_high(_mm512_broadcast_i64x4(load32(&w.qs[32 * p..])));
                dots[p] = products::<FINE>(q, qs, 64 * p);
            }
            let dots = if FINE { eights(dots) } else { small_eights(dots) };
            sums = k_block(load16(bytemuck::bytes_of(w)), dots, d, block_sums::<FINE>(x_sums), sums);
        }
        k_sum(sums)
    }

    /// As [`q4_k_rows`], with a fifth bit per code.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn q5_k_rows<const FINE: bool>(w: &[BlockQ5_K], x: FineRow<'_>) -> f32 {
        let mut sums = _mm512_setzero_ps();
        let pieces = Pieces::of(x, w.len());
        for (i, w) in w.iter().enumerate() {
            let (qs, d, x_sums) = pieces.at(i);
            prefetch(w, 3);
            let top = _mm512_broadcast_i64x4(load32(&w.qh));
            let mut dots = [_mm512_setzero_si512(); 4];
            for p in 0..4 {
                let q = low_then_high(_mm512_broadcast_i64x4(load32(&w.qs[32 * p..])));
                let bits = _mm512_setr_epi64(0, 0, 0, 0, 1, 1, 1, 1);
                let bit = _mm512_srlv_epi64(top, _mm512_add_epi64(bits, _mm512_set1_epi64(2 * p as i64)));
                let bit = _mm512_slli_epi16::<4>(_mm512_and_si512(bit, _mm512_set1_epi8(1)));
                dots[p] = products::<FINE>(_mm512_or_si512(q, bit), qs, 64 * p);
            }
            sums = k_block(load16(bytemuck::bytes_of(w)), eights(dots), d, block_sums::<FINE>(x_sums), sums);
        }
        k_sum(sums)
    }

    /// The float part of a `Q4_K` or `Q5_K` block, `head` being its first 16 bytes, which have units, scales and minima: adds
    /// the sums of eight sub-blocks to the first half of `sums`, and what their minima take off to the second.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn k_block(head: __m128i, dots: __m256i, x_d: &[f32; 8], x_sums: __m256i, sums: __m512) -> __m512 {
        const SECOND: __mmask16 = 0xff00;
        // Words a, c, b and c behind the units: of a and b six bits of each byte count, or four of c and the highest two of
        // a and b, see `k_scales`.
        let (four, two) = (_mm_shuffle_epi32::<0b11_10_11_01>(head), _mm_shuffle_epi32::<0b10_10_01_01>(head));
        let four = _mm_and_si128(
            _mm_srlv_epi32(four, _mm_setr_epi32(0, 0, 0, 4)),
            _mm_setr_epi32(0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f),
        );
        let two = _mm_and_si128(_mm_srli_epi32::<2>(two), _mm_setr_epi32(0, 0x3030_3030, 0, 0x3030_3030));
        let whole = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_or_si128(four, two)));
        let units = _mm512_castps256_ps512(_mm256_cvtph_ps(head));
        let units = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), units);
        let (of_weights, x_d) = (_mm512_mul_ps(units, whole), _mm512_broadcast_f32x8(float8(x_d)));
        // `(dots · s) · d` and `(Σ x · d) · m`.
        let all = _mm512_cvtepi32_ps(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(dots), x_sums));
        let all = _mm512_mul_ps(all, _mm512_mask_mov_ps(of_weights, SECOND, x_d));
        _mm512_fmadd_ps(all, _mm512_mask_mov_ps(x_d, SECOND, of_weights), sums)
    }

    /// The halves of `sums`, as [`k_block`] leaves them, without the minima.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn k_sum(sums: __m512) -> f32 {
        sum_without(&lanes(_mm512_castps512_ps256(sums)), &lanes(_mm512_extractf32x8_ps::<1>(sums)))
    }

    /// Σ over sub-blocks of 16 of `x.d · d · s · Σ (w.q − 32) · x.q`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn q6_k_rows<const FINE: bool>(w: &[BlockQ6_K], x: FineRow<'_>) -> f32 {
        let (low, two) = (_mm512_set1_epi8(15), _mm512_set1_epi8(3));
        let (shift, shift_more) = (_mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2), _mm512_setr_epi64(4, 4, 4, 4, 6, 6, 6, 6));
        let mut acc = _mm256_setzero_ps();
        let pieces = Pieces::of(x, w.len());
        for (i, w) in w.iter().enumerate() {
            let (qs, d, x_sums) = pieces.at(i);
            prefetch(w, 4);
            let mut dots = [_mm512_setzero_si512(); 4];
            for h in 0..2 {
                let (bottom, top) = (load64(&w.ql[64 * h..]), _mm512_broadcast_i64x4(load32(&w.qh[32 * h..])));
                let first = _mm512_slli_epi16::<4>(_mm512_and_si512(_mm512_srlv_epi64(top, shift), two));
                let second = _mm512_slli_epi16::<4>(_mm512_and_si512(_mm512_srlv_epi64(top, shift_more), two));
                let q0 = _mm512_or_si512(_mm512_and_si512(bottom, low), first);
                let q1 = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<4>(bottom), low), second);
                dots[2 * h] = products::<FINE>(q0, qs, 128 * h);
                dots[2 * h + 1] = products::<FINE>(q1, qs, 128 * h + 64);
            }
            let (even, odd) = sixteens(dots);
            let (x_even, x_odd) = half_sums::<FINE>(x_sums);
            let even = _mm256_cvtepi32_ps(_mm256_sub_epi32(even, _mm256_slli_epi32::<5>(x_even)));
            let odd = _mm256_cvtepi32_ps(_mm256_sub_epi32(odd, _mm256_slli_epi32::<5>(x_odd)));
            let s = sixteen_scales(w.d, load16(&w.scales));
            let block = _mm256_fmadd_ps(odd, s.1, _mm256_mul_ps(even, s.0));
            acc = _mm256_fmadd_ps(block, float8(d), acc);
        }
        sum(&lanes(acc))
    }
}
