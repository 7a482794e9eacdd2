//! Weight rows into panels straight from their blocks: AVX-512. Siblings of `portable/gemm.rs`'s `pack`, with equal
//! results, for the formats that models are mostly kept in; the others take their blocks apart row by row.
//!
//! Sixteen rows are transposed first, as the file has them, and taken apart then: a vector holds the same four bytes of
//! each row, so that nothing moves between lanes.

use std::arch::x86_64::*;
use std::mem::offset_of;

use sphinx_quant::block::{BlockQ4_0, BlockQ4_K, BlockQ6_K, BlockQ8_0};

use super::gemm::ahead;
use super::gemm::avx512::{transpose, words};
use super::opaque;
use crate::cpu::portable::dot::LANES;
use crate::cpu::portable::gemm::{PANEL, PANEL_BLOCK, pack_with, place};

/// One block of each of sixteen rows that follow at equal distances.
///
/// Four of the rows are pointed to, so that all sixteen are within reach of an addressing mode.
#[derive(Clone, Copy)]
struct Sixteen {
    fours: [*const u8; 4],
    stride: usize,
}

impl Sixteen {
    /// The first block of each of sixteen rows of `per_row` blocks.
    fn of<B>(w: &[B], per_row: usize) -> Sixteen {
        assert!(per_row > 0 && w.len() == PANEL * per_row);
        let (start, stride) = (w.as_ptr().cast::<u8>(), per_row * size_of::<B>());
        Sixteen { fours: std::array::from_fn(|q| start.wrapping_add(4 * q * stride)), stride }
    }

    /// The blocks behind these, of the same rows.
    fn next<B>(self) -> Sixteen {
        Sixteen { fours: self.fours.map(|p| p.wrapping_add(size_of::<B>())), ..self }
    }

    /// Four words at `offset` of each block, vector `i` having the `i`-th of each.
    ///
    /// # Safety
    /// The 16 bytes lie inside the blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn words(self, offset: usize) -> [__m512i; 4] {
        // SAFETY: the rows are in memory, and the caller promises the bytes of each; `loadu` asks for no alignment.
        words(|r| unsafe { _mm_loadu_si128(self.fours[r / 4].add(r % 4 * self.stride + offset).cast()) })
    }

    /// Eight words at `offset` of each block.
    ///
    /// # Safety
    /// The 32 bytes lie inside the blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn eight_words(self, offset: usize) -> [__m512i; 8] {
        // SAFETY: as promised by the caller.
        let (low, high) = unsafe { (self.words(offset), self.words(offset + 16)) };
        std::array::from_fn(|i| if i < 4 { low[i] } else { high[i - 4] })
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
                let half = unsafe { self.fours[q].add(i * self.stride + offset).cast::<u16>().read_unaligned() };
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
            ahead(w, rows, 8 * i + 2 * p);
            // SAFETY: a block has 128 bytes of codes.
            let columns = unsafe { blocks.eight_words(offset_of!(BlockQ4_K, qs) + 32 * p) };
            ahead(w, rows, 8 * i + 2 * p + 1);
            for (c, v) in columns.into_iter().enumerate() {
                store(&mut codes[at(2 * p)], c, _mm512_and_si512(v, low));
                store(&mut codes[at(2 * p + 1)], c, _mm512_and_si512(_mm512_srli_epi16::<4>(v), low));
            }
        }
        blocks = blocks.next::<BlockQ4_K>();
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
                if c % 2 == 0 {
                    ahead(w, rows, 8 * i + 4 * h + c / 2);
                }
                let join = |nibbles: __m512i, high: __m512i| _mm512_or_si512(_mm512_and_si512(nibbles, low), _mm512_and_si512(high, two));
                store(&mut codes[at(4 * h)], c, join(a[c], _mm512_slli_epi16::<4>(high[c])));
                store(&mut codes[at(4 * h + 1)], c, join(b[c], _mm512_slli_epi16::<2>(high[c])));
                store(&mut codes[at(4 * h + 2)], c, join(_mm512_srli_epi16::<4>(a[c]), high[c]));
                store(&mut codes[at(4 * h + 3)], c, join(_mm512_srli_epi16::<4>(b[c]), _mm512_srli_epi16::<2>(high[c])));
            }
        }
        blocks = blocks.next::<BlockQ6_K>();
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
        ahead(w, rows, i);
        let at = place(i, per_row, LANES);
        // SAFETY: a block has these two bytes and 16 of codes.
        let (d, columns) = unsafe { (blocks.halves(offset_of!(BlockQ4_0, d)), blocks.words(offset_of!(BlockQ4_0, qs))) };
        store_numbers(&mut s[at], d);
        for (c, v) in columns.into_iter().enumerate() {
            store(&mut codes[at], c, _mm512_and_si512(v, low));
            store(&mut codes[at], 4 + c, _mm512_and_si512(_mm512_srli_epi16::<4>(v), low));
        }
        blocks = blocks.next::<BlockQ4_0>();
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
        ahead(w, rows, i);
        let at = place(i, per_row, LANES);
        // SAFETY: a block has these two bytes and 32 codes.
        let (d, columns) = unsafe { (blocks.halves(offset_of!(BlockQ8_0, d)), blocks.eight_words(offset_of!(BlockQ8_0, qs))) };
        store_numbers(&mut s[at], d);
        for (c, v) in columns.into_iter().enumerate() {
            store(&mut codes[at], c, _mm512_xor_si512(v, top));
        }
        blocks = blocks.next::<BlockQ8_0>();
    }
}
