//! Dot products of one weight row with one activation row: NEON, alone and with the dot products of bytes.
//!
//! Siblings of `portable/dot.rs`: integer sums match it exactly, blocks are added in its order, and products and sums of floats
//! are rounded together.

use std::arch::aarch64::*;

use half::f16;
use sphinx_quant::block::{BlockQ2_K, BlockQ3_K, BlockQ4_0, BlockQ4_1, BlockQ4_K, BlockQ5_0, BlockQ5_1, BlockQ5_K, BlockQ6_K, BlockQ8_0};

use super::{DotProd, Plain, Products};
use crate::cpu::portable::dot::{LANES, Pieces, rest, sum_without};
use crate::cpu::portable::unpack::{Codes, q3_k_scales};
use crate::cpu::q8::{FineRow, Q8Row};
use crate::cpu::simd::vector::neon::{V, fma, load, load_half, mul, splat, splat_half, store, sub};

/// The products of all formats by one way to multiply bytes.
macro_rules! dots {
    ($module:ident, $products:ty: $($name:ident, $fine:ident: $rows:ident, $block:ty;)*) => {
        pub mod $module {
            use super::*;
            $(
                /// See [`crate::cpu::portable::dot`].
                ///
                /// # Safety
                /// The processor has what the module is named after.
                pub unsafe fn $name(w: &[$block], x: Q8Row<'_>, out: &mut [f32]) {
                    let blocks = x.qs.len() / <$block>::LEN;
                    for (i, out) in out.iter_mut().enumerate() {
                        // SAFETY: the caller's promise.
                        *out = unsafe { $rows::<$products, false>(&w[i * blocks..][..blocks], [x, x]) };
                    }
                }

                /// See [`crate::cpu::portable::dot`].
                ///
                /// # Safety
                /// The processor has what the module is named after.
                pub unsafe fn $fine(w: &[$block], x: FineRow<'_>, out: &mut [f32]) {
                    let blocks = x[0].qs.len() / <$block>::LEN;
                    for (i, out) in out.iter_mut().enumerate() {
                        // SAFETY: the caller's promise.
                        *out = unsafe { $rows::<$products, true>(&w[i * blocks..][..blocks], x) };
                    }
                }
            )*
        }
    };
    ($($module:ident: $products:ty;)*) => {$(
        dots! {
            $module, $products:
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
    )*};
}
dots! {
    neon: Plain;
    dotprod: DotProd;
}

/// Eight integers.
type Eight = [int32x4_t; 2];

/// 16 bytes from `at` on.
#[inline(always)]
fn bytes<const L: usize>(x: &[u8; L], at: usize) -> uint8x16_t {
    assert!(at + 16 <= L);
    // SAFETY: the 16 bytes are inside the array, as asserted.
    unsafe { vld1q_u8(x.as_ptr().add(at)) }
}

/// 16 codes with signs from `at` on.
#[inline(always)]
fn signed<const L: usize>(x: &[i8; L], at: usize) -> int8x16_t {
    assert!(at + 16 <= L);
    // SAFETY: the 16 bytes are inside the array, as asserted.
    unsafe { vld1q_s8(x.as_ptr().add(at)) }
}

/// Low nibbles, and high ones.
#[inline(always)]
fn nibbles(q: uint8x16_t) -> [uint8x16_t; 2] {
    // SAFETY: NEON.
    unsafe { [vandq_u8(q, vdupq_n_u8(15)), vshrq_n_u8::<4>(q)] }
}

/// Codes of at most 127.
#[inline(always)]
fn codes(q: uint8x16_t) -> int8x16_t {
    // SAFETY: NEON.
    unsafe { vreinterpretq_s8_u8(q) }
}

/// Adds the products of one or two times 16 codes with the activations from `AT` on to four sums, which begin at zero.
///
/// # Safety
/// The processor has the instructions of `P`.
#[inline(always)]
unsafe fn products<P: Products, const FINE: bool, const N: usize, const AT: usize>(q: [int8x16_t; N], x: [&[i8; 256]; 2]) -> int32x4_t {
    const { assert!(N <= 2 && AT + 16 * N <= 256) };
    // SAFETY: the places are inside the arrays, as asserted, and the caller's promise.
    unsafe {
        let add = |sums, x: &[i8; 256]| {
            let sums = P::add(sums, q[0], vld1q_s8(x.as_ptr().add(AT)));
            if N == 2 { P::add(sums, q[1], vld1q_s8(x.as_ptr().add(AT + 16))) } else { sums }
        };
        let sums = add(vdupq_n_s32(0), x[0]);
        if FINE { add(vshlq_n_s32::<8>(sums), x[1]) } else { sums }
    }
}

/// The sums of the fours of four vectors.
#[inline(always)]
fn four(a: int32x4_t, b: int32x4_t, c: int32x4_t, d: int32x4_t) -> int32x4_t {
    // SAFETY: NEON.
    unsafe { vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)) }
}

/// Of eight blocks of 32 codes, the products of each, added up; `q` has those of a pair of blocks.
///
/// # Safety
/// As [`products`].
#[inline(always)]
unsafe fn blocks<P: Products, const FINE: bool>(q: impl Fn(usize) -> [[int8x16_t; 2]; 2], x: [&[i8; 256]; 2]) -> Eight {
    // Written out: as a loop, its sums would go through memory.
    // SAFETY: the caller's promise.
    unsafe {
        let [a, b] = q(0);
        let (a, b) = (products::<P, FINE, 2, 0>(a, x), products::<P, FINE, 2, 32>(b, x));
        let [c, d] = q(1);
        let (c, d) = (products::<P, FINE, 2, 64>(c, x), products::<P, FINE, 2, 96>(d, x));
        let low = four(a, b, c, d);
        let [a, b] = q(2);
        let (a, b) = (products::<P, FINE, 2, 128>(a, x), products::<P, FINE, 2, 160>(b, x));
        let [c, d] = q(3);
        let (c, d) = (products::<P, FINE, 2, 192>(c, x), products::<P, FINE, 2, 224>(d, x));
        [low, four(a, b, c, d)]
    }
}

/// Of 16 blocks of 16 codes, the products of each, added up: even ones, then odd ones. `q` has the codes of half of them, four
/// pairs.
///
/// # Safety
/// As [`products`].
#[inline(always)]
unsafe fn halves<P: Products, const FINE: bool>(q: impl Fn(usize) -> [[int8x16_t; 2]; 4], x: [&[i8; 256]; 2]) -> [Eight; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let [a, b, c, d] = q(0);
        let even = four(
            products::<P, FINE, 1, 0>([a[0]], x),
            products::<P, FINE, 1, 32>([b[0]], x),
            products::<P, FINE, 1, 64>([c[0]], x),
            products::<P, FINE, 1, 96>([d[0]], x),
        );
        let odd = four(
            products::<P, FINE, 1, 16>([a[1]], x),
            products::<P, FINE, 1, 48>([b[1]], x),
            products::<P, FINE, 1, 80>([c[1]], x),
            products::<P, FINE, 1, 112>([d[1]], x),
        );
        let [a, b, c, d] = q(1);
        let even_too = four(
            products::<P, FINE, 1, 128>([a[0]], x),
            products::<P, FINE, 1, 160>([b[0]], x),
            products::<P, FINE, 1, 192>([c[0]], x),
            products::<P, FINE, 1, 224>([d[0]], x),
        );
        let odd_too = four(
            products::<P, FINE, 1, 144>([a[1]], x),
            products::<P, FINE, 1, 176>([b[1]], x),
            products::<P, FINE, 1, 208>([c[1]], x),
            products::<P, FINE, 1, 240>([d[1]], x),
        );
        [[even, even_too], [odd, odd_too]]
    }
}

/// As numbers.
#[inline(always)]
fn numbers(v: Eight) -> V {
    // SAFETY: NEON.
    unsafe { float32x4x2_t(vcvtq_f32_s32(v[0]), vcvtq_f32_s32(v[1])) }
}

/// `a − n · b`.
#[inline(always)]
fn less(a: Eight, n: i32, b: Eight) -> Eight {
    // SAFETY: NEON.
    std::array::from_fn(|i| unsafe { vmlsq_n_s32(a[i], b[i], n) })
}

/// `256 · a + b`.
#[inline(always)]
fn fine(a: Eight, b: Eight) -> Eight {
    // SAFETY: NEON.
    std::array::from_fn(|i| unsafe { vaddq_s32(vshlq_n_s32::<8>(a[i]), b[i]) })
}

/// Sums of the activations of eight blocks.
#[inline(always)]
fn block_sums<const FINE: bool>(x: [&[i16; 16]; 2]) -> Eight {
    // SAFETY: NEON; the arrays hold the 16 numbers read here.
    let sums = |x: &[i16; 16]| unsafe { [vpaddlq_s16(vld1q_s16(x.as_ptr())), vpaddlq_s16(vld1q_s16(x.as_ptr().add(8)))] };
    if FINE { fine(sums(x[0]), sums(x[1])) } else { sums(x[0]) }
}

/// Sums of the activations of 16 half blocks: even ones, then odd ones.
#[inline(always)]
fn half_sums<const FINE: bool>(x: [&[i16; 16]; 2]) -> [Eight; 2] {
    // SAFETY: NEON; the arrays hold the 16 numbers read here.
    let sums = |x: &[i16; 16]| unsafe {
        let (a, b) = (vld1q_s16(x.as_ptr()), vld1q_s16(x.as_ptr().add(8)));
        [vuzp1q_s16(a, b), vuzp2q_s16(a, b)].map(|v| [vmovl_s16(vget_low_s16(v)), vmovl_high_s16(v)])
    };
    let [even, odd] = sums(x[0]);
    if !FINE {
        return [even, odd];
    }
    let [low_even, low_odd] = sums(x[1]);
    [fine(even, low_even), fine(odd, low_odd)]
}

/// The lanes.
#[inline(always)]
fn lanes(v: V) -> [f32; LANES] {
    let mut out = [0f32; LANES];
    // SAFETY: NEON.
    unsafe { store(&mut out, v) };
    out
}

/// Scales of eight blocks.
#[inline(always)]
fn scales(d: [f16; 8]) -> V {
    // SAFETY: NEON.
    unsafe { load_half(&d.map(f16::to_bits)) }
}

/// Eight small integers as numbers.
#[inline(always)]
fn eight_bytes(v: int8x8_t) -> V {
    // SAFETY: NEON.
    unsafe {
        let v = vmovl_s8(v);
        numbers([vmovl_s16(vget_low_s16(v)), vmovl_high_s16(v)])
    }
}

/// 16 scales times `d`: even ones, then odd ones.
#[inline(always)]
fn sixteen_scales(d: f16, s: int8x16_t) -> [V; 2] {
    // SAFETY: NEON.
    unsafe {
        let d = splat_half(d.to_bits());
        let (even, odd) = (vget_low_s8(vuzp1q_s8(s, s)), vget_low_s8(vuzp2q_s8(s, s)));
        [mul(d, eight_bytes(even)), mul(d, eight_bytes(odd))]
    }
}

/// The formats with blocks of 32: `$codes` makes a block's codes, `$offset` is what is taken off them, and `$min` says whether
/// blocks have a minimum `m`.
macro_rules! short_blocks {
    ($($rows:ident: $block:ty, |$b:ident| $codes:expr, offset $offset:literal $(, min $m:ident)?;)*) => {$(
        /// # Safety
        /// As [`products`].
        #[inline(always)]
        #[allow(unused_mut)] // for formats without minima
        unsafe fn $rows<P: Products, const FINE: bool>(w: &[$block], x: FineRow<'_>) -> f32 {
            let (chunks, _) = w.as_chunks::<8>();
            let pieces = Pieces::of(x, chunks.len());
            // SAFETY: NEON, and the caller's promise.
            unsafe {
                let (mut acc, mut min) = (splat(0.0), splat(0.0));
                for (i, w) in chunks.iter().enumerate() {
                    let (qs, d, x_sums) = pieces.at(i);
                    let q = |$b: &$block| $codes;
                    let dots = blocks::<P, FINE>(|p| [q(&w[2 * p]), q(&w[2 * p + 1])], qs);
                    let dots = if $offset == 0 { dots } else { less(dots, $offset, block_sums::<FINE>(x_sums)) };
                    let d = load(d);
                    acc = fma(mul(numbers(dots), scales(w.each_ref().map(|w| w.d))), d, acc);
                    // What is stored is added, and what a minimum takes off is the opposite.
                    $(
                        let sums = mul(d, numbers(block_sums::<FINE>(x_sums)));
                        min = fma(sub(splat(0.0), scales(w.each_ref().map(|w| w.$m))), sums, min);
                    )?
                }
                let (mut acc, mut min) = (lanes(acc), lanes(min));
                rest::<$block, true, FINE>(w, x, chunks.len() * 8, &mut acc, &mut min);
                sum_without(&acc, &min)
            }
        }
    )*};
}
short_blocks! {
    q4_0_rows: BlockQ4_0, |b| nibbles(bytes(&b.qs, 0)).map(codes), offset 8;
    q4_1_rows: BlockQ4_1, |b| nibbles(bytes(&b.qs, 0)).map(codes), offset 0, min m;
    q5_0_rows: BlockQ5_0, |b| five_bits(&b.qs, b.qh), offset 16;
    q5_1_rows: BlockQ5_1, |b| five_bits(&b.qs, b.qh), offset 0, min m;
    q8_0_rows: BlockQ8_0, |b| [signed(&b.qs, 0), signed(&b.qs, 16)], offset 0;
}

/// Nibbles, with a fifth bit per code.
#[inline(always)]
fn five_bits(qs: &[u8; 16], top: [u8; 4]) -> [int8x16_t; 2] {
    // SAFETY: NEON.
    unsafe {
        let alone = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
        let twice = |a: u8, b: u8| vcombine_u8(vdup_n_u8(a), vdup_n_u8(b));
        let sixteens = |bits| vandq_u8(vtstq_u8(bits, alone), vdupq_n_u8(16));
        let [low, high] = nibbles(bytes(qs, 0));
        [codes(vorrq_u8(low, sixteens(twice(top[0], top[1])))), codes(vorrq_u8(high, sixteens(twice(top[2], top[3]))))]
    }
}

/// The float part of a `Q4_K` or `Q5_K` block: new sums and what minima take off.
#[inline(always)]
fn k_block(d: f16, dmin: f16, packed: &[u8; 12], dots: Eight, x_d: &[f32; 8], x_sums: Eight, acc: V, min: V) -> (V, V) {
    let word = |i: usize| u32::from_le_bytes([packed[4 * i], packed[4 * i + 1], packed[4 * i + 2], packed[4 * i + 3]]);
    let (a, b, c) = (word(0), word(1), word(2));
    let join = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let s = join(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | (a >> 2) & 0x3030_3030);
    let m = join(b & 0x3f3f_3f3f, (c >> 4) & 0x0f0f_0f0f | (b >> 2) & 0x3030_3030);
    // SAFETY: NEON.
    unsafe {
        let times = |d: f16, eight: u64| mul(splat_half(d.to_bits()), eight_bytes(vcreate_s8(eight)));
        let x_d = load(x_d);
        let acc = fma(mul(numbers(dots), times(d, s)), x_d, acc);
        (acc, fma(times(dmin, m), mul(x_d, numbers(x_sums)), min))
    }
}

/// Σ over sub-blocks of `x.d · (d · s · Σ w.q · x.q − dmin · m · Σ x.q)`.
///
/// # Safety
/// As [`products`].
#[inline(always)]
unsafe fn q4_k_rows<P: Products, const FINE: bool>(w: &[BlockQ4_K], x: FineRow<'_>) -> f32 {
    let pieces = Pieces::of(x, w.len());
    // SAFETY: NEON, and the caller's promise.
    unsafe {
        let (mut acc, mut min) = (splat(0.0), splat(0.0));
        for (i, w) in w.iter().enumerate() {
            let (qs, d, x_sums) = pieces.at(i);
            let pair = |p: usize| {
                let ([a, c], [b, e]) = (nibbles(bytes(&w.qs, 32 * p)), nibbles(bytes(&w.qs, 32 * p + 16)));
                [[codes(a), codes(b)], [codes(c), codes(e)]]
            };
            let dots = blocks::<P, FINE>(pair, qs);
            (acc, min) = k_block(w.d, w.dmin, &w.scales, dots, d, block_sums::<FINE>(x_sums), acc, min);
        }
        sum_without(&lanes(acc), &lanes(min))
    }
}

/// As [`q4_k_rows`], with a fifth bit per code.
///
/// # Safety
/// As [`products`].
#[inline(always)]
unsafe fn q5_k_rows<P: Products, const FINE: bool>(w: &[BlockQ5_K], x: FineRow<'_>) -> f32 {
    let pieces = Pieces::of(x, w.len());
    // SAFETY: NEON, and the caller's promise.
    unsafe {
        let (mut acc, mut min) = (splat(0.0), splat(0.0));
        for (i, w) in w.iter().enumerate() {
            let (qs, d, x_sums) = pieces.at(i);
            let top = [bytes(&w.qh, 0), bytes(&w.qh, 16)];
            let pair = |p: usize| {
                let ([a, c], [b, e]) = (nibbles(bytes(&w.qs, 32 * p)), nibbles(bytes(&w.qs, 32 * p + 16)));
                // Bit 2·p, then bit 2·p + 1, to the fifth place.
                let fifth = |q, half: usize, bit: usize| {
                    let moved = vshlq_u8(top[half], vdupq_n_s8(4 - bit as i8));
                    codes(vorrq_u8(q, vandq_u8(moved, vdupq_n_u8(16))))
                };
                [[fifth(a, 0, 2 * p), fifth(b, 1, 2 * p)], [fifth(c, 0, 2 * p + 1), fifth(e, 1, 2 * p + 1)]]
            };
            let dots = blocks::<P, FINE>(pair, qs);
            (acc, min) = k_block(w.d, w.dmin, &w.scales, dots, d, block_sums::<FINE>(x_sums), acc, min);
        }
        sum_without(&lanes(acc), &lanes(min))
    }
}

/// Σ over sub-blocks of 16 of `x.d · d · s · Σ (w.q − 32) · x.q`.
///
/// # Safety
/// As [`products`].
#[inline(always)]
unsafe fn q6_k_rows<P: Products, const FINE: bool>(w: &[BlockQ6_K], x: FineRow<'_>) -> f32 {
    let pieces = Pieces::of(x, w.len());
    // SAFETY: NEON, and the caller's promise.
    unsafe {
        let two = vdupq_n_u8(0x30);
        let mut acc = splat(0.0);
        for (i, w) in w.iter().enumerate() {
            let (qs, d, x_sums) = pieces.at(i);
            let half = |h: usize| {
                let part = |i: usize| {
                    let top = bytes(&w.qh, 32 * h + 16 * i);
                    let (a, b) = (nibbles(bytes(&w.ql, 64 * h + 16 * i)), nibbles(bytes(&w.ql, 64 * h + 32 + 16 * i)));
                    let with = |q, top| codes(vorrq_u8(q, vandq_u8(top, two)));
                    [with(a[0], vshlq_n_u8::<4>(top)), with(b[0], vshlq_n_u8::<2>(top)), with(a[1], top), with(b[1], vshrq_n_u8::<2>(top))]
                };
                let (first, second) = (part(0), part(1));
                std::array::from_fn(|j| [first[j], second[j]])
            };
            let [even, odd] = halves::<P, FINE>(half, qs);
            let [x_even, x_odd] = half_sums::<FINE>(x_sums);
            let s = sixteen_scales(w.d, signed(&w.scales, 0));
            let block = mul(numbers(less(even, 32, x_even)), s[0]);
            acc = fma(fma(numbers(less(odd, 32, x_odd)), s[1], block), load(d), acc);
        }
        sum_without(&lanes(acc), &[0.0; LANES])
    }
}

/// Two-bit codes `128·h..128·h + 128` of a `Q2_K` or `Q3_K` block.
#[inline(always)]
fn two_bits(qs: &[u8; 64], h: usize) -> [[uint8x16_t; 2]; 4] {
    // SAFETY: NEON.
    unsafe {
        let q = [bytes(qs, 32 * h), bytes(qs, 32 * h + 16)];
        let two = vdupq_n_u8(3);
        [
            q.map(|q| vandq_u8(q, two)),
            q.map(|q| vandq_u8(vshrq_n_u8::<2>(q), two)),
            q.map(|q| vandq_u8(vshrq_n_u8::<4>(q), two)),
            q.map(|q| vshrq_n_u8::<6>(q)),
        ]
    }
}

/// Σ over sub-blocks of 16 of `x.d · (d · s · Σ w.q · x.q − dmin · m · Σ x.q)`.
///
/// # Safety
/// As [`products`].
#[inline(always)]
unsafe fn q2_k_rows<P: Products, const FINE: bool>(w: &[BlockQ2_K], x: FineRow<'_>) -> f32 {
    let pieces = Pieces::of(x, w.len());
    // SAFETY: NEON, and the caller's promise.
    unsafe {
        let (mut acc, mut min) = (splat(0.0), splat(0.0));
        for (i, w) in w.iter().enumerate() {
            let (qs, d, x_sums) = pieces.at(i);
            let [even, odd] = halves::<P, FINE>(|h| two_bits(&w.qs, h).map(|pair| pair.map(codes)), qs);
            let [x_even, x_odd] = half_sums::<FINE>(x_sums);
            let [s, m] = nibbles(bytes(&w.scales, 0));
            let (s, m) = (sixteen_scales(w.d, codes(s)), sixteen_scales(w.dmin, codes(m)));
            let block = fma(numbers(odd), s[1], mul(numbers(even), s[0]));
            let d = load(d);
            acc = fma(block, d, acc);
            min = fma(m[0], mul(d, numbers(x_even)), min);
            min = fma(m[1], mul(d, numbers(x_odd)), min);
        }
        sum_without(&lanes(acc), &lanes(min))
    }
}

/// Σ over sub-blocks of 16 of `x.d · d · s · Σ (w.q − 4) · x.q`.
///
/// # Safety
/// As [`products`].
#[inline(always)]
unsafe fn q3_k_rows<P: Products, const FINE: bool>(w: &[BlockQ3_K], x: FineRow<'_>) -> f32 {
    let pieces = Pieces::of(x, w.len());
    // SAFETY: NEON, and the caller's promise.
    unsafe {
        let mut acc = splat(0.0);
        for (i, w) in w.iter().enumerate() {
            let (qs, d, x_sums) = pieces.at(i);
            let top = [bytes(&w.hmask, 0), bytes(&w.hmask, 16)];
            let half = |h: usize| {
                let two = two_bits(&w.qs, h);
                std::array::from_fn(|j| {
                    // Bit 4·h + j to the third place.
                    let third = |i: usize| {
                        let moved = vshlq_u8(top[i], vdupq_n_s8(2 - (4 * h + j) as i8));
                        codes(vorrq_u8(two[j][i], vandq_u8(moved, vdupq_n_u8(4))))
                    };
                    [third(0), third(1)]
                })
            };
            let [even, odd] = halves::<P, FINE>(half, qs);
            let [x_even, x_odd] = half_sums::<FINE>(x_sums);
            let s = sixteen_scales(w.d, signed(&q3_k_scales(&w.scales), 0));
            let block = mul(numbers(less(even, 4, x_even)), s[0]);
            acc = fma(fma(numbers(less(odd, 4, x_odd)), s[1], block), load(d), acc);
        }
        sum_without(&lanes(acc), &[0.0; LANES])
    }
}
