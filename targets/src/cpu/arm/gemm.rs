//! Batches of activation rows times panels of unpacked weight rows: NEON alone, with the dot products of bytes, and with products of
//! 2×8 matrices of bytes.
//!
//! Siblings of `portable/gemm.rs`: integer sums match it exactly; floats are added in the same order as by the dot products of
//! `dot.rs`, with the same roundings, so that a row alone and a row of a batch come out equal.

use std::arch::aarch64::*;

use super::instructions::{sdot_part, smmla};
use crate::cpu::portable::dot::{FLOAT_LANES, LANES};
use crate::cpu::portable::gemm::{Batch, PANEL, PANEL_BLOCK, Panels, Tile, lane};

/// A way to make the integer sums of a tile: some activation rows with four times `VECTORS` weight rows of a panel.
trait Multiply {
    /// Activation rows of a tile, at most: as many as registers hold the sums of.
    const ROWS: usize;
    /// The same where blocks have two scales: the sums of both halves want registers, too.
    const ROWS_OF_TWO: usize;
    /// Vectors of four weight rows that go together.
    const VECTORS: usize;
    /// Columns of a row that are together in a panel.
    const COLUMNS: usize = 4;

    /// The sums of the products of `STEPS` groups of four columns, for activations in one or two terms, in an order of its own:
    /// [`four`](Multiply::four) has what goes with them in that order, [`settle`](Multiply::settle) puts them in rows.
    ///
    /// # Safety
    /// The processor has the instructions; `x` points to the codes of the first row's group, the other rows are `row` bytes apart
    /// and the second term 32 bytes behind the first; `codes` points to the first vector of the panel's group. `SIGNED` says
    /// whether 128 is taken off the codes first. Each row's sums begin with its `start`.
    unsafe fn sums<const MR: usize, const NV: usize, const STEPS: usize, const SIGNED: bool, const FINE: bool>(
        x: *const i8,
        row: usize,
        codes: *const u8,
        start: [i32; MR],
    ) -> [[int32x4_t; NV]; MR];

    /// What belongs to four weight rows, for vectors of even and of odd number.
    ///
    /// # Safety
    /// NEON.
    #[inline(always)]
    unsafe fn four<const MR: usize>(w: float32x4_t) -> [float32x4_t; 2] {
        [w; 2]
    }

    /// `sum + block · d`, where `d` belongs to the rows.
    ///
    /// # Safety
    /// NEON.
    #[inline(always)]
    unsafe fn add<const MR: usize, const NV: usize>(
        sums: &mut [[float32x4_t; NV]; MR],
        blocks: &[[float32x4_t; NV]; MR],
        d: impl Fn(usize) -> f32,
    ) {
        for r in 0..MR {
            let d = d(r);
            for v in 0..NV {
                // SAFETY: NEON.
                sums[r][v] = unsafe { vfmaq_n_f32(sums[r][v], blocks[r][v], d) };
            }
        }
    }

    /// Sums in the order of rows.
    ///
    /// # Safety
    /// NEON.
    #[inline(always)]
    unsafe fn settle<const MR: usize, const NV: usize>(sums: [[float32x4_t; NV]; MR]) -> [[float32x4_t; NV]; MR] {
        sums
    }
}

/// Four weight rows of a step.
///
/// # Safety
/// 16 bytes are there.
#[inline(always)]
unsafe fn codes_at<const SIGNED: bool>(codes: *const u8) -> int8x16_t {
    // SAFETY: the caller's promise.
    unsafe {
        let codes = vld1q_u8(codes);
        vreinterpretq_s8_u8(if SIGNED { veorq_u8(codes, vdupq_n_u8(0x80)) } else { codes })
    }
}

/// With NEON alone: products in 16 bits, added up in pairs.
struct Plain;

impl Multiply for Plain {
    const ROWS: usize = 2;
    const ROWS_OF_TWO: usize = 2;
    const VECTORS: usize = 4;

    #[inline(always)]
    unsafe fn sums<const MR: usize, const NV: usize, const STEPS: usize, const SIGNED: bool, const FINE: bool>(
        x: *const i8,
        row: usize,
        codes: *const u8,
        start: [i32; MR],
    ) -> [[int32x4_t; NV]; MR] {
        // SAFETY: NEON, and the caller's promise.
        unsafe {
            // Two sums for each weight row: of columns 0 and 1, and of columns 2 and 3.
            let mut sums = [[[vdupq_n_s32(0); 2]; NV]; MR];
            for term in 0..if FINE { 2 } else { 1 } {
                if term == 1 {
                    sums = sums.map(|sums| sums.map(|sums| sums.map(|sum| vshlq_n_s32::<8>(sum))));
                }
                for step in 0..STEPS {
                    // A code may be 255 and is a signed byte only where 128 is taken off, or where no code is above 127.
                    let w: [int8x16_t; NV] = std::array::from_fn(|v| codes_at::<SIGNED>(codes.add(64 * step + 16 * v)));
                    for r in 0..MR {
                        let x = x.add(r * row + 32 * term + 4 * step).cast::<i32>().read_unaligned();
                        let x = vreinterpret_s8_s32(vdup_n_s32(x));
                        for v in 0..NV {
                            sums[r][v][0] = vpadalq_s16(sums[r][v][0], vmull_s8(vget_low_s8(w[v]), x));
                            sums[r][v][1] = vpadalq_s16(sums[r][v][1], vmull_high_s8(w[v], vcombine_s8(x, x)));
                        }
                    }
                }
            }
            std::array::from_fn(|r| sums[r].map(|[a, b]| vaddq_s32(vpaddq_s32(a, b), vdupq_n_s32(start[r]))))
        }
    }
}

/// With the dot products of four bytes.
struct DotProd;

impl DotProd {
    /// Step `first + PART` of a row of sums.
    ///
    /// # Safety
    /// As [`Multiply::sums`].
    #[inline(always)]
    unsafe fn step<const MR: usize, const NV: usize, const PART: usize, const SIGNED: bool>(
        sums: &mut [[int32x4_t; NV]; MR],
        x: &[int8x16_t; MR],
        codes: *const u8,
    ) {
        for v in 0..NV {
            // SAFETY: the caller's promise.
            unsafe {
                let w = codes_at::<SIGNED>(codes.add(64 * PART + 16 * v));
                for r in 0..MR {
                    sums[r][v] = sdot_part::<PART>(sums[r][v], w, x[r]);
                }
            }
        }
    }
}

impl Multiply for DotProd {
    const ROWS: usize = 4;
    const ROWS_OF_TWO: usize = 4;
    const VECTORS: usize = 4;

    #[inline(always)]
    unsafe fn sums<const MR: usize, const NV: usize, const STEPS: usize, const SIGNED: bool, const FINE: bool>(
        x: *const i8,
        row: usize,
        codes: *const u8,
        start: [i32; MR],
    ) -> [[int32x4_t; NV]; MR] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = start.map(|start| [vdupq_n_s32(if FINE { 0 } else { start }); NV]);
            for term in 0..if FINE { 2 } else { 1 } {
                if term == 1 {
                    for r in 0..MR {
                        sums[r] = sums[r].map(|sum| vaddq_s32(vshlq_n_s32::<8>(sum), vdupq_n_s32(start[r])));
                    }
                }
                for four in 0..STEPS / 4 {
                    let x: [int8x16_t; MR] = std::array::from_fn(|r| vld1q_s8(x.add(r * row + 32 * term + 16 * four)));
                    let codes = codes.add(256 * four);
                    Self::step::<MR, NV, 0, SIGNED>(&mut sums, &x, codes);
                    Self::step::<MR, NV, 1, SIGNED>(&mut sums, &x, codes);
                    Self::step::<MR, NV, 2, SIGNED>(&mut sums, &x, codes);
                    Self::step::<MR, NV, 3, SIGNED>(&mut sums, &x, codes);
                }
            }
            sums
        }
    }
}

/// With products of 2×8 matrices: two activation rows with two weight rows. A single row is taken twice.
///
/// Vectors `2·p` and `2·p + 1` of sums have those of rows `2·p` and `2·p + 1`, both: with the first two of four weight rows, and with
/// the second two. Only a single row's are put in order at once.
struct I8mm;

impl Multiply for I8mm {
    const ROWS: usize = 8;
    const ROWS_OF_TWO: usize = 4;
    const VECTORS: usize = 2;
    const COLUMNS: usize = 8;

    #[inline(always)]
    unsafe fn sums<const MR: usize, const NV: usize, const STEPS: usize, const SIGNED: bool, const FINE: bool>(
        x: *const i8,
        row: usize,
        codes: *const u8,
        start: [i32; MR],
    ) -> [[int32x4_t; NV]; MR] {
        // SAFETY: the caller's promise.
        unsafe {
            let zero = vdupq_n_s32(0);
            // Of rows 2·r and 2·r + 1: with weight rows 4·v and 4·v + 1, and with the two behind them.
            let pairs = MR.div_ceil(2);
            let start_of = |pair: usize| vcombine_s32(vdup_n_s32(start[2 * pair]), vdup_n_s32(start[(2 * pair + 1).min(MR - 1)]));
            let mut sums = [[[zero; 2]; NV]; 4];
            if !FINE {
                for pair in 0..pairs {
                    sums[pair] = [[start_of(pair); 2]; NV];
                }
            }
            for term in 0..if FINE { 2 } else { 1 } {
                if term == 1 {
                    for pair in 0..pairs {
                        let start = start_of(pair);
                        sums[pair] = sums[pair].map(|sums| sums.map(|sum| vaddq_s32(vshlq_n_s32::<8>(sum), start)));
                    }
                }
                for sixteen in 0..STEPS / 4 {
                    let mut x_of = [[vdupq_n_s8(0); 2]; 4];
                    for pair in 0..pairs {
                        let at = |r: usize| vreinterpretq_s64_s8(vld1q_s8(x.add(r.min(MR - 1) * row + 32 * term + 16 * sixteen)));
                        let (a, b) = (at(2 * pair), at(2 * pair + 1));
                        x_of[pair] = [vreinterpretq_s8_s64(vzip1q_s64(a, b)), vreinterpretq_s8_s64(vzip2q_s64(a, b))];
                    }
                    for eight in 0..2 {
                        let codes = codes.add(256 * sixteen + 128 * eight);
                        for v in 0..NV {
                            let w = [0, 1].map(|two| codes_at::<SIGNED>(codes.add(32 * v + 16 * two)));
                            for pair in 0..pairs {
                                for (sum, w) in sums[pair][v].iter_mut().zip(w) {
                                    *sum = smmla(*sum, x_of[pair][eight], w);
                                }
                            }
                        }
                    }
                }
            }
            std::array::from_fn(|r| {
                std::array::from_fn(|v| match MR {
                    1 => vcombine_s32(vget_low_s32(sums[0][v][0]), vget_low_s32(sums[0][v][1])),
                    _ => sums[r / 2][v][r % 2],
                })
            })
        }
    }

    #[inline(always)]
    unsafe fn four<const MR: usize>(w: float32x4_t) -> [float32x4_t; 2] {
        // SAFETY: NEON.
        unsafe {
            let pairs = vreinterpretq_f64_f32(w);
            match MR {
                1 => [w; 2],
                _ => [vzip1q_f64(pairs, pairs), vzip2q_f64(pairs, pairs)].map(|w| vreinterpretq_f32_f64(w)),
            }
        }
    }

    #[inline(always)]
    unsafe fn add<const MR: usize, const NV: usize>(
        sums: &mut [[float32x4_t; NV]; MR],
        blocks: &[[float32x4_t; NV]; MR],
        d: impl Fn(usize) -> f32,
    ) {
        for pair in 0..MR.div_ceil(2) {
            // SAFETY: NEON.
            unsafe {
                let d = vcombine_f32(vdup_n_f32(d(2 * pair)), vdup_n_f32(d((2 * pair + 1).min(MR - 1))));
                for r in 2 * pair..MR.min(2 * pair + 2) {
                    for v in 0..NV {
                        sums[r][v] = vfmaq_f32(sums[r][v], blocks[r][v], d);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn settle<const MR: usize, const NV: usize>(sums: [[float32x4_t; NV]; MR]) -> [[float32x4_t; NV]; MR] {
        if MR == 1 {
            return sums;
        }
        let row = |r: usize, v: usize| {
            // SAFETY: NEON.
            unsafe {
                let [a, b] = [sums[r & !1][v], sums[r | 1][v]].map(|sum| vreinterpretq_f64_f32(sum));
                vreinterpretq_f32_f64(if r % 2 == 0 { vzip1q_f64(a, b) } else { vzip2q_f64(a, b) })
            }
        };
        std::array::from_fn(|r| std::array::from_fn(|v| row(r, v)))
    }
}

macro_rules! multiplies {
    ($($module:ident: $how:ident, rows $($rows:literal)*, vectors $vectors:literal;)*) => {$(
        pub mod $module {
            use super::*;

            /// See [`crate::cpu::portable::gemm::multiply`].
            ///
            /// # Safety
            /// The processor has what the module is named after, and all operands hold `x.rows` rows and `w.count` panels.
            pub unsafe fn multiply(x: Batch<'_>, w: Panels<'_>, out: &mut [f32], stride: usize) {
                const { assert!(<$how as Multiply>::VECTORS == $vectors) };
                // SAFETY: the caller's promise.
                unsafe {
                    match (w.kind.sixteen, w.kind.most > 127, w.kind.min, x.fine) {
                        (false, false, false, false) => kind::<1, false, false, false>(x, w, out, stride),
                        (false, false, true, false) => kind::<1, false, true, false>(x, w, out, stride),
                        (false, true, _, false) => kind::<1, true, false, false>(x, w, out, stride),
                        (true, _, false, false) => kind::<2, false, false, false>(x, w, out, stride),
                        (true, _, true, false) => kind::<2, false, true, false>(x, w, out, stride),
                        (false, false, false, true) => kind::<1, false, false, true>(x, w, out, stride),
                        (false, false, true, true) => kind::<1, false, true, true>(x, w, out, stride),
                        (false, true, _, true) => kind::<1, true, false, true>(x, w, out, stride),
                        (true, _, false, true) => kind::<2, false, false, true>(x, w, out, stride),
                        (true, _, true, true) => kind::<2, false, true, true>(x, w, out, stride),
                    }
                }
            }

            /// Blocks with `G` scales.
            ///
            /// # Safety
            /// As [`multiply`].
            unsafe fn kind<const G: usize, const SIGNED: bool, const MIN: bool, const FINE: bool>(x: Batch<'_>, w: Panels<'_>, out: &mut [f32], stride: usize) {
                let mut row = 0;
                while row < x.rows {
                    let left = (x.rows - row).min(if G == 2 { <$how>::ROWS_OF_TWO } else { <$how>::ROWS });
                    let rows = [$($rows,)*].into_iter().find(|&rows| rows <= left).unwrap_or(1);
                    for panel in 0..w.count {
                        for first in (0..PANEL / 4).step_by($vectors) {
                            let t = Tile::at(x, w, out, stride, row, panel);
                            // SAFETY: the tile ends before all operands.
                            unsafe {
                                match rows {
                                    $($rows => tile::<$how, $rows, $vectors, G, SIGNED, MIN, FINE>(t, first),)*
                                    _ => unreachable!("the rows of a tile"),
                                }
                            }
                        }
                    }
                    row += rows;
                }
            }
        }
    )*};
}
multiplies! {
    neon: Plain, rows 2 1, vectors 4;
    dotprod: DotProd, rows 4 3 2 1, vectors 4;
    i8mm: I8mm, rows 8 6 4 2 1, vectors 2;
}

/// `MR` rows by `NV` vectors of a panel, from vector `first` on, of blocks with `G` scales (1 or 2).
///
/// # Safety
/// The processor has the instructions of `M`, and the operands hold as many rows and a panel from the tile's start on.
#[inline(never)] // dozens of them, which profiles and disassemblies should name
unsafe fn tile<M: Multiply, const MR: usize, const NV: usize, const G: usize, const SIGNED: bool, const MIN: bool, const FINE: bool>(
    t: Tile,
    first: usize,
) {
    // Rows in pairs, where sums are.
    const { assert!(MR <= M::ROWS && NV == M::VECTORS && (M::COLUMNS == 4 || MR == 1 || MR % 2 == 0)) };
    let (n, terms) = (t.blocks, if FINE { 2 } else { 1 });
    let (row, lane_of) = (n * terms * 32, 4 * first);
    // SAFETY: every offset below stays inside the rows and panels that the caller promises.
    unsafe {
        let zero = vdupq_n_f32(0.0);
        // Blocks are stored in the order in which they are taken.
        let mut at = t;
        for l in 0..LANES {
            let start = at;
            let mut sums = [[zero; NV]; MR];
            for _ in lane(l, n, LANES) {
                let mut blocks = [[zero; NV]; MR];
                for g in 0..G {
                    let (x, codes) = (at.qs.add(16 * g), at.codes.add(g * PANEL_BLOCK / 2 + 4 * M::COLUMNS * first));
                    // What an offset takes off; of weights with minima this is another number.
                    let offset = |r: usize| if SIGNED || MIN { 0 } else { *at.aux.add(r * n * G + g) };
                    let dots = match G {
                        1 => M::sums::<MR, NV, 8, SIGNED, FINE>(x, row, codes, std::array::from_fn(offset)),
                        _ => M::sums::<MR, NV, 4, SIGNED, FINE>(x, row, codes, std::array::from_fn(offset)),
                    };
                    for v in 0..NV {
                        let s = M::four::<MR>(vld1q_f32(at.s.add(g * PANEL + lane_of + 4 * v)));
                        for r in 0..MR {
                            let dot = vcvtq_f32_s32(dots[r][v]);
                            blocks[r][v] = if g == 0 { vmulq_f32(dot, s[r % 2]) } else { vfmaq_f32(blocks[r][v], dot, s[r % 2]) };
                        }
                    }
                }
                M::add(&mut sums, &blocks, |r| *at.d.add(r * n));
                at = at.next(terms, G);
            }
            let mut sums = M::settle(sums);
            // In a loop of their own, where they do not crowd out the sums of the products.
            if MIN {
                let mut minima = [[zero; NV]; MR];
                let mut at = start;
                for _ in lane(l, n, LANES) {
                    for g in 0..G {
                        let m: [float32x4_t; NV] = std::array::from_fn(|v| vld1q_f32(at.m.add(g * PANEL + lane_of + 4 * v)));
                        for r in 0..MR {
                            let x = f32::from_bits(*at.aux.add(r * n * G + g) as u32);
                            for v in 0..NV {
                                minima[r][v] = vfmaq_n_f32(minima[r][v], m[v], x);
                            }
                        }
                    }
                    at = at.next(terms, G);
                }
                for r in 0..MR {
                    for v in 0..NV {
                        sums[r][v] = vsubq_f32(sums[r][v], minima[r][v]);
                    }
                }
            }
            for r in 0..MR {
                for v in 0..NV {
                    let out = t.out.add(r * t.stride + lane_of + 4 * v);
                    let before = if l == 0 { zero } else { vld1q_f32(out) };
                    vst1q_f32(out, vaddq_f32(before, sums[r][v]));
                }
            }
        }
    }
}

/// See [`crate::cpu::portable::gemm::multiply_float`].
pub fn multiply_float(x: &[f32], k: usize, w: &[f32], out: &mut [f32], stride: usize) {
    let rows = x.len() / k;
    let mut row = 0;
    while row < rows {
        let count = if rows - row >= 4 { 4 } else { 1 };
        for (panel, w) in w.chunks_exact(k * PANEL).enumerate() {
            let (x, out) = (&x[row * k..], &mut out[row * stride + panel * PANEL..]);
            match count {
                4 => float_tile::<4>(x, k, w, out, stride),
                _ => float_tile::<1>(x, k, w, out, stride),
            }
        }
        row += count;
    }
}

/// `MR` rows by one panel.
#[inline(always)]
fn float_tile<const MR: usize>(x: &[f32], k: usize, w: &[f32], out: &mut [f32], stride: usize) {
    let rows: [&[f32]; MR] = std::array::from_fn(|r| &x[r * k..][..k]);
    let w = &w.as_chunks::<PANEL>().0[..k];
    // SAFETY: NEON; panels' rows have 16 numbers, and results are written through slices of 16.
    unsafe {
        let zero = vdupq_n_f32(0.0);
        let mut totals = [[zero; 4]; MR];
        for l in 0..FLOAT_LANES {
            let mut sums = [[zero; 4]; MR];
            for i in lane(l, k, FLOAT_LANES) {
                let w: [float32x4_t; 4] = std::array::from_fn(|v| vld1q_f32(w[i].as_ptr().add(4 * v)));
                for r in 0..MR {
                    for v in 0..4 {
                        sums[r][v] = vfmaq_n_f32(sums[r][v], w[v], rows[r][i]);
                    }
                }
            }
            for r in 0..MR {
                for v in 0..4 {
                    totals[r][v] = vaddq_f32(totals[r][v], sums[r][v]);
                }
            }
        }
        for r in 0..MR {
            let out = &mut out[r * stride..][..PANEL];
            for v in 0..4 {
                vst1q_f32(out.as_mut_ptr().add(4 * v), totals[r][v]);
            }
        }
    }
}
