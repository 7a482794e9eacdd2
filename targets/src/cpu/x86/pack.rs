//! Weight rows into panels straight from their blocks: AVX-512. Siblings of `portable/gemm.rs`'s `pack`, with equal
//! results, for the formats that models are mostly kept in; the others take their blocks apart row by row.
//!
//! Sixteen rows are transposed first, as the file has them, and taken apart then: a vector holds the same four bytes of
//! each row, so that nothing moves between lanes.

use std::arch::x86_64::*;

use sphinx_quant::block::{BlockQ4_K, BlockQ6_K, BlockQ8_0};

use super::dot::avx2::{k_scales, wide};
use super::gemm::ahead;
use super::gemm::avx512::{transpose, words as words_of_half};
use crate::cpu::portable::dot::LANES;
use crate::cpu::portable::gemm::{PANEL, PANEL_BLOCK, pack_with, place};

/// 16 bytes from the start of `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn load16<T>(x: &[T]) -> __m128i {
    assert!(size_of_val(x) >= 16);
    // SAFETY: the slice holds the 16 bytes read here, as asserted; `loadu` asks for no alignment.
    unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
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

/// Words of 16 rows of 32 bytes: vector `i` has word `i` of each, `part(row, half)` being 16 bytes of a row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn words(part: impl Fn(usize, usize) -> __m128i) -> [__m512i; 8] {
    let mut all = [_mm512_setzero_si512(); 8];
    for half in 0..2 {
        for (i, column) in words_of_half(|row| part(row, half)).into_iter().enumerate() {
            all[4 * half + i] = column;
        }
    }
    all
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
    for i in 0..per_row {
        let at = |j: usize| place(8 * i + j, 8 * per_row, LANES);
        let (mut scales, mut minima) = ([[0f32; 8]; PANEL], [[0f32; 8]; PANEL]);
        for r in 0..PANEL {
            let block = &w[r * per_row + i];
            let (scale, min) = k_scales(&block.scales);
            // SAFETY: both arrays hold the 8 numbers written here; `storeu` asks for no alignment.
            unsafe {
                _mm256_storeu_ps(scales[r].as_mut_ptr(), _mm256_mul_ps(wide(block.d), scale));
                _mm256_storeu_ps(minima[r].as_mut_ptr(), _mm256_mul_ps(wide(block.dmin), min));
            }
        }
        let scales = words(|r, half| load16(&scales[r][4 * half..]));
        let minima = words(|r, half| load16(&minima[r][4 * half..]));
        for j in 0..8 {
            store_numbers(&mut s[at(j)], _mm512_castsi512_ps(scales[j]));
            store_numbers(&mut m[at(j)], _mm512_castsi512_ps(minima[j]));
        }
        for p in 0..4 {
            ahead(w, rows, 8 * i + 2 * p);
            let columns = words(|r, half| load16(&w[r * per_row + i].qs[32 * p + 16 * half..]));
            ahead(w, rows, 8 * i + 2 * p + 1);
            for (c, v) in columns.into_iter().enumerate() {
                store(&mut codes[at(2 * p)], c, _mm512_and_si512(v, low));
                store(&mut codes[at(2 * p + 1)], c, _mm512_and_si512(_mm512_srli_epi16::<4>(v), low));
            }
        }
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
    for i in 0..per_row {
        let at = |j: usize| place(8 * i + j, 8 * per_row, LANES);
        let mut scales = [[0f32; 16]; PANEL];
        for r in 0..PANEL {
            let block = &w[r * per_row + i];
            let d = _mm512_broadcast_f32x8(wide(block.d));
            store_numbers(&mut scales[r], _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(&block.scales)))));
        }
        for first in [0, 8] {
            let scales = words(|r, half| load16(&scales[r][first + 4 * half..]));
            for j in 0..8 {
                let (j, group) = ((first + j) / 2, j % 2);
                store_numbers(&mut s[2 * at(j) + group], _mm512_castsi512_ps(scales[2 * j + group - first]));
            }
        }
        for h in 0..2 {
            let a = words(|r, half| load16(&w[r * per_row + i].ql[64 * h + 16 * half..]));
            let b = words(|r, half| load16(&w[r * per_row + i].ql[64 * h + 32 + 16 * half..]));
            let high = words(|r, half| load16(&w[r * per_row + i].qh[32 * h + 16 * half..]));
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
    for i in 0..per_row {
        ahead(w, rows, i);
        let at = place(i, per_row, LANES);
        let d: [u16; PANEL] = std::array::from_fn(|r| w[r * per_row + i].d.to_bits());
        // SAFETY: the array holds the 32 bytes read here; `loadu` asks for no alignment.
        let d = unsafe { _mm256_loadu_si256(d.as_ptr().cast()) };
        store_numbers(&mut s[at], _mm512_cvtph_ps(d));
        let columns = words(|r, half| load16(&w[r * per_row + i].qs[16 * half..]));
        for (c, v) in columns.into_iter().enumerate() {
            store(&mut codes[at], c, _mm512_xor_si512(v, top));
        }
    }
}
