//! Batches of activation rows times panels of unpacked weight rows: AVX2, AVX-VNNI, AVX-512 and AVX-512 VNNI.
//!
//! Siblings of `portable/gemm.rs`: integer sums match it exactly; floats are added in the same order as by the dot
//! products of `dot.rs`, with the same roundings, so that a row alone and a row of a batch come out equal.

use crate::cpu::portable::dot::{FLOAT_LANES, LANES};
use crate::cpu::portable::gemm::{Batch, PANEL, PANEL_BLOCK, Panels, Tile, lane, place};
use crate::cpu::portable::unpack::Codes;

/// Asks for the share of the panel behind `w` that comes with activation block `b`. A panel's rows are more streams
/// than a processor foresees, and short ones; but the next panel follows in memory. Asking for more at once stalls.
#[inline(always)]
pub(super) fn ahead<B: Codes>(w: &[B], rows: usize, b: usize) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    let share = rows * size_of::<B>() / (B::LEN / 32);
    let start = w.as_ptr_range().end.cast::<i8>().wrapping_add(b * share);
    for line in (0..share).step_by(64) {
        // SAFETY: a hint, which may name any address; every x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(line)) }
    }
}

/// The numbers of a tile of `MR` rows by two vectors of 8 weight rows.
#[cfg(target_arch = "x86_64")]
#[repr(C)]
struct Numbers<const MR: usize> {
    sums: [[std::arch::x86_64::__m256; 2]; MR],
    /// What registers cannot hold meanwhile: integer sums, and results of a block's first half.
    kept: [[std::arch::x86_64::__m256; 2]; MR],
    blocks: [[std::arch::x86_64::__m256; 2]; MR],
}

/// Six rows of `$of!`, each with its codes, its scale, what offsets take off, the names of its two sums, and where its
/// numbers are kept.
macro_rules! rows {
    ($of:ident $($rest:tt)*) => {
        concat!(
            $of!("{x}" "{d}" "{o}" "a0" "b0" "0" $($rest)*),
            $of!("{x} + {row}" "{d} + {n}" "{o} + {m}" "a1" "b1" "64" $($rest)*),
            $of!("{x} + 2*{row}" "{d} + 2*{n}" "{o} + 2*{m}" "a2" "b2" "128" $($rest)*),
            $of!("{y}" "{e}" "{q}" "a3" "b3" "192" $($rest)*),
            $of!("{y} + {row}" "{e} + {n}" "{q} + {m}" "a4" "b4" "256" $($rest)*),
            $of!("{y} + 2*{row}" "{e} + 2*{n}" "{q} + 2*{m}" "a5" "b5" "320" $($rest)*),
        )
    };
}

/// An instruction on both sums of each of six rows.
macro_rules! both {
    ($x:literal $d:literal $o:literal $a:literal $b:literal $at:literal $op:literal $first:literal $second:literal) => {
        concat!($op, " {", $a, "}, {", $a, "}", $first, "\n", $op, " {", $b, "}, {", $b, "}", $second, "\n")
    };
}

/// Zeros.
macro_rules! zero {
    ($x:literal $d:literal $o:literal $a:literal $b:literal $at:literal) => {
        concat!("vpxor {", $a, "}, {", $a, "}, {", $a, "}\nvpxor {", $b, "}, {", $b, "}, {", $b, "}\n")
    };
}

/// Both sums to where numbers are kept.
macro_rules! keep {
    ($x:literal $d:literal $o:literal $a:literal $b:literal $at:literal $place:literal) => {
        concat!("vmovups [{k} + ", $place, " + ", $at, "], {", $a, "}\n", "vmovups [{k} + ", $place, " + ", $at, " + 32], {", $b, "}\n",)
    };
}

/// Adds the integer sums that were kept.
macro_rules! add_kept {
    ($x:literal $d:literal $o:literal $a:literal $b:literal $at:literal) => {
        concat!(
            "vpaddd {", $a, "}, {", $a, "}, [{k} + 384 + ", $at, "]\n",
            "vpaddd {", $b, "}, {", $b, "}, [{k} + 384 + ", $at, " + 32]\n",
        )
    };
}

/// Adds what offsets take off.
macro_rules! offset {
    ($x:literal $d:literal $o:literal $a:literal $b:literal $at:literal $group:literal) => {
        concat!(
            "vpbroadcastd {v}, dword ptr [",
            $o,
            " + 4*",
            $group,
            "]\n",
            "vpaddd {",
            $a,
            "}, {",
            $a,
            "}, {v}\n",
            "vpaddd {",
            $b,
            "}, {",
            $b,
            "}, {v}\n",
        )
    };
}

/// To numbers, times the scales in `w0` and `w1`.
macro_rules! scale {
    ($x:literal $d:literal $o:literal $a:literal $b:literal $at:literal) => {
        concat!(
            "vcvtdq2ps {",
            $a,
            "}, {",
            $a,
            "}\nvmulps {",
            $a,
            "}, {",
            $a,
            "}, {w0}\n",
            "vcvtdq2ps {",
            $b,
            "}, {",
            $b,
            "}\nvmulps {",
            $b,
            "}, {",
            $b,
            "}, {w1}\n",
        )
    };
}

/// The same, and adds the results of the block's first half.
macro_rules! scale_and_add {
    ($x:literal $d:literal $o:literal $a:literal $b:literal $at:literal) => {
        concat!(
            "vcvtdq2ps {",
            $a,
            "}, {",
            $a,
            "}\nvfmadd213ps {",
            $a,
            "}, {w0}, [{k} + 768 + ",
            $at,
            "]\n",
            "vcvtdq2ps {",
            $b,
            "}, {",
            $b,
            "}\nvfmadd213ps {",
            $b,
            "}, {w1}, [{k} + 768 + ",
            $at,
            " + 32]\n",
        )
    };
}

/// Adds a block, times the activations' scale, to the sums of blocks.
macro_rules! sum_up {
    ($x:literal $d:literal $o:literal $a:literal $b:literal $at:literal) => {
        concat!(
            "vbroadcastss {v}, dword ptr [",
            $d,
            "]\n",
            "vfmadd213ps {",
            $a,
            "}, {v}, [{k} + ",
            $at,
            "]\nvmovups [{k} + ",
            $at,
            "], {",
            $a,
            "}\n",
            "vfmadd213ps {",
            $b,
            "}, {v}, [{k} + ",
            $at,
            " + 32]\nvmovups [{k} + ",
            $at,
            " + 32], {",
            $b,
            "}\n",
        )
    };
}

/// From a group's integer sums to its numbers, and what comes after.
macro_rules! numbers {
    (whole) => {
        concat!(rows!(offset "0"), "vmovups {w0}, [{s}]\nvmovups {w1}, [{s} + 32]\n", rows!(scale), rows!(sum_up))
    };
    (first) => {
        concat!(rows!(offset "0"), "vmovups {w0}, [{s}]\nvmovups {w1}, [{s} + 32]\n", rows!(scale), rows!(keep "768"))
    };
    (second) => {
        concat!(rows!(offset "1"), "vmovups {w0}, [{s} + 64]\nvmovups {w1}, [{s} + 96]\n", rows!(scale_and_add), rows!(sum_up))
    };
}

/// A block of six rows by a panel in assembly: its lines, and operands by the names that they use.
macro_rules! block {
    ($t:ident $b:ident $g:ident $terms:ident $offsets:ident $numbers:ident: $($line:expr,)*) => {{
        let (n, row) = ($t.blocks, $t.blocks * $terms * 32);
        let (x, d) = ($t.qs.add($b * $terms * 32), $t.d.add($b));
        // Where nothing is taken off, every row has the same zero.
        let (o, m) = if $offsets { ($t.aux.add($b * $g), 4 * $g * n) } else { (NOTHING.as_ptr().cast(), 0) };
        std::arch::asm!(
            // Named so that those that need it not may leave it.
            "/* {u} */",
            $($line,)*
            x = in(reg) x, y = in(reg) x.wrapping_add(3 * row), row = in(reg) row, c = in(reg) $t.codes.add($b * PANEL_BLOCK),
            d = in(reg) d, e = in(reg) d.wrapping_add(3 * n), n = in(reg) 4 * n,
            o = in(reg) o, q = in(reg) o.wrapping_byte_add(3 * m), m = in(reg) m,
            s = in(reg) $t.s.add($b * $g * PANEL), k = in(reg) $numbers,
            w0 = out(ymm_reg) _, w1 = out(ymm_reg) _, u = out(ymm_reg) _, v = out(ymm_reg) _,
            a0 = out(ymm_reg) _, b0 = out(ymm_reg) _, a1 = out(ymm_reg) _, b1 = out(ymm_reg) _,
            a2 = out(ymm_reg) _, b2 = out(ymm_reg) _, a3 = out(ymm_reg) _, b3 = out(ymm_reg) _,
            a4 = out(ymm_reg) _, b4 = out(ymm_reg) _, a5 = out(ymm_reg) _, b5 = out(ymm_reg) _,
            options(nostack, preserves_flags),
        )
    }};
}

/// What is taken off where there is no offset; behind it, the signs of eight times four codes.
static NOTHING: [u32; 10] = [0, 0, SIGNS, SIGNS, SIGNS, SIGNS, SIGNS, SIGNS, SIGNS, SIGNS];
const SIGNS: u32 = 0x8080_8080;

/// The functions of tiles of 256-bit vectors, from the module's `products`: which of its ways it takes, `HOW`, is the
/// caller's to say, and `$signed` whether offsets are taken off then already.
macro_rules! tiles {
    ($features:literal, |$how:ident| $signed:expr) => {
        #[target_feature(enable = $features)]
        fn kind<const G: usize, const HOW: usize, const FINE: bool>(x: Batch<'_>, w: Panels<'_>, out: &mut [f32], stride: usize) {
            let mut row = 0;
            while row < x.rows {
                let rows = match x.rows - row {
                    6.. => 6,
                    4.. => 4,
                    left => left.min(2),
                };
                for panel in 0..w.count {
                    let t = Tile::at(x, w, out, stride, row, panel);
                    // SAFETY: `Kernels::multiply` asserted that all operands hold `x.rows` rows and `w.count` panels,
                    // and the tile ends before both.
                    unsafe {
                        match rows {
                            6 => tile::<6, G, HOW, FINE>(t, w.kind.min),
                            4 => tile::<4, G, HOW, FINE>(t, w.kind.min),
                            2 => tile::<2, G, HOW, FINE>(t, w.kind.min),
                            _ => tile::<1, G, HOW, FINE>(t, w.kind.min),
                        }
                    }
                }
                row += rows;
            }
        }

        /// `MR` rows by one panel, as two vectors of 8 weight rows, of blocks with `G` scales (1 or 2).
        ///
        /// # Safety
        /// The operands hold as many rows and a panel from the tile's start on.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn tile<const MR: usize, const G: usize, const HOW: usize, const FINE: bool>(t: Tile, min: bool) {
            let n = t.blocks;
            let ($how, terms) = (HOW, if FINE { 2 } else { 1 });
            let offsets = !min && !$signed;
            // SAFETY: every offset below stays inside the rows and panels that the caller promises.
            unsafe {
                for l in 0..LANES {
                    let zero = [[_mm256_setzero_ps(); 2]; MR];
                    let mut numbers = Numbers { sums: zero, kept: zero, blocks: zero };
                    for b in lane(l, n, LANES) {
                        // The rows behind these come from afar.
                        for r in 0..MR {
                            _mm_prefetch::<_MM_HINT_T1>(t.qs.wrapping_add(((MR + r) * n + b) * 32 * terms));
                        }
                        // Whole tiles are what time is spent on, and compilers schedule them well or half as well by chance.
                        if MR == 6 {
                            six_rows::<G, HOW, FINE>(t, b, offsets, (&raw mut numbers).cast());
                            continue;
                        }
                        let mut blocks = [[_mm256_setzero_ps(); 2]; MR];
                        for g in 0..G {
                            let mut dots = [[_mm256_setzero_si256(); 2]; MR];
                            for term in 0..terms {
                                if term == 1 {
                                    for r in 0..MR {
                                        for p in 0..2 {
                                            dots[r][p] = _mm256_slli_epi32::<8>(dots[r][p]);
                                        }
                                    }
                                }
                                let x = t.qs.add((b * terms + term) * 32 + g * 16);
                                let codes = t.codes.add(b * PANEL_BLOCK + g * PANEL_BLOCK / 2);
                                if G == 1 {
                                    products::<MR, 8, HOW>(x, n * terms * 32, codes, &mut dots);
                                } else {
                                    products::<MR, 4, HOW>(x, n * terms * 32, codes, &mut dots);
                                }
                            }
                            if offsets {
                                for r in 0..MR {
                                    let aux = _mm256_set1_epi32(*t.aux.add((r * n + b) * G + g));
                                    for p in 0..2 {
                                        dots[r][p] = _mm256_add_epi32(dots[r][p], aux);
                                    }
                                }
                            }
                            for p in 0..2 {
                                let s = _mm256_loadu_ps(t.s.add((b * G + g) * PANEL + 8 * p));
                                for r in 0..MR {
                                    let dot = _mm256_cvtepi32_ps(dots[r][p]);
                                    blocks[r][p] = if g == 0 { _mm256_mul_ps(dot, s) } else { _mm256_fmadd_ps(dot, s, blocks[r][p]) };
                                }
                            }
                        }
                        for r in 0..MR {
                            let d = _mm256_set1_ps(*t.d.add(r * n + b));
                            for p in 0..2 {
                                numbers.sums[r][p] = _mm256_fmadd_ps(blocks[r][p], d, numbers.sums[r][p]);
                            }
                        }
                    }
                    let mut sums = numbers.sums;
                    // In a loop of their own, where they do not crowd out the sums of the products.
                    if min {
                        let mut minima = [[_mm256_setzero_ps(); 2]; MR];
                        for b in lane(l, n, LANES) {
                            for g in 0..G {
                                let m = t.m.add((b * G + g) * PANEL);
                                let m = [_mm256_loadu_ps(m), _mm256_loadu_ps(m.add(8))];
                                for r in 0..MR {
                                    let x = _mm256_set1_ps(f32::from_bits(*t.aux.add((r * n + b) * G + g) as u32));
                                    for p in 0..2 {
                                        minima[r][p] = _mm256_fmadd_ps(m[p], x, minima[r][p]);
                                    }
                                }
                            }
                        }
                        for r in 0..MR {
                            for p in 0..2 {
                                sums[r][p] = _mm256_sub_ps(sums[r][p], minima[r][p]);
                            }
                        }
                    }
                    for r in 0..MR {
                        for p in 0..2 {
                            let out = t.out.add(r * t.stride + 8 * p);
                            let before = if l == 0 { _mm256_setzero_ps() } else { _mm256_loadu_ps(out) };
                            _mm256_storeu_ps(out, _mm256_add_ps(before, sums[r][p]));
                        }
                    }
                }
            }
        }
    };
}

pub mod vnni {
    use std::arch::x86_64::*;

    use super::*;

    /// See [`crate::cpu::portable::gemm::multiply`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    pub fn multiply(x: Batch<'_>, w: Panels<'_>, out: &mut [f32], stride: usize) {
        match (w.kind.sixteen, w.kind.min, x.fine) {
            (false, false, false) => kind::<1, false, false>(x, w, out, stride),
            (false, true, false) => kind::<1, true, false>(x, w, out, stride),
            (true, false, false) => kind::<2, false, false>(x, w, out, stride),
            (true, true, false) => kind::<2, true, false>(x, w, out, stride),
            (false, false, true) => kind::<1, false, true>(x, w, out, stride),
            (false, true, true) => kind::<1, true, true>(x, w, out, stride),
            (true, false, true) => kind::<2, false, true>(x, w, out, stride),
            (true, true, true) => kind::<2, true, true>(x, w, out, stride),
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn kind<const G: usize, const MIN: bool, const FINE: bool>(x: Batch<'_>, w: Panels<'_>, out: &mut [f32], stride: usize) {
        let mut row = 0;
        while row < x.rows {
            // Tiles of six rows, or, with two scales, of five where six are not needed to come out evenly: as many as
            // registers hold the sums of. Tiles of few rows have too little to do at the same time.
            let left = x.rows - row;
            let tiles = match (left / 5).max(1) {
                fives if G == 2 && left <= 6 * fives => fives,
                _ => left.div_ceil(6),
            };
            let rows = left.div_ceil(tiles);
            let mut panel = 0;
            while panel < w.count {
                let t = Tile::at(x, w, out, stride, row, panel);
                let two = w.count - panel >= 2;
                // SAFETY: `Kernels::multiply` asserted that all operands hold `x.rows` rows and `w.count` panels, and
                // the tile ends before both.
                unsafe {
                    match (rows, two) {
                        (6, true) => tile::<6, 2, G, MIN, FINE>(t),
                        (6, false) => tile::<6, 1, G, MIN, FINE>(t),
                        (5, true) => tile::<5, 2, G, MIN, FINE>(t),
                        (5, false) => tile::<5, 1, G, MIN, FINE>(t),
                        (4, true) => tile::<4, 2, G, MIN, FINE>(t),
                        (4, false) => tile::<4, 1, G, MIN, FINE>(t),
                        (3, true) => tile::<3, 2, G, MIN, FINE>(t),
                        (3, false) => tile::<3, 1, G, MIN, FINE>(t),
                        (2, true) => tile::<2, 2, G, MIN, FINE>(t),
                        (2, false) => tile::<2, 1, G, MIN, FINE>(t),
                        (_, true) => tile::<1, 2, G, MIN, FINE>(t),
                        (_, false) => tile::<1, 1, G, MIN, FINE>(t),
                    }
                }
                panel += if two { 2 } else { 1 };
            }
            row += rows;
        }
    }

    /// `MR` rows by `NR` panels, of blocks with `G` scales (1 or 2).
    ///
    /// # Safety
    /// The operands hold as many rows and panels from the tile's start on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn tile<const MR: usize, const NR: usize, const G: usize, const MIN: bool, const FINE: bool>(t: Tile) {
        let n = t.blocks;
        let terms = if FINE { 2 } else { 1 };
        // Scales whose groups are multiplied together: as many as registers hold the sums of.
        let at_once = if MR <= 5 { G } else { 1 };
        // SAFETY: every offset below stays inside the rows and panels that the caller promises.
        unsafe {
            // Blocks are stored in the order in which they are taken.
            let mut at = t;
            for l in 0..LANES {
                let start = at;
                let mut sums = [[_mm512_setzero_ps(); NR]; MR];
                for _ in lane(l, n, LANES) {
                    // The rows behind these come from afar.
                    for r in 0..MR {
                        _mm_prefetch::<_MM_HINT_T1>(at.qs.wrapping_add((MR + r) * n * 32 * terms));
                    }
                    let mut blocks = [[_mm512_setzero_ps(); NR]; MR];
                    for first in (0..G).step_by(at_once) {
                        let mut dots = [[[_mm512_setzero_si512(); NR]; MR]; 2];
                        let dots = &mut dots[..at_once];
                        if FINE {
                            steps::<MR, NR, G>(at, 0, first, terms, dots);
                            dots.as_flattened_mut().iter_mut().for_each(|dots| *dots = dots.map(|dots| _mm512_slli_epi32::<8>(dots)));
                        }
                        if !MIN {
                            for (g, dots) in dots.iter_mut().enumerate() {
                                for r in 0..MR {
                                    let aux = _mm512_set1_epi32(*at.aux.add(r * n * G + first + g));
                                    dots[r] = if FINE { dots[r].map(|dots| _mm512_add_epi32(dots, aux)) } else { [aux; NR] };
                                }
                            }
                        }
                        steps::<MR, NR, G>(at, terms - 1, first, terms, dots);
                        for (g, dots) in dots.iter().enumerate() {
                            let mut s = [_mm512_setzero_ps(); NR];
                            for p in 0..NR {
                                s[p] = _mm512_loadu_ps(at.s.add((p * n * G + first + g) * PANEL));
                            }
                            for r in 0..MR {
                                for p in 0..NR {
                                    let dot = _mm512_cvtepi32_ps(dots[r][p]);
                                    let before = blocks[r][p];
                                    blocks[r][p] =
                                        if first + g == 0 { _mm512_mul_ps(dot, s[p]) } else { _mm512_fmadd_ps(dot, s[p], before) };
                                }
                            }
                        }
                    }
                    for r in 0..MR {
                        let d = _mm512_set1_ps(*at.d.add(r * n));
                        for p in 0..NR {
                            sums[r][p] = _mm512_fmadd_ps(blocks[r][p], d, sums[r][p]);
                        }
                    }
                    at = at.next(terms, G);
                }
                // In a loop of their own, where they do not crowd out the sums of the products.
                if MIN {
                    let mut minima = [[_mm512_setzero_ps(); NR]; MR];
                    let mut at = start;
                    for _ in lane(l, n, LANES) {
                        for g in 0..G {
                            let mut m = [_mm512_setzero_ps(); NR];
                            for p in 0..NR {
                                m[p] = _mm512_loadu_ps(at.m.add((p * n * G + g) * PANEL));
                            }
                            for r in 0..MR {
                                let x = _mm512_set1_ps(f32::from_bits(*at.aux.add(r * n * G + g) as u32));
                                for p in 0..NR {
                                    minima[r][p] = _mm512_fmadd_ps(m[p], x, minima[r][p]);
                                }
                            }
                        }
                        at = at.next(terms, G);
                    }
                    for r in 0..MR {
                        for p in 0..NR {
                            sums[r][p] = _mm512_sub_ps(sums[r][p], minima[r][p]);
                        }
                    }
                }
                for r in 0..MR {
                    for p in 0..NR {
                        let out = t.out.add(r * t.stride + p * PANEL);
                        let before = if l == 0 { _mm512_setzero_ps() } else { _mm512_loadu_ps(out) };
                        _mm512_storeu_ps(out, _mm512_add_ps(before, sums[r][p]));
                    }
                }
            }
        }
    }

    /// Adds the products of groups from `first` on, as many as there are `dots`, of `G` of the tile's first block, with term
    /// `term` of `terms`.
    ///
    /// # Safety
    /// As [`tile`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn steps<const MR: usize, const NR: usize, const G: usize>(
        t: Tile,
        term: usize,
        first: usize,
        terms: usize,
        dots: &mut [[[__m512i; NR]; MR]],
    ) {
        let n = t.blocks;
        // SAFETY: every offset below stays inside the rows and panels that the caller promises, and so do the features.
        unsafe {
            let (x, row) = (t.qs.add(term * 32 + first * 16), n * terms * 32);
            let codes: [*const u8; NR] = std::array::from_fn(|p| t.codes.add(p * n * PANEL_BLOCK + first * PANEL_BLOCK / 2));
            // Pairs of panels are what time is spent on, and compilers schedule them well or half as well by chance.
            if let [one, two] = codes[..] {
                let (codes, dots) = ([one, two], dots.as_flattened_mut().as_flattened_mut());
                match (MR, G) {
                    (6, 1) => return six_rows(x, row, codes, dots),
                    (5, 1) => return five_rows(x, row, codes, dots),
                    (4, 1) => return four_rows(x, row, codes, dots),
                    (6, _) => return six_half_rows(x, row, codes, dots),
                    (5, _) => return five_rows_of_two(x, row, codes, dots),
                    (4, _) => return four_rows_of_two(x, row, codes, dots),
                    _ => {}
                }
            }
            for (g, dots) in dots.iter_mut().enumerate() {
                for step in g * 8 / G..(g + 1) * 8 / G {
                    for p in 0..NR {
                        let w = _mm512_loadu_si512(codes[p].add(step * 64).cast());
                        for r in 0..MR {
                            let x = _mm512_set1_epi32(x.add(r * row + step * 4).cast::<i32>().read_unaligned());
                            dots[r][p] = _mm512_dpbusd_epi32(dots[r][p], w, x);
                        }
                    }
                }
            }
        }
    }

    /// The instructions of one step: four columns of two panels with as many of each row. A row is said by where its
    /// codes are and the names of its two sums.
    macro_rules! step {
        ($step:literal: $($x:literal $first:ident $second:ident),*) => {
            concat!(
                "vmovdqu64 {w0}, [{c0} + ", $step, "*64]\n",
                "vmovdqu64 {w1}, [{c1} + ", $step, "*64]\n",
                $(
                    "vpbroadcastd {v}, dword ptr [", $x, " + ", $step, "*4]\n",
                    "vpdpbusd {", stringify!($first), "}, {w0}, {v}\n",
                    "vpdpbusd {", stringify!($second), "}, {w1}, {v}\n",
                )*
            )
        };
    }

    /// Functions that add the products of some rows by two panels to their sums: steps, and the rows, as in `step`, whose
    /// sums they are added to.
    macro_rules! rows_by_two {
        ($($name:ident: $([$($step:literal)*] $rows:tt),*;)*) => {$(
            rows_by_two!($name $([$(($step $rows))*] $rows)*);
        )*};
        ($name:ident $([$(($step:literal [$($row:tt)*]))*] [$($x:literal $first:ident $second:ident),*])*) => {
            /// Adds the products of as many steps and rows as it is named after to `dots`, two for each row.
            ///
            /// # Safety
            /// `x` points to codes of a row, the others follow `row` bytes apart, and `codes` to those of two panels: 4 of
            /// each row and 64 of each panel for every step.
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
            unsafe fn $name(x: *const i8, row: usize, codes: [*const u8; 2], dots: &mut [__m512i]) {
                let [$($($first, $second,)*)*] = dots else { unreachable!("two sums per row") };
                let (_w0, _w1, _v): (__m512i, __m512i, __m512i);
                // SAFETY: the steps read what the caller promises.
                unsafe {
                    std::arch::asm!(
                        $($(step!($step: $($row)*),)*)*
                        x = in(reg) x, y = in(reg) x.wrapping_add(3 * row), row = in(reg) row,
                        c0 = in(reg) codes[0], c1 = in(reg) codes[1],
                        w0 = out(zmm_reg) _w0, w1 = out(zmm_reg) _w1, v = out(zmm_reg) _v,
                        $($($first = inout(zmm_reg) *$first, $second = inout(zmm_reg) *$second,)*)*
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
            }
        };
    }
    rows_by_two! {
        six_rows: [0 1 2 3 4 5 6 7] ["{x}" a0 b0, "{x} + {row}" a1 b1, "{x} + 2*{row}" a2 b2,
            "{y}" a3 b3, "{y} + {row}" a4 b4, "{y} + 2*{row}" a5 b5];
        five_rows: [0 1 2 3 4 5 6 7] ["{x}" a0 b0, "{x} + {row}" a1 b1, "{x} + 2*{row}" a2 b2, "{y}" a3 b3, "{y} + {row}" a4 b4];
        four_rows: [0 1 2 3 4 5 6 7] ["{x}" a0 b0, "{x} + {row}" a1 b1, "{x} + 2*{row}" a2 b2, "{y}" a3 b3];
        six_half_rows: [0 1 2 3] ["{x}" a0 b0, "{x} + {row}" a1 b1, "{x} + 2*{row}" a2 b2,
            "{y}" a3 b3, "{y} + {row}" a4 b4, "{y} + 2*{row}" a5 b5];
        five_rows_of_two:
            [0 1 2 3] ["{x}" a0 b0, "{x} + {row}" a1 b1, "{x} + 2*{row}" a2 b2, "{y}" a3 b3, "{y} + {row}" a4 b4],
            [4 5 6 7] ["{x}" e0 f0, "{x} + {row}" e1 f1, "{x} + 2*{row}" e2 f2, "{y}" e3 f3, "{y} + {row}" e4 f4];
        four_rows_of_two:
            [0 1 2 3] ["{x}" a0 b0, "{x} + {row}" a1 b1, "{x} + 2*{row}" a2 b2, "{y}" a3 b3],
            [4 5 6 7] ["{x}" e0 f0, "{x} + {row}" e1 f1, "{x} + 2*{row}" e2 f2, "{y}" e3 f3];
    }
}

pub mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    /// Four columns of 16 rows together.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(in crate::cpu::x86) fn transpose(rows: &[[u8; 256]; PANEL], first: usize, out: &mut [u8; PANEL_BLOCK]) {
        assert!(first + 32 <= 256);
        for half in 0..2 {
            // SAFETY: 16 bytes at `first + 16 · half` lie inside each row, as asserted.
            let columns = words(|row| unsafe { _mm_loadu_si128(rows[row].as_ptr().add(first + 16 * half).cast()) });
            for (i, column) in columns.into_iter().enumerate() {
                // SAFETY: 64 bytes at `(4 · half + i) · 64` lie inside the 512.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().add((4 * half + i) * 64).cast(), column) }
            }
        }
    }

    /// Words of 16 rows of 16 bytes, vector `i` having word `i` of each: 4×4 transposes, row `4·q + i` from part `q` of
    /// vector `i`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(in crate::cpu::x86) fn words(part: impl Fn(usize) -> __m128i) -> [__m512i; 4] {
        let vector = |i: usize| {
            let v = _mm512_castsi128_si512(part(i));
            let v = _mm512_inserti32x4::<1>(v, part(4 + i));
            let v = _mm512_inserti32x4::<2>(v, part(8 + i));
            _mm512_inserti32x4::<3>(v, part(12 + i))
        };
        turned([vector(0), vector(1), vector(2), vector(3)])
    }

    /// 4×4 transposes of words within quarters.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(in crate::cpu::x86) fn turned([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }

    /// See [`crate::cpu::portable::gemm::multiply_float`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn multiply_float(x: &[f32], k: usize, w: &[f32], out: &mut [f32], stride: usize) {
        let (rows, panels) = (x.len() / k, w.len() / (k * PANEL));
        let mut row = 0;
        while row < rows {
            let left = rows - row;
            let step = if left >= 12 { 12 } else { left.min(4) };
            let mut panel = 0;
            while panel < panels {
                let (x, w) = (x[row * k..].as_ptr(), w[panel * k * PANEL..].as_ptr());
                let out = out[row * stride + panel * PANEL..].as_mut_ptr();
                let wide = panels - panel >= 2;
                // SAFETY: `Kernels::multiply_float` asserted that all operands hold `rows` rows and `panels` panels,
                // and the tile ends before both.
                unsafe {
                    match (step, wide) {
                        (12, true) => tile::<12, 2>(x, k, w, out, stride),
                        (12, false) => tile::<12, 1>(x, k, w, out, stride),
                        (4, true) => tile::<4, 2>(x, k, w, out, stride),
                        (4, false) => tile::<4, 1>(x, k, w, out, stride),
                        (3, true) => tile::<3, 2>(x, k, w, out, stride),
                        (3, false) => tile::<3, 1>(x, k, w, out, stride),
                        (2, true) => tile::<2, 2>(x, k, w, out, stride),
                        (2, false) => tile::<2, 1>(x, k, w, out, stride),
                        (_, true) => tile::<1, 2>(x, k, w, out, stride),
                        (_, false) => tile::<1, 1>(x, k, w, out, stride),
                    }
                }
                panel += if wide { 2 } else { 1 };
            }
            row += step;
        }
    }

    /// `MR` rows by `NR` panels.
    ///
    /// # Safety
    /// `x`, `w` and `out` point to as many rows and panels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn tile<const MR: usize, const NR: usize>(x: *const f32, k: usize, w: *const f32, out: *mut f32, stride: usize) {
        // SAFETY: every offset stays inside the rows and panels that the caller promises.
        unsafe {
            for l in 0..FLOAT_LANES {
                let mut sums = [[_mm512_setzero_ps(); NR]; MR];
                for i in lane(l, k, FLOAT_LANES) {
                    let mut wide = [_mm512_setzero_ps(); NR];
                    for p in 0..NR {
                        wide[p] = _mm512_loadu_ps(w.add((p * k + i) * PANEL));
                    }
                    for r in 0..MR {
                        let x = _mm512_set1_ps(*x.add(r * k + i));
                        for p in 0..NR {
                            sums[r][p] = _mm512_fmadd_ps(wide[p], x, sums[r][p]);
                        }
                    }
                }
                for r in 0..MR {
                    for p in 0..NR {
                        let out = out.add(r * stride + p * PANEL);
                        let before = if l == 0 { _mm512_setzero_ps() } else { _mm512_loadu_ps(out) };
                        _mm512_storeu_ps(out, _mm512_add_ps(before, sums[r][p]));
                    }
                }
            }
        }
    }

    /// See [`crate::cpu::portable::gemm::pack_float`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn pack_float(w: &[f32], rows: usize, panel: &mut [f32]) {
        let k = w.len() / rows;
        let whole = if rows == PANEL { k / 16 * 16 } else { 0 };
        for first in (0..whole).step_by(16) {
            // SAFETY: 16 numbers from column `first` on lie inside each of the 16 rows.
            let row = |r: usize| unsafe { _mm512_loadu_ps(w.as_ptr().add(r * k + first)) };
            // 32-bit words within quarters, then quarters: column 4·q + i comes from part q of vector i.
            let mut t = [_mm512_setzero_ps(); 16];
            for q in 0..4 {
                let (a, b, c, d) = (row(4 * q), row(4 * q + 1), row(4 * q + 2), row(4 * q + 3));
                let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                t[4 * q] = _mm512_shuffle_ps::<0x44>(ab, cd);
                t[4 * q + 1] = _mm512_shuffle_ps::<0xee>(ab, cd);
                t[4 * q + 2] = _mm512_shuffle_ps::<0x44>(ab_high, cd_high);
                t[4 * q + 3] = _mm512_shuffle_ps::<0xee>(ab_high, cd_high);
            }
            for i in 0..4 {
                let (a, b, c, d) = (t[i], t[4 + i], t[8 + i], t[12 + i]);
                let (ab, cd) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
                let (ab_high, cd_high) = (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d));
                let columns = [
                    _mm512_shuffle_f32x4::<0x88>(ab, cd),
                    _mm512_shuffle_f32x4::<0xdd>(ab, cd),
                    _mm512_shuffle_f32x4::<0x88>(ab_high, cd_high),
                    _mm512_shuffle_f32x4::<0xdd>(ab_high, cd_high),
                ];
                for (q, column) in columns.into_iter().enumerate() {
                    let at = place(first + 4 * q + i, k, FLOAT_LANES);
                    let out = &mut panel[at * PANEL..][..PANEL];
                    // SAFETY: the slice holds the 16 numbers written here.
                    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), column) }
                }
            }
        }
        for i in whole..k {
            let out = &mut panel[place(i, k, FLOAT_LANES) * PANEL..][..PANEL];
            for (r, out) in out.iter_mut().enumerate() {
                *out = if r < rows { w[r * k + i] } else { 0.0 };
            }
        }
    }
}

pub mod avx2 {
    use std::arch::x86_64::*;

    use super::*;

    /// Four columns of 16 rows together: 4×4 transposes of 32-bit words, row `4·q + i` from part `q` of vector `i`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::cpu::x86) fn transpose(rows: &[[u8; 256]; PANEL], first: usize, out: &mut [u8; PANEL_BLOCK]) {
        assert!(first + 32 <= 256);
        for part in 0..4 {
            let (half, side) = (part / 2, part % 2);
            // SAFETY: 16 bytes at `first + 16 · half` lie inside each row, as asserted.
            let piece = |row: usize| unsafe { _mm_loadu_si128(rows[row].as_ptr().add(first + 16 * half).cast()) };
            let vector = |i: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(piece(8 * side + i)), piece(8 * side + 4 + i));
            let (a, b, c, d) = (vector(0), vector(1), vector(2), vector(3));
            let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
            let columns = [
                _mm256_unpacklo_epi64(ab, cd),
                _mm256_unpackhi_epi64(ab, cd),
                _mm256_unpacklo_epi64(ab_high, cd_high),
                _mm256_unpackhi_epi64(ab_high, cd_high),
            ];
            for (i, column) in columns.into_iter().enumerate() {
                // SAFETY: 32 bytes at `(4 · half + i) · 64 + 32 · side` lie inside the 512.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().add((4 * half + i) * 64 + 32 * side).cast(), column) }
            }
        }
    }

    /// See [`crate::cpu::portable::gemm::multiply`].
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn multiply(x: Batch<'_>, w: Panels<'_>, out: &mut [f32], stride: usize) {
        // As many steps as pairs of products add up in 16 bits: codes up to 15 eight times, 31 four times, 63 twice.
        match (w.kind.sixteen, w.kind.most, x.fine) {
            (false, ..=15, false) => kind::<1, 8, false>(x, w, out, stride),
            (false, 16..=31, false) => kind::<1, 4, false>(x, w, out, stride),
            (false, 32.., false) => kind::<1, SIGNED, false>(x, w, out, stride),
            (true, ..=31, false) => kind::<2, 4, false>(x, w, out, stride),
            (true, 32.., false) => kind::<2, 2, false>(x, w, out, stride),
            (false, ..=15, true) => kind::<1, 8, true>(x, w, out, stride),
            (false, 16..=31, true) => kind::<1, 4, true>(x, w, out, stride),
            (false, 32.., true) => kind::<1, SIGNED, true>(x, w, out, stride),
            (true, ..=31, true) => kind::<2, 4, true>(x, w, out, stride),
            (true, 32.., true) => kind::<2, 2, true>(x, w, out, stride),
        }
    }

    /// In place of a number of steps: codes of `Q8_0`, of which not even two products add up in 16 bits. They are taken
    /// with their signs.
    const SIGNED: usize = 1;

    tiles!("avx2,fma,f16c", |steps| steps == SIGNED);

    /// Adds to `dots` the products of a group of columns: `N` steps of four columns, `AT_ONCE` of which add up in 16 bits.
    ///
    /// # Safety
    /// `x` points to a row's codes, the others follow `row` bytes apart, and `codes` to a panel's.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn products<const MR: usize, const N: usize, const AT_ONCE: usize>(
        x: *const i8,
        row: usize,
        codes: *const u8,
        dots: &mut [[__m256i; 2]; MR],
    ) {
        let ones = _mm256_set1_epi16(1);
        // SAFETY: every step reads 64 bytes of the panel and 4 of each row, which the caller promises.
        unsafe {
            if AT_ONCE == SIGNED {
                for i in 0..2 * N {
                    let (step, p) = (i / 2, i % 2);
                    let w = _mm256_loadu_si256(codes.add(32 * i).cast());
                    let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                    for r in 0..MR {
                        let x = _mm256_set1_epi32(x.add(r * row + step * 4).cast::<i32>().read_unaligned());
                        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                        dots[r][p] = _mm256_add_epi32(dots[r][p], _mm256_madd_epi16(pairs, ones));
                    }
                }
                return;
            }
            for first in (0..N).step_by(AT_ONCE) {
                let (x, codes) = (x.add(first * 4), codes.add(first * 64));
                let mut pairs = [[_mm256_setzero_si256(); 2]; MR];
                for step in 0..AT_ONCE {
                    for p in 0..2 {
                        let w = _mm256_loadu_si256(codes.add(step * 64 + 32 * p).cast());
                        for r in 0..MR {
                            let x = _mm256_set1_epi32(x.add(r * row + step * 4).cast::<i32>().read_unaligned());
                            pairs[r][p] = _mm256_add_epi16(pairs[r][p], _mm256_maddubs_epi16(w, x));
                        }
                    }
                }
                for r in 0..MR {
                    for p in 0..2 {
                        dots[r][p] = _mm256_add_epi32(dots[r][p], _mm256_madd_epi16(pairs[r][p], ones));
                    }
                }
            }
        }
    }

    /// The first step of sums in 16 bits: four columns of a panel with as many of each row.
    macro_rules! first_of_row {
        ($x:literal $d:literal $o:literal $a:literal $b:literal $at:literal $step:literal) => {
            concat!(
                "vpbroadcastd {",
                $b,
                "}, dword ptr [",
                $x,
                " + 4*",
                $step,
                "]\n",
                "vpmaddubsw {",
                $a,
                "}, {w0}, {",
                $b,
                "}\n",
                "vpmaddubsw {",
                $b,
                "}, {w1}, {",
                $b,
                "}\n",
            )
        };
    }

    /// The next steps.
    macro_rules! next_of_row {
        ($x:literal $d:literal $o:literal $a:literal $b:literal $at:literal $step:literal) => {
            concat!(
                "vpbroadcastd {v}, dword ptr [",
                $x,
                " + 4*",
                $step,
                "]\n",
                "vpmaddubsw {u}, {w0}, {v}\n",
                "vpmaddubsw {v}, {w1}, {v}\n",
                "vpaddw {",
                $a,
                "}, {",
                $a,
                "}, {u}\n",
                "vpaddw {",
                $b,
                "}, {",
                $b,
                "}, {v}\n",
            )
        };
    }

    /// Codes of four columns.
    macro_rules! codes {
        ($step:literal) => {
            concat!("vmovdqu {w0}, [{c} + 64*(", $step, " & 7)]\nvmovdqu {w1}, [{c} + 64*(", $step, " & 7) + 32]\n")
        };
    }

    /// Integer sums of some steps, which add up in 16 bits; steps from 8 on are those of the second term.
    macro_rules! steps {
        ($first:literal $($next:literal)*) => {
            concat!(
                codes!($first), rows!(first_of_row $first),
                $(codes!($next), rows!(next_of_row $next),)*
                // Ones.
                "vpcmpeqw {w0}, {w0}, {w0}\nvpsrlw {w0}, {w0}, 15\n",
                rows!(both "vpmaddwd" ", {w0}" ", {w0}"),
            )
        };
    }

    /// Integer sums of runs of steps.
    macro_rules! runs {
        ([$($step:literal)*]) => { steps!($($step)*) };
        ([$($step:literal)*] $([$($more:literal)*])*) => {
            concat!(steps!($($step)*), $(rows!(keep "384"), steps!($($more)*), rows!(add_kept),)*)
        };
    }

    /// The same for activations in 16 bits: the first term's times 256.
    macro_rules! both_terms {
        ([$($first:tt)*] $([$($second:literal)*])*) => {
            concat!(runs!($($first)*), rows!(both "vpslld" ", 8" ", 8"), $(rows!(keep "384"), steps!($($second)*), rows!(add_kept),)*)
        };
    }

    /// A step of signed codes: eight weight rows with the same columns of each row.
    macro_rules! signed_of_row {
        ($x:literal $d:literal $o:literal $a:literal $b:literal $at:literal first $step:literal) => {
            signed_of_row!($x $a $step)
        };
        ($x:literal $d:literal $o:literal $a:literal $b:literal $at:literal second $step:literal) => {
            signed_of_row!($x $b $step)
        };
        ($x:literal $sum:literal $step:literal) => {
            concat!(
                "vpbroadcastd {v}, dword ptr [", $x, " + 4*", $step, "]\n",
                "vpsignb {v}, {v}, {w0}\n",
                "vpmaddubsw {v}, {w1}, {v}\n",
                "vpmaddwd {v}, {v}, {u}\n",
                "vpaddd {", $sum, "}, {", $sum, "}, {v}\n",
            )
        };
    }

    /// Integer sums of signed codes, without what offsets take off.
    macro_rules! signed_steps {
        ($($step:literal)*) => {
            concat!(
                "vpcmpeqw {u}, {u}, {u}\nvpsrlw {u}, {u}, 15\n",
                $(
                    "vmovdqu {w0}, [{o} + 8]\nvpxor {w0}, {w0}, [{c} + 64*(", $step, " & 7)]\n",
                    "vpabsb {w1}, {w0}\n",
                    rows!(signed_of_row first $step),
                    "vmovdqu {w0}, [{o} + 8]\nvpxor {w0}, {w0}, [{c} + 64*(", $step, " & 7) + 32]\n",
                    "vpabsb {w1}, {w0}\n",
                    rows!(signed_of_row second $step),
                )*
            )
        };
    }

    /// Adds block `b` of six rows by a panel to `numbers`.
    ///
    /// # Safety
    /// The operands hold as many rows, a panel and the block from the tile's start on.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn six_rows<const G: usize, const AT_ONCE: usize, const FINE: bool>(t: Tile, b: usize, offsets: bool, numbers: *mut Numbers<6>) {
        let (one, two) = (1, 2);
        macro_rules! of {
            ($g:ident $terms:ident $($line:expr),*) => { block!(t b $g $terms offsets numbers: $($line,)*) };
        }
        // SAFETY: the lines read the block's codes and scales, and of each row its codes, scale and offset, which the
        // caller promises, and read and write `numbers`.
        unsafe {
            match (G, AT_ONCE, FINE) {
                (1, 8, false) => of!(one one runs!([0 1 2 3 4 5 6 7]), numbers!(whole)),
                (1, 4, false) => of!(one one runs!([0 1 2 3] [4 5 6 7]), numbers!(whole)),
                (1, SIGNED, false) => of!(one one rows!(zero), signed_steps!(0 1 2 3 4 5 6 7), numbers!(whole)),
                (2, 4, false) => of!(two one runs!([0 1 2 3]), numbers!(first), runs!([4 5 6 7]), numbers!(second)),
                (2, 2, false) => of!(two one runs!([0 1] [2 3]), numbers!(first), runs!([4 5] [6 7]), numbers!(second)),
                (1, 8, true) => of!(one two both_terms!([[0 1 2 3 4 5 6 7]] [8 9 10 11 12 13 14 15]), numbers!(whole)),
                (1, 4, true) => of!(one two both_terms!([[0 1 2 3] [4 5 6 7]] [8 9 10 11] [12 13 14 15]), numbers!(whole)),
                (1, SIGNED, true) => of!(
                    one two rows!(zero), signed_steps!(0 1 2 3 4 5 6 7), rows!(both "vpslld" ", 8" ", 8"),
                    signed_steps!(8 9 10 11 12 13 14 15), numbers!(whole)
                ),
                (2, 4, true) => of!(
                    two two both_terms!([[0 1 2 3]] [8 9 10 11]), numbers!(first), both_terms!([[4 5 6 7]] [12 13 14 15]), numbers!(second)
                ),
                (2, 2, true) => of!(
                    two two both_terms!([[0 1] [2 3]] [8 9] [10 11]), numbers!(first),
                    both_terms!([[4 5] [6 7]] [12 13] [14 15]), numbers!(second)
                ),
                _ => unreachable!("one or two scales, and as many steps as add up in 16 bits"),
            }
        }
    }

    /// See [`crate::cpu::portable::gemm::multiply_float`].
    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn multiply_float(x: &[f32], k: usize, w: &[f32], out: &mut [f32], stride: usize) {
        let (rows, panels) = (x.len() / k, w.len() / (k * PANEL));
        let mut row = 0;
        while row < rows {
            let step = match rows - row {
                left if left >= 6 => 6,
                left if left >= 2 => 2,
                _ => 1,
            };
            for panel in 0..panels {
                let (x, w) = (x[row * k..].as_ptr(), w[panel * k * PANEL..].as_ptr());
                let out = out[row * stride + panel * PANEL..].as_mut_ptr();
                // SAFETY: `Kernels::multiply_float` asserted that all operands hold `rows` rows and `panels` panels,
                // and the tile ends before both.
                unsafe {
                    match step {
                        6 => float_tile::<6>(x, k, w, out, stride),
                        2 => float_tile::<2>(x, k, w, out, stride),
                        _ => float_tile::<1>(x, k, w, out, stride),
                    }
                }
            }
            row += step;
        }
    }

    /// `MR` rows by one panel, as two vectors of 8 weight rows.
    ///
    /// # Safety
    /// `x`, `w` and `out` point to as many rows and a panel.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn float_tile<const MR: usize>(x: *const f32, k: usize, w: *const f32, out: *mut f32, stride: usize) {
        // SAFETY: every offset stays inside the rows and the panel that the caller promises.
        unsafe {
            for l in 0..FLOAT_LANES {
                let mut sums = [[_mm256_setzero_ps(); 2]; MR];
                for i in lane(l, k, FLOAT_LANES) {
                    let wide = [_mm256_loadu_ps(w.add(i * PANEL)), _mm256_loadu_ps(w.add(i * PANEL + 8))];
                    for r in 0..MR {
                        let x = _mm256_set1_ps(*x.add(r * k + i));
                        for p in 0..2 {
                            sums[r][p] = _mm256_fmadd_ps(wide[p], x, sums[r][p]);
                        }
                    }
                }
                for r in 0..MR {
                    for p in 0..2 {
                        let out = out.add(r * stride + 8 * p);
                        let before = if l == 0 { _mm256_setzero_ps() } else { _mm256_loadu_ps(out) };
                        _mm256_storeu_ps(out, _mm256_add_ps(before, sums[r][p]));
                    }
                }
            }
        }
    }
}

pub mod avxvnni {
    use std::arch::x86_64::*;

    use super::*;

    /// See [`crate::cpu::portable::gemm::multiply`].
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    pub fn multiply(x: Batch<'_>, w: Panels<'_>, out: &mut [f32], stride: usize) {
        match (w.kind.sixteen, x.fine) {
            (false, false) => kind::<1, 0, false>(x, w, out, stride),
            (true, false) => kind::<2, 0, false>(x, w, out, stride),
            (false, true) => kind::<1, 0, true>(x, w, out, stride),
            (true, true) => kind::<2, 0, true>(x, w, out, stride),
        }
    }

    tiles!("avx2,fma,f16c,avxvnni", |_how| false);

    /// Adds to `dots` the products of a group of columns: `N` steps (8 or 4) of four columns.
    ///
    /// # Safety
    /// `x` points to a row's codes, the others follow `row` bytes apart, and `codes` to a panel's.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn products<const MR: usize, const N: usize, const HOW: usize>(
        x: *const i8,
        row: usize,
        codes: *const u8,
        dots: &mut [[__m256i; 2]; MR],
    ) {
        // SAFETY: every step reads 64 bytes of the panel and 4 of each row, which the caller promises.
        unsafe {
            for step in 0..N {
                let w = codes.add(step * 64);
                let w = [_mm256_loadu_si256(w.cast()), _mm256_loadu_si256(w.add(32).cast())];
                for r in 0..MR {
                    let x = _mm256_set1_epi32(x.add(r * row + step * 4).cast::<i32>().read_unaligned());
                    for p in 0..2 {
                        dots[r][p] = _mm256_dpbusd_avx_epi32(dots[r][p], w[p], x);
                    }
                }
            }
        }
    }

    /// A step: four columns of a panel with as many of each row.
    macro_rules! step_of_row {
        ($x:literal $d:literal $o:literal $a:literal $b:literal $at:literal $step:literal) => {
            concat!(
                "vpbroadcastd {v}, dword ptr [",
                $x,
                " + 4*",
                $step,
                "]\n",
                "{{vex}} vpdpbusd {",
                $a,
                "}, {w0}, {v}\n",
                "{{vex}} vpdpbusd {",
                $b,
                "}, {w1}, {v}\n",
            )
        };
    }

    /// Adds to integer sums; steps from 8 on are those of the second term.
    macro_rules! steps {
        ($($step:literal)*) => {
            concat!($(
                "vmovdqu {w0}, [{c} + 64*(", $step, " & 7)]\nvmovdqu {w1}, [{c} + 64*(", $step, " & 7) + 32]\n",
                rows!(step_of_row $step),
            )*)
        };
    }

    /// Adds block `b` of six rows by a panel to `numbers`.
    ///
    /// # Safety
    /// The operands hold as many rows, a panel and the block from the tile's start on.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn six_rows<const G: usize, const HOW: usize, const FINE: bool>(t: Tile, b: usize, offsets: bool, numbers: *mut Numbers<6>) {
        let (one, two) = (1, 2);
        macro_rules! of {
            ($g:ident $terms:ident $($line:expr),*) => { block!(t b $g $terms offsets numbers: $($line,)*) };
        }
        // SAFETY: the lines read the block's codes and scales, and of each row its codes, scale and offset, which the
        // caller promises, and read and write `numbers`.
        unsafe {
            match (G, FINE) {
                (1, false) => of!(one one rows!(zero), steps!(0 1 2 3 4 5 6 7), numbers!(whole)),
                (2, false) => of!(
                    two one rows!(zero), steps!(0 1 2 3), numbers!(first), rows!(zero), steps!(4 5 6 7), numbers!(second)
                ),
                (1, true) => of!(
                    one two rows!(zero), steps!(0 1 2 3 4 5 6 7), rows!(both "vpslld" ", 8" ", 8"),
                    steps!(8 9 10 11 12 13 14 15), numbers!(whole)
                ),
                (2, true) => of!(
                    two two rows!(zero), steps!(0 1 2 3), rows!(both "vpslld" ", 8" ", 8"), steps!(8 9 10 11), numbers!(first),
                    rows!(zero), steps!(4 5 6 7), rows!(both "vpslld" ", 8" ", 8"), steps!(12 13 14 15), numbers!(second)
                ),
                _ => unreachable!("one or two scales"),
            }
        }
    }
}
