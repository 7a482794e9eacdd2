//! Dot products of one weight row with one activation row.
//!
//! The order of addition is part of the specification, because a row must come out the same whether it is computed
//! alone or in a batch (where the kernel of `gemm` adds in this order too).
//!
//! Quantised rows: the sum over an activation block of 32 is an integer times scales; block `b` is added to lane
//! `b mod 8`. Formats with minima add up what these take off, `m · (d · Σ x)`, in eight lanes of their own, which are
//! taken off the others at the end. Then the eight lanes are added one after another. Float rows: element `i` is added to lane `i mod 32`,
//! and the lanes are added one after another.
//!
//! Activations in 16 bits come as two rows of 8, see [`FineRow`]. The products of both are added up as integers, so
//! that all the rest is as it is for 8 bits.

use half::{bf16, f16};
use sphinx_quant::block::{BlockQ2_K, BlockQ3_K, BlockQ4_0, BlockQ4_1, BlockQ4_K, BlockQ5_0, BlockQ5_1, BlockQ5_K, BlockQ6_K, BlockQ8_0};

use super::unpack::{Codes, half};
use crate::cpu::q8::{FineRow, Q8Row};

/// Lanes that blocks are dealt to.
pub const LANES: usize = 8;
/// Lanes that the elements of float rows are dealt to.
pub const FLOAT_LANES: usize = 32;

/// `Σ w[i] · x[i]`.
pub fn f32(w: &[f32], x: &[f32]) -> f32 {
    float(w, x, |w| w)
}

/// `Σ w[i] · x[i]`, products in f32.
pub fn f16(w: &[f16], x: &[f32]) -> f32 {
    float(w, x, |w| half(w.to_bits()))
}

/// `Σ w[i] · x[i]`, products in f32.
pub fn bf16(w: &[bf16], x: &[f32]) -> f32 {
    float(w, x, |w| f32::from_bits(u32::from(w.to_bits()) << 16))
}

#[inline(always)]
fn float<T: Copy>(w: &[T], x: &[f32], wide: impl Fn(T) -> f32) -> f32 {
    let mut lanes = [0f32; FLOAT_LANES];
    let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<FLOAT_LANES>(), x.as_chunks::<FLOAT_LANES>());
    for (w, x) in w.iter().zip(x) {
        for i in 0..FLOAT_LANES {
            lanes[i] += wide(w[i]) * x[i];
        }
    }
    for (lane, (&w, &x)) in lanes.iter_mut().zip(w_rest.iter().zip(x_rest)) {
        *lane += wide(w) * x;
    }
    sum(&lanes)
}

/// One function per quantised format.
macro_rules! dots {
    ($($name:ident, $fine:ident: $block:ty;)*) => {$(
        /// Weight rows, as many as there are results, each with an activation row of equally many elements.
        pub fn $name(w: &[$block], x: Q8Row<'_>, out: &mut [f32]) {
            rows::<$block, false>(w, [x, x], out);
        }

        /// The same with activations in 16 bits.
        pub fn $fine(w: &[$block], x: FineRow<'_>, out: &mut [f32]) {
            rows::<$block, true>(w, x, out);
        }
    )*};
}
dots! {
    q4_0, fine_q4_0: BlockQ4_0;
    q4_1, fine_q4_1: BlockQ4_1;
    q5_0, fine_q5_0: BlockQ5_0;
    q5_1, fine_q5_1: BlockQ5_1;
    q8_0, fine_q8_0: BlockQ8_0;
    q2_k, fine_q2_k: BlockQ2_K;
    q3_k, fine_q3_k: BlockQ3_K;
    q4_k, fine_q4_k: BlockQ4_K;
    q5_k, fine_q5_k: BlockQ5_K;
    q6_k, fine_q6_k: BlockQ6_K;
}

#[inline(always)]
fn rows<B: Codes, const FINE: bool>(w: &[B], x: FineRow<'_>, out: &mut [f32]) {
    let blocks = x[0].qs.len() / B::LEN;
    for (i, out) in out.iter_mut().enumerate() {
        *out = row::<B, false, FINE>(&w[i * blocks..][..blocks], x);
    }
}

/// The row's sum; inlined into functions compiled for wider vectors, which is what its loops are shaped for.
///
/// `FUSED`: whether products and sums are rounded together, as siblings do on processors that offer it. `FINE`: whether
/// the activations are in 16 bits; otherwise only the first row of `x` counts, and the second is the same.
#[inline(always)]
pub(in crate::cpu) fn row<B: Codes, const FUSED: bool, const FINE: bool>(w: &[B], x: FineRow<'_>) -> f32 {
    let (mut lanes, mut minima) = ([0f32; LANES], [0f32; LANES]);
    rest::<B, FUSED, FINE>(w, x, 0, &mut lanes, &mut minima);
    sum_without(&lanes, &minima)
}

/// Adds blocks `first..` of a row to the lanes, and what their minima take off to `minima`.
#[inline(always)]
pub(in crate::cpu) fn rest<B: Codes, const FUSED: bool, const FINE: bool>(
    w: &[B],
    x: FineRow<'_>,
    first: usize,
    lanes: &mut [f32; LANES],
    minima: &mut [f32; LANES],
) {
    let (qs, sums) = (x.map(|x| x.qs.as_chunks::<32>().0), x.map(|x| x.sums.as_chunks::<2>().0));
    let (mut q, mut s, mut m) = ([0u8; 256], [0f32; 16], [0f32; 16]);
    let per_block = B::LEN / 32;
    for (i, block) in w.iter().enumerate().skip(first) {
        block.unpack(&mut q[..B::LEN], &mut s, &mut m);
        for j in 0..per_block {
            let b = i * per_block + j;
            let (codes, x_codes, x_low) = (&q[32 * j..32 * j + 32], &qs[0][b], &qs[1][b]);
            let mut x_sums = sums[0][b].map(i32::from);
            if FINE {
                x_sums = std::array::from_fn(|h| 256 * x_sums[h] + i32::from(sums[1][b][h]));
            }
            let mut halves = [0i32; 2];
            for h in 0..2 {
                for k in 16 * h..16 * h + 16 {
                    let x = i32::from(x_codes[k]);
                    halves[h] += i32::from(codes[k]) * if FINE { 256 * x + i32::from(x_low[k]) } else { x };
                }
                halves[h] -= B::OFFSET * x_sums[h];
            }
            let group = j * 32 / B::GROUP;
            let (lane, d) = (b % LANES, x[1].d[b]);
            lanes[lane] = mul_add::<FUSED>(block_sum::<B, FUSED>(halves, &s[group..]), d, lanes[lane]);
            if B::MIN {
                let whole = [x_sums[0] + x_sums[1]];
                let x_sums: &[i32] = if B::GROUP == 32 { &whole } else { &x_sums };
                for (m, x_sum) in m[group..].iter().zip(x_sums) {
                    minima[lane] = mul_add::<FUSED>(*m, d * *x_sum as f32, minima[lane]);
                }
            }
        }
    }
}

/// The sum over one activation block without the activations' scale, from the integer sums of its halves.
#[inline(always)]
fn block_sum<B: Codes, const FUSED: bool>(halves: [i32; 2], s: &[f32]) -> f32 {
    if B::GROUP == 32 { (halves[0] + halves[1]) as f32 * s[0] } else { mul_add::<FUSED>(halves[1] as f32, s[1], halves[0] as f32 * s[0]) }
}

/// `a · b + c`, rounded once or twice.
#[inline(always)]
pub(in crate::cpu) fn mul_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Activations in pieces of eight blocks, codes and sums twice as in [`FineRow`].
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Pieces<'a> {
    qs: [&'a [[i8; 256]]; 2],
    d: &'a [[f32; 8]],
    sums: [&'a [[i16; 16]]; 2],
}

impl<'a> Pieces<'a> {
    /// The first `n` pieces.
    #[inline(always)]
    pub fn of(x: FineRow<'a>, n: usize) -> Pieces<'a> {
        Pieces { qs: x.map(|x| &x.qs.as_chunks().0[..n]), d: &x[1].d.as_chunks().0[..n], sums: x.map(|x| &x.sums.as_chunks().0[..n]) }
    }

    /// Codes, scales and sums of piece `i`.
    #[inline(always)]
    #[allow(clippy::type_complexity)] // arrays of eight blocks
    pub fn at(&self, i: usize) -> ([&'a [i8; 256]; 2], &'a [f32; 8], [&'a [i16; 16]; 2]) {
        ([&self.qs[0][i], &self.qs[1][i]], &self.d[i], [&self.sums[0][i], &self.sums[1][i]])
    }
}

/// The lanes less their minima, added one after another.
#[inline(always)]
pub(in crate::cpu) fn sum_without(lanes: &[f32; LANES], minima: &[f32; LANES]) -> f32 {
    lanes.iter().zip(minima).fold(0.0, |sum, (lane, min)| sum + (lane - min))
}

/// The lanes, added one after another.
#[inline(always)]
pub(in crate::cpu) fn sum(lanes: &[f32]) -> f32 {
    lanes.iter().fold(0.0, |sum, lane| sum + lane)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_add_up() {
        let x: Vec<f32> = (0..77).map(|i| i as f32).collect();
        let w = vec![2.0f32; 77];
        assert_eq!(f32(&w, &x), 77.0 * 76.0);
        let halves: Vec<f16> = w.iter().map(|&v| f16::from_f32(v)).collect();
        assert_eq!(super::f16(&halves, &x), 77.0 * 76.0);
        let brains: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
        assert_eq!(super::bf16(&brains, &x), 77.0 * 76.0);
        assert_eq!(f32(&[], &[]), 0.0);
    }

    #[test]
    fn a_block_by_hand() {
        let mut w = BlockQ4_0 { d: f16::from_f32(0.5), qs: [0x88; 16] }; // all zero
        w.qs[3] = 0x8f; // element 3 is 7
        w.qs[5] = 0x08; // element 21 is −8
        let mut qs = [1i8; 32];
        qs[3] = 10;
        qs[21] = -3;
        let sums = [25i16, 12];
        let x = Q8Row { qs: &qs, d: &[2.0], sums: &sums };
        let mut out = [0.0];
        q4_0(&[w], x, &mut out);
        assert_eq!(out, [0.5 * 2.0 * (7.0 * 10.0 + 8.0 * 3.0)]);
        // In 16 bits: 10 · 256 + 5 at the first place, −3 · 256 − 9 at the second; the second row's scale counts.
        let mut low = [77i8; 32];
        (low[3], low[21]) = (5, -9);
        let second = Q8Row { qs: &low, d: &[0.25], sums: &[5 + 15 * 77, -9 + 15 * 77] };
        fine_q4_0(&[w], [x, second], &mut out);
        assert_eq!(out, [0.5 * 0.25 * (7.0 * 2565.0 + 8.0 * 777.0)]);
    }
}
