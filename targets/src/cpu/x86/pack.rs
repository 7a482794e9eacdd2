//! Weight rows into panels straight from their blocks: AVX-512 and AVX2. Siblings of `portable/gemm.rs`'s `pack`, with equal
//! results, for the formats that models are mostly kept in; the others take their blocks apart row by row.
//!
//! Sixteen rows are transposed first, as the file has them, and taken apart then: a vector holds the same four bytes of
//! each row, so that nothing moves between lanes.

use std::arch::x86_64::*;
use std::mem::offset_of;
use std::ops::Range;

use sphinx_quant::block::{BlockQ4_0, BlockQ4_K, BlockQ6_K, BlockQ8_0};

use super::gemm::ahead;
use super::gemm::avx512::{transpose, turned, words};
use super::opaque;
use crate::cpu::portable::dot::LANES;
use crate::cpu::portable::gemm::{PANEL, PANEL_BLOCK, pack_with, place};

/// How far ahead of the blocks being read their rows are asked for, in bytes.
const AHEAD: usize = 256;

/// One block of each of sixteen rows that follow at equal distances.
///
/// Four of the rows are pointed to, so that all sixteen are within reach of an addressing mode.
#[derive(Clone, Copy)]
struct Sixteen {
    fours: [*const u8; 4],
    stride: usize,
    /// Three strides, which no addressing mode makes of one.
    three: usize,
}

impl Sixteen {
    /// The first block of each of sixteen rows of `per_row` blocks.
    fn of<B>(w: &[B], per_row: usize) -> Sixteen {
        assert!(per_row > 0 && w.len() == PANEL * per_row);
        let (start, stride) = (w.as_ptr().cast::<u8>(), per_row * size_of::<B>());
        Sixteen { fours: std::array::from_fn(|q| start.wrapping_add(4 * q * stride)), stride, three: 3 * stride }
    }

    /// The blocks behind these, of the same rows.
    fn next<B>(self) -> Sixteen {
        Sixteen { fours: self.fours.map(|p| p.wrapping_add(size_of::<B>())), ..self }
    }

    /// The same, of which the compiler forgets how it was made: it would otherwise keep sixteen pointers, most of them on
    /// the stack.
    #[inline(always)]
    #[allow(clippy::pointers_in_nomem_asm_block)] // there is nothing in it
    fn opaque(mut self) -> Sixteen {
        let Sixteen { fours: [a, b, c, d], stride, three } = &mut self;
        // SAFETY: no instruction at all.
        unsafe {
            std::arch::asm!(
                "/* {0} {1} {2} {3} {4} {5} */",
                inout(reg) * a,
                inout(reg) * b,
                inout(reg) * c,
                inout(reg) * d,
                inout(reg) * stride,
                inout(reg) * three,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        self
    }

    /// Asks for what lies some way behind the `i`-th blocks of four rows, or of all: as many lines as blocks begin. A row's
    /// end is followed by the beginning of the row that the next panel has in its place.
    #[inline(always)]
    fn ahead<B>(self, i: usize, rows: Range<usize>) {
        let (from, to) = (i * size_of::<B>(), (i + 1) * size_of::<B>());
        let far = if from + AHEAD < self.stride { AHEAD } else { AHEAD + 15 * self.stride };
        let far = Sixteen { fours: self.fours.map(|p| p.wrapping_add(far)), ..self };
        for line in 0..to / 64 - from / 64 {
            for r in rows.clone() {
                // SAFETY: a hint, which may name any address; every x86-64 processor has it.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(far.at(r, 64 * line).cast()) }
            }
        }
    }

    /// The place at `offset` of row `r`'s block.
    #[inline(always)]
    fn at(&self, r: usize, offset: usize) -> *const u8 {
        self.fours[r / 4].wrapping_add([0, self.stride, 2 * self.stride, self.three][r % 4]).wrapping_add(offset)
    }

    /// Four words at `offset` of each block, vector `i` having the `i`-th of each.
    ///
    /// # Safety
    /// The 16 bytes lie inside the blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn words(self, offset: usize) -> [__m512i; 4] {
        // SAFETY: the rows are in memory, and the caller promises the bytes of each; `loadu` asks for no alignment.
        words(|r| unsafe { _mm_loadu_si128(self.at(r, offset).cast()) })
    }

    /// Eight words at `offset` of each block.
    ///
    /// Half as many loads as two times four words take: rows `r` and `8 + r` of 32 bytes to a vector, 4×4 transposes, and the
    /// quarters put in order.
    ///
    /// # Safety
    /// The 32 bytes lie inside the blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn eight_words(self, offset: usize) -> [__m512i; 8] {
        // SAFETY: the rows are in memory, and the caller promises the bytes of each; `loadu` asks for no alignment.
        let part = |r: usize| unsafe { _mm256_loadu_si256(self.at(r, offset).cast()) };
        let two = |r: usize| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(part(r)), part(8 + r));
        let (top, bottom) = (turned([two(0), two(1), two(2), two(3)]), turned([two(4), two(5), two(6), two(7)]));
        let even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
        std::array::from_fn(|i| {
            let order = if i < 4 { even } else { _mm512_add_epi64(even, _mm512_set1_epi64(2)) };
            _mm512_permutex2var_epi64(top[i % 4], order, bottom[i % 4])
        })
    }

    /// The half-precision numbers at `offset` of each block.
    ///
    /// # Safety
    /// The 2 bytes lie inside the blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn halves(self, offset: usize) -> __m512 {
        // Put together in general registers: vector shuffles are scarce here.
        let four = |q: usize| {
            opaque((0..4).fold(0u64, |all, i| {
                // SAFETY: the rows are in memory, and the caller promises the bytes of each.
                let half = unsafe { self.at(4 * q + i, offset).cast::<u16>().read_unaligned() };
                all | u64::from(half) << (16 * i)
            })) as i64
        };
        _mm512_cvtph_ps(_mm256_set_epi64x(four(3), four(2), four(1), four(0)))
    }
}

/// Stores a vector of codes, the `i`-th of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn store(codes: &mut [u8; PANEL_BLOCK], i: usize, v: __m512i) {
    let to = &mut codes[64 * i..][..64];
    // SAFETY: the slice holds the 64 bytes written here; `storeu` asks for no alignment.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn store_numbers(to: &mut [f32; PANEL], v: __m512) {
    // SAFETY: the array holds the 16 numbers written here; `storeu` asks for no alignment.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
}

/// Half-precision numbers in the low parts of words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn low_halves(v: __m512i) -> __m512 {
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v))
}

/// See [`crate::cpu::portable::gemm::pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub fn q4_k(w: &[BlockQ4_K], rows: usize, codes: &mut [u8], s: &mut [f32], m: &mut [f32]) {
    if rows != PANEL {
        return pack_with(w, rows, codes, s, m, |rows, first, out| transpose(rows, first, out), |b| ahead(w, rows, b));
    }
    let (per_row, low) = (w.len() / PANEL, _mm512_set1_epi8(15));
    let codes = codes.as_chunks_mut::<PANEL_BLOCK>().0;
    let (s, m) = (s.as_chunks_mut::<PANEL>().0, m.as_chunks_mut::<PANEL>().0);
    let mut blocks = Sixteen::of(w, per_row);
    for i in 0..per_row {
        let at = |j: usize| place(8 * i + j, 8 * per_row, LANES);
        // SAFETY: a block's head has 16 bytes.
        let [unit, a, b, c] = unsafe { blocks.words(offset_of!(BlockQ4_K, d)) };
        let (d, dmin) = (low_halves(unit), low_halves(_mm512_srli_epi32::<16>(unit)));
        // Bytes of four sub-blocks: 6 bits of `a` and `b`, or 4 of `c` and the highest 2 of `a` and `b`.
        let six = |v: __m512i| _mm512_and_si512(v, _mm512_set1_epi32(0x3f3f_3f3f));
        let four_and_two = |four: __m512i, two: __m512i| {
            let two = _mm512_and_si512(_mm512_srli_epi32::<2>(two), _mm512_set1_epi32(0x3030_3030));
            _mm512_or_si512(_mm512_and_si512(four, _mm512_set1_epi32(0x0f0f_0f0f)), two)
        };
        let scales = [six(a), four_and_two(c, a)];
        let minima = [six(b), four_and_two(_mm512_srli_epi32::<4>(c), b)];
        for j in 0..8 {
            let byte = |v: __m512i| {
                let v = _mm512_srlv_epi32(v, _mm512_set1_epi32(8 * (j as i32 % 4)));
                _mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(255)))
            };
            store_numbers(&mut s[at(j)], _mm512_mul_ps(d, byte(scales[j / 4])));
            store_numbers(&mut m[at(j)], _mm512_mul_ps(dmin, byte(minima[j / 4])));
        }
        for p in 0..4 {
            blocks.ahead::<BlockQ4_K>(i, 4 * p..4 * p + 4);
            // SAFETY: a block has 128 bytes of codes.
            let columns = unsafe { blocks.eight_words(offset_of!(BlockQ4_K, qs) + 32 * p) };
            for (c, v) in columns.into_iter().enumerate() {
                store(&mut codes[at(2 * p)], c, _mm512_and_si512(v, low));
                store(&mut codes[at(2 * p + 1)], c, _mm512_and_si512(_mm512_srli_epi16::<4>(v), low));
            }
        }
        blocks = blocks.next::<BlockQ4_K>().opaque();
    }
}

/// See [`crate::cpu::portable::gemm::pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub fn q6_k(w: &[BlockQ6_K], rows: usize, codes: &mut [u8], s: &mut [f32], m: &mut [f32]) {
    if rows != PANEL {
        return pack_with(w, rows, codes, s, m, |rows, first, out| transpose(rows, first, out), |b| ahead(w, rows, b));
    }
    let per_row = w.len() / PANEL;
    let (low, two) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
    let (codes, s) = (codes.as_chunks_mut::<PANEL_BLOCK>().0, s.as_chunks_mut::<PANEL>().0);
    let mut blocks = Sixteen::of(w, per_row);
    for i in 0..per_row {
        let at = |j: usize| place(8 * i + j, 8 * per_row, LANES);
        // SAFETY: a block has these two bytes and 16 scales.
        let (d, scales) = unsafe { (blocks.halves(offset_of!(BlockQ6_K, d)), blocks.words(offset_of!(BlockQ6_K, scales))) };
        for j in 0..16 {
            let byte = _mm512_sllv_epi32(scales[j / 4], _mm512_set1_epi32(24 - 8 * (j as i32 % 4)));
            let scale = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(byte));
            store_numbers(&mut s[2 * at(j / 2) + j % 2], _mm512_mul_ps(d, scale));
        }
        for h in 0..2 {
            // SAFETY: halves of a block have 64 and 32 bytes of codes.
            let (a, b, high) = unsafe {
                let ql = offset_of!(BlockQ6_K, ql) + 64 * h;
                (blocks.eight_words(ql), blocks.eight_words(ql + 32), blocks.eight_words(offset_of!(BlockQ6_K, qh) + 32 * h))
            };
            for c in 0..8 {
                if c % 4 == 0 {
                    let four = 2 * h + c / 4;
                    blocks.ahead::<BlockQ6_K>(i, 4 * four..4 * four + 4);
                }
                let join = |nibbles: __m512i, high: __m512i| _mm512_or_si512(_mm512_and_si512(nibbles, low), _mm512_and_si512(high, two));
                store(&mut codes[at(4 * h)], c, join(a[c], _mm512_slli_epi16::<4>(high[c])));
                store(&mut codes[at(4 * h + 1)], c, join(b[c], _mm512_slli_epi16::<2>(high[c])));
                store(&mut codes[at(4 * h + 2)], c, join(_mm512_srli_epi16::<4>(a[c]), high[c]));
                store(&mut codes[at(4 * h + 3)], c, join(_mm512_srli_epi16::<4>(b[c]), _mm512_srli_epi16::<2>(high[c])));
            }
        }
        blocks = blocks.next::<BlockQ6_K>().opaque();
    }
}

/// See [`crate::cpu::portable::gemm::pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub fn q4_0(w: &[BlockQ4_0], rows: usize, codes: &mut [u8], s: &mut [f32], m: &mut [f32]) {
    if rows != PANEL {
        return pack_with(w, rows, codes, s, m, |rows, first, out| transpose(rows, first, out), |b| ahead(w, rows, b));
    }
    let (per_row, low) = (w.len() / PANEL, _mm512_set1_epi8(15));
    let (codes, s) = (codes.as_chunks_mut::<PANEL_BLOCK>().0, s.as_chunks_mut::<PANEL>().0);
    let mut blocks = Sixteen::of(w, per_row);
    for i in 0..per_row {
        blocks.ahead::<BlockQ4_0>(i, 0..PANEL);
        let at = place(i, per_row, LANES);
        // SAFETY: a block has these two bytes and 16 of codes.
        let (d, columns) = unsafe { (blocks.halves(offset_of!(BlockQ4_0, d)), blocks.words(offset_of!(BlockQ4_0, qs))) };
        store_numbers(&mut s[at], d);
        for (c, v) in columns.into_iter().enumerate() {
            store(&mut codes[at], c, _mm512_and_si512(v, low));
            store(&mut codes[at], 4 + c, _mm512_and_si512(_mm512_srli_epi16::<4>(v), low));
        }
        blocks = blocks.next::<BlockQ4_0>().opaque();
    }
}

/// See [`crate::cpu::portable::gemm::pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub fn q8_0(w: &[BlockQ8_0], rows: usize, codes: &mut [u8], s: &mut [f32], m: &mut [f32]) {
    if rows != PANEL {
        return pack_with(w, rows, codes, s, m, |rows, first, out| transpose(rows, first, out), |b| ahead(w, rows, b));
    }
    let (per_row, top) = (w.len() / PANEL, _mm512_set1_epi8(-128));
    let (codes, s) = (codes.as_chunks_mut::<PANEL_BLOCK>().0, s.as_chunks_mut::<PANEL>().0);
    let mut blocks = Sixteen::of(w, per_row);
    for i in 0..per_row {
        blocks.ahead::<BlockQ8_0>(i, 0..PANEL);
        let at = place(i, per_row, LANES);
        // SAFETY: a block has these two bytes and 32 codes.
        let (d, columns) = unsafe { (blocks.halves(offset_of!(BlockQ8_0, d)), blocks.eight_words(offset_of!(BlockQ8_0, qs))) };
        store_numbers(&mut s[at], d);
        for (c, v) in columns.into_iter().enumerate() {
            store(&mut codes[at], c, _mm512_xor_si512(v, top));
        }
        blocks = blocks.next::<BlockQ8_0>().opaque();
    }
}

pub mod avx2 {
    //! The same on 256 bits, where a vector holds four bytes of each of 8 rows, for all formats.

    use std::arch::x86_64::*;

    use half::f16;
    use sphinx_quant::block::{
        BlockQ2_K, BlockQ3_K, BlockQ4_0, BlockQ4_1, BlockQ4_K, BlockQ5_0, BlockQ5_1, BlockQ5_K, BlockQ6_K, BlockQ8_0,
    };

    use crate::cpu::portable::dot::LANES;
    use crate::cpu::portable::gemm::{PANEL, PANEL_BLOCK, pack_with, place};
    use crate::cpu::x86::dot::avx2::{k_scales, q3_k_scales, wide};
    use crate::cpu::x86::gemm::ahead;
    use crate::cpu::x86::gemm::avx2::transpose;
    use crate::cpu::x86::opaque;

    /// 16 bytes from the start of `x`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn load16<T>(x: &[T]) -> __m128i {
        assert!(size_of_val(x) >= 16);
        // SAFETY: the slice holds the 16 bytes read here, as asserted; `loadu` asks for no alignment.
        unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
    }

    /// Stores codes of four columns, the `i`-th of a block, of one side's eight rows.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn store(codes: &mut [u8; PANEL_BLOCK], i: usize, side: usize, v: __m256i) {
        let to = &mut codes[64 * i + 32 * side..][..32];
        // SAFETY: the slice holds the 32 bytes written here; `storeu` asks for no alignment.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), v) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn store_numbers(to: &mut [f32], v: __m256) {
        let to = &mut to[..8];
        // SAFETY: the slice holds the 8 numbers written here; `storeu` asks for no alignment.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
    }

    /// Words of 16 rows of 16 bytes: those of column `i` of one side's eight rows, by 4×4 transposes, row `4·q + i` of a
    /// side from part `q` of vector `i`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn words(part: impl Fn(usize) -> __m128i) -> [[__m256i; 2]; 4] {
        let mut all = [[_mm256_setzero_si256(); 2]; 4];
        for side in 0..2 {
            let mut v = [_mm256_setzero_si256(); 4];
            for i in 0..4 {
                v[i] = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(part(8 * side + i)), part(8 * side + 4 + i));
            }
            let [a, b, c, d] = v;
            let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
            all[0][side] = _mm256_unpacklo_epi64(ab, cd);
            all[1][side] = _mm256_unpackhi_epi64(ab, cd);
            all[2][side] = _mm256_unpacklo_epi64(ab_high, cd_high);
            all[3][side] = _mm256_unpackhi_epi64(ab_high, cd_high);
        }
        all
    }

    /// Half-precision numbers of 16 rows, `sign` flipping signs.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn halves(to: &mut [f32; PANEL], sign: u16, of: impl Fn(usize) -> f16) {
        let sign = u64::from(sign) * 0x0001_0001_0001_0001;
        let four = |q: usize| opaque((0..4).fold(0u64, |all, i| all | u64::from(of(4 * q + i).to_bits()) << (16 * i)) ^ sign) as i64;
        store_numbers(&mut to[..8], _mm256_cvtph_ps(_mm_set_epi64x(four(1), four(0))));
        store_numbers(&mut to[8..], _mm256_cvtph_ps(_mm_set_epi64x(four(3), four(2))));
    }

    /// Four numbers of each of 16 rows: number `j` of all rows to `to(j)`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn spread<const N: usize>(numbers: &[[f32; N]; PANEL], first: usize, to: &mut [[f32; PANEL]], at: impl Fn(usize) -> usize) {
        let columns = words(|r| load16(&numbers[r][first..first + 4]));
        for j in 0..4 {
            let to = &mut to[at(first + j)];
            store_numbers(&mut to[..8], _mm256_castsi256_ps(columns[j][0]));
            store_numbers(&mut to[8..], _mm256_castsi256_ps(columns[j][1]));
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn shift<const BITS: i32>(v: __m256i, mask: __m256i) -> __m256i {
        _mm256_and_si256(_mm256_srli_epi16::<BITS>(v), mask)
    }

    /// One function per format: `$body` for panels of 16 rows, and others row by row.
    macro_rules! packs {
        ($($name:ident: $block:ty, |$w:ident, $rows:ident, $codes:ident, $s:ident, $m:ident| $body:expr;)*) => {$(
            /// See [`crate::cpu::portable::gemm::pack`].
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(unused_variables)] // for formats without minima
            pub fn $name($w: &[$block], $rows: usize, codes: &mut [u8], s: &mut [f32], m: &mut [f32]) {
                if $rows != PANEL {
                    return pack_with($w, $rows, codes, s, m, |rows, first, out| transpose(rows, first, out), |b| ahead($w, $rows, b));
                }
                let $codes = codes.as_chunks_mut::<PANEL_BLOCK>().0;
                let ($s, $m) = (s.as_chunks_mut::<PANEL>().0, m.as_chunks_mut::<PANEL>().0);
                $body
            }
        )*};
    }
    packs! {
        q4_0: BlockQ4_0, |w, rows, codes, s, m| {
            let n = w.len() / PANEL;
            for i in 0..n {
                ahead(w, rows, i);
                let at = place(i, n, LANES);
                halves(&mut s[at], 0, |r| w[r * n + i].d);
                nibbles(&mut codes[at], |r| &w[r * n + i].qs, |_| None);
            }
        };
        q4_1: BlockQ4_1, |w, rows, codes, s, m| {
            let n = w.len() / PANEL;
            for i in 0..n {
                ahead(w, rows, i);
                let at = place(i, n, LANES);
                halves(&mut s[at], 0, |r| w[r * n + i].d);
                halves(&mut m[at], 0x8000, |r| w[r * n + i].m);
                nibbles(&mut codes[at], |r| &w[r * n + i].qs, |_| None);
            }
        };
        q5_0: BlockQ5_0, |w, rows, codes, s, m| {
            let n = w.len() / PANEL;
            for i in 0..n {
                ahead(w, rows, i);
                let at = place(i, n, LANES);
                halves(&mut s[at], 0, |r| w[r * n + i].d);
                nibbles(&mut codes[at], |r| &w[r * n + i].qs, |r| Some(w[r * n + i].qh));
            }
        };
        q5_1: BlockQ5_1, |w, rows, codes, s, m| {
            let n = w.len() / PANEL;
            for i in 0..n {
                ahead(w, rows, i);
                let at = place(i, n, LANES);
                halves(&mut s[at], 0, |r| w[r * n + i].d);
                halves(&mut m[at], 0x8000, |r| w[r * n + i].m);
                nibbles(&mut codes[at], |r| &w[r * n + i].qs, |r| Some(w[r * n + i].qh));
            }
        };
        q8_0: BlockQ8_0, |w, rows, codes, s, m| {
            let (n, top) = (w.len() / PANEL, _mm256_set1_epi8(-128));
            for i in 0..n {
                ahead(w, rows, i);
                let at = place(i, n, LANES);
                halves(&mut s[at], 0, |r| w[r * n + i].d);
                for half in 0..2 {
                    let columns = words(|r| load16(&w[r * n + i].qs[16 * half..]));
                    for c in 0..4 {
                        for side in 0..2 {
                            store(&mut codes[at], 4 * half + c, side, _mm256_xor_si256(columns[c][side], top));
                        }
                    }
                }
            }
        };
        q4_k: BlockQ4_K, |w, rows, codes, s, m| {
            let (n, low) = (w.len() / PANEL, _mm256_set1_epi8(15));
            for i in 0..n {
                let at = |j: usize| place(8 * i + j, 8 * n, LANES);
                k_numbers(|r| (w[r * n + i].d, w[r * n + i].dmin, &w[r * n + i].scales), s, m, at);
                for part in 0..8 {
                    ahead(w, rows, 8 * i + part);
                    let (p, half) = (part / 2, part % 2);
                    let columns = words(|r| load16(&w[r * n + i].qs[16 * part..]));
                    for c in 0..4 {
                        for side in 0..2 {
                            let v = columns[c][side];
                            store(&mut codes[at(2 * p)], 4 * half + c, side, _mm256_and_si256(v, low));
                            store(&mut codes[at(2 * p + 1)], 4 * half + c, side, shift::<4>(v, low));
                        }
                    }
                }
            }
        };
        q5_k: BlockQ5_K, |w, rows, codes, s, m| {
            let (n, low, fifth) = (w.len() / PANEL, _mm256_set1_epi8(15), _mm256_set1_epi8(16));
            for i in 0..n {
                let at = |j: usize| place(8 * i + j, 8 * n, LANES);
                k_numbers(|r| (w[r * n + i].d, w[r * n + i].dmin, &w[r * n + i].scales), s, m, at);
                for half in 0..2 {
                    let mut bits = words(|r| load16(&w[r * n + i].qh[16 * half..]));
                    for p in 0..4 {
                        ahead(w, rows, 8 * i + 4 * half + p);
                        let columns = words(|r| load16(&w[r * n + i].qs[32 * p + 16 * half..]));
                        for c in 0..4 {
                            for side in 0..2 {
                                let (v, bit) = (columns[c][side], &mut bits[c][side]);
                                let even = _mm256_and_si256(_mm256_slli_epi16::<4>(*bit), fifth);
                                let odd = _mm256_and_si256(_mm256_slli_epi16::<3>(*bit), fifth);
                                store(&mut codes[at(2 * p)], 4 * half + c, side, _mm256_or_si256(_mm256_and_si256(v, low), even));
                                store(&mut codes[at(2 * p + 1)], 4 * half + c, side, _mm256_or_si256(shift::<4>(v, low), odd));
                                // The next two bits; what comes from other bytes is masked out.
                                *bit = _mm256_srli_epi16::<2>(*bit);
                            }
                        }
                    }
                }
            }
        };
        q6_k: BlockQ6_K, |w, rows, codes, s, m| {
            let (n, low, two) = (w.len() / PANEL, _mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
            for i in 0..n {
                let at = |j: usize| place(8 * i + j, 8 * n, LANES);
                let mut scales = [[0f32; 16]; PANEL];
                for r in 0..PANEL {
                    let block = &w[r * n + i];
                    times(&mut scales[r], block.d, load16(&block.scales));
                }
                for first in [0, 4, 8, 12] {
                    spread(&scales, first, s, |j| 2 * at(j / 2) + j % 2);
                }
                for part in 0..4 {
                    let (h, half) = (part / 2, part % 2);
                    let a = words(|r| load16(&w[r * n + i].ql[64 * h + 16 * half..]));
                    ahead(w, rows, 8 * i + 2 * part);
                    let b = words(|r| load16(&w[r * n + i].ql[64 * h + 32 + 16 * half..]));
                    ahead(w, rows, 8 * i + 2 * part + 1);
                    let high = words(|r| load16(&w[r * n + i].qh[32 * h + 16 * half..]));
                    for c in 0..4 {
                        for side in 0..2 {
                            let (a, b, high, at_word) = (a[c][side], b[c][side], high[c][side], 4 * half + c);
                            let first = _mm256_and_si256(_mm256_slli_epi16::<4>(high), two);
                            store(&mut codes[at(4 * h)], at_word, side, _mm256_or_si256(_mm256_and_si256(a, low), first));
                            let second = _mm256_and_si256(_mm256_slli_epi16::<2>(high), two);
                            store(&mut codes[at(4 * h + 1)], at_word, side, _mm256_or_si256(_mm256_and_si256(b, low), second));
                            let third = _mm256_and_si256(high, two);
                            store(&mut codes[at(4 * h + 2)], at_word, side, _mm256_or_si256(shift::<4>(a, low), third));
                            store(&mut codes[at(4 * h + 3)], at_word, side, _mm256_or_si256(shift::<4>(b, low), shift::<2>(high, two)));
                        }
                    }
                }
            }
        };
        q2_k: BlockQ2_K, |w, rows, codes, s, m| {
            let n = w.len() / PANEL;
            for i in 0..n {
                let at = |j: usize| place(8 * i + j, 8 * n, LANES);
                let (mut scales, mut minima) = ([[0f32; 16]; PANEL], [[0f32; 16]; PANEL]);
                for r in 0..PANEL {
                    let (block, low) = (&w[r * n + i], _mm_set1_epi8(15));
                    let both = load16(&block.scales);
                    times(&mut scales[r], block.d, _mm_and_si128(both, low));
                    times(&mut minima[r], block.dmin, _mm_and_si128(_mm_srli_epi16::<4>(both), low));
                }
                for first in [0, 4, 8, 12] {
                    spread(&scales, first, s, |j| 2 * at(j / 2) + j % 2);
                    spread(&minima, first, m, |j| 2 * at(j / 2) + j % 2);
                }
                for part in 0..4 {
                    ahead(w, rows, 8 * i + 2 * part);
                    let columns = words(|r| load16(&w[r * n + i].qs[16 * part..]));
                    ahead(w, rows, 8 * i + 2 * part + 1);
                    for c in 0..4 {
                        for side in 0..2 {
                            let pairs = pairs(columns[c][side]);
                            for p in 0..4 {
                                store(&mut codes[at(4 * (part / 2) + p)], 4 * (part % 2) + c, side, pairs[p]);
                            }
                        }
                    }
                }
            }
        };
        q3_k: BlockQ3_K, |w, rows, codes, s, m| {
            let (n, third) = (w.len() / PANEL, _mm256_set1_epi8(4));
            for i in 0..n {
                let at = |j: usize| place(8 * i + j, 8 * n, LANES);
                let mut scales = [[0f32; 16]; PANEL];
                for r in 0..PANEL {
                    let block = &w[r * n + i];
                    times(&mut scales[r], block.d, q3_k_scales(&block.scales));
                }
                for first in [0, 4, 8, 12] {
                    spread(&scales, first, s, |j| 2 * at(j / 2) + j % 2);
                }
                for part in 0..4 {
                    let (h, half) = (part / 2, part % 2);
                    ahead(w, rows, 8 * i + 2 * part);
                    let columns = words(|r| load16(&w[r * n + i].qs[16 * part..]));
                    ahead(w, rows, 8 * i + 2 * part + 1);
                    let bits = words(|r| load16(&w[r * n + i].hmask[16 * half..]));
                    for c in 0..4 {
                        for side in 0..2 {
                            let pairs = pairs(columns[c][side]);
                            // Bits 4·h.. of each byte at the place of a third bit, one after another.
                            let mut bit = bits[c][side];
                            bit = if h == 0 { _mm256_slli_epi16::<2>(bit) } else { _mm256_srli_epi16::<2>(bit) };
                            for p in 0..4 {
                                let code = _mm256_or_si256(pairs[p], _mm256_and_si256(bit, third));
                                store(&mut codes[at(4 * h + p)], 4 * half + c, side, code);
                                bit = _mm256_srli_epi16::<1>(bit);
                            }
                        }
                    }
                }
            }
        };
    }

    /// A block of 32 codes of 16 rows from their nibbles, and from their fifth bits if they have them.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn nibbles<'a>(codes: &mut [u8; PANEL_BLOCK], qs: impl Fn(usize) -> &'a [u8; 16], qh: impl Fn(usize) -> Option<[u8; 4]>) {
        let low = _mm256_set1_epi8(15);
        let columns = words(|r| load16(qs(r)));
        let bits: [[u8; 4]; PANEL] = std::array::from_fn(|r| qh(r).unwrap_or_default());
        for side in 0..2 {
            let words = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load16(&bits[8 * side..])), load16(&bits[8 * side + 4..]));
            for c in 0..4 {
                let v = columns[c][side];
                let (mut even, mut odd) = (_mm256_and_si256(v, low), shift::<4>(v, low));
                if qh(0).is_some() {
                    even = _mm256_or_si256(even, fifth_bits(words, c));
                    odd = _mm256_or_si256(odd, fifth_bits(words, 4 + c));
                }
                store(codes, c, side, even);
                store(codes, 4 + c, side, odd);
            }
        }
    }

    /// Sixteen where bits 4·c.. of a row's word are set, four codes each.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn fifth_bits(words: __m256i, c: usize) -> __m256i {
        let c = c as i32;
        let of_word = _mm256_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c, 0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
        let bytes = _mm256_shuffle_epi8(words, _mm256_add_epi32(of_word, _mm256_set1_epi32(c / 2 * 0x0101_0101)));
        let mask = _mm256_set1_epi32(0x0804_0201 << (4 * (c % 2)));
        _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, mask), mask), _mm256_set1_epi8(16))
    }

    /// The four codes of two bits of each byte, the lowest first.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn pairs(v: __m256i) -> [__m256i; 4] {
        let two = _mm256_set1_epi8(3);
        [_mm256_and_si256(v, two), shift::<2>(v, two), shift::<4>(v, two), shift::<6>(v, two)]
    }

    /// Small whole numbers times `d`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn times(to: &mut [f32; 16], d: f16, whole: __m128i) {
        let (first, second) = (_mm256_cvtepi8_epi32(whole), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(whole)));
        store_numbers(&mut to[..8], _mm256_mul_ps(wide(d), _mm256_cvtepi32_ps(first)));
        store_numbers(&mut to[8..], _mm256_mul_ps(wide(d), _mm256_cvtepi32_ps(second)));
    }

    /// Scales and minima of 16 rows' blocks of eight sub-blocks.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn k_numbers<'a>(
        of: impl Fn(usize) -> (f16, f16, &'a [u8; 12]),
        s: &mut [[f32; PANEL]],
        m: &mut [[f32; PANEL]],
        at: impl Fn(usize) -> usize,
    ) {
        let (mut scales, mut minima) = ([[0f32; 8]; PANEL], [[0f32; 8]; PANEL]);
        for r in 0..PANEL {
            let (d, dmin, packed) = of(r);
            let (scale, min) = k_scales(packed);
            store_numbers(&mut scales[r], _mm256_mul_ps(wide(d), scale));
            store_numbers(&mut minima[r], _mm256_mul_ps(wide(dmin), min));
        }
        for first in [0, 4] {
            spread(&scales, first, s, &at);
            spread(&minima, first, m, &at);
        }
    }
}
