//! The search for scales.
//!
//! A block is cut into sub-blocks, each with a scale and perhaps a minimum. Given those, the best `q` is the nearest
//! one; given the `q`, the best scale and minimum solve a small least-squares problem. So: start from several
//! scales, round, fit, keep the best fit, round and fit again from there. Then the scales must become small integer
//! multiples of one half-precision number: try the neighbouring integers of each with everything else re-rounded,
//! fit that one number to the result, and try once more from there.
//!
//! All sub-blocks of a block are worked on at the same time, one per lane ([`Lanes`]): the same arithmetic for each,
//! no sums across a vector, no branches. The compiler makes vectors of the inner loops, in whatever instruction set
//! it is allowed; as each lane does the same operations in the same order everywhere, so does the result.

use half::f16;

/// `L` sub-blocks of `N` elements, side by side: `[element][sub-block]`.
pub type Lanes<const L: usize, const N: usize> = [[f32; L]; N];

/// Where the search for scale and minimum starts: `(a, b)` spreads the elements over `−b..=top + a − b` levels.
pub const AFFINE_STARTS: [(f32, f32); 10] =
    [(-0.9, 0.0), (-0.4, 0.0), (0.0, 0.0), (0.4, 0.2), (0.8, 0.0), (0.8, 0.8), (1.2, 0.6), (1.6, 0.8), (2.2, 1.1), (2.8, 1.4)];

/// The same for few levels, where more depends on it.
pub const COARSE_STARTS: [(f32, f32); 10] =
    [(-0.6, 0.0), (-0.2, 0.0), (0.0, 0.0), (0.3, 0.15), (0.6, 0.0), (0.6, 0.3), (0.6, 0.6), (1.0, 0.5), (1.4, 0.7), (2.0, 1.0)];

/// Where the search for a scale alone starts: `(sign, a)` puts the element of largest magnitude at level `sign·(−lo + a)`.
pub const SIGNED_STARTS: [(f32, f32); 8] =
    [(-1.0, -0.6), (-1.0, -0.2), (-1.0, 0.2), (-1.0, 0.6), (1.0, -1.4), (1.0, -1.0), (1.0, -0.6), (1.0, -0.2)];

/// The same for few levels.
pub const SIGNED_COARSE_STARTS: [(f32, f32); 12] = [
    (-1.0, -0.8),
    (-1.0, -0.4),
    (-1.0, 0.0),
    (-1.0, 0.4),
    (-1.0, 0.8),
    (-1.0, 1.4),
    (1.0, -1.3),
    (1.0, -1.0),
    (1.0, -0.7),
    (1.0, -0.3),
    (1.0, 0.2),
    (1.0, 0.8),
];

/// A block `d·s·q − dmin·m`.
pub struct AffineK<const L: usize> {
    pub d: f16,
    pub dmin: f16,
    /// Scale and minimum of each sub-block.
    pub scales: [(u8, u8); L],
    pub q: [u8; 256],
}

/// A block `d·s·q`.
pub struct SignedK<const L: usize> {
    pub d: f16,
    pub scales: [i8; L],
    /// In two's complement.
    pub q: [u8; 256],
}

/// Elements beyond this are cut to it: no block format reaches it, and its squares still add up in `f32`.
const FARTHEST: f32 = (1u32 << 30) as f32;

/// The smallest step of half precision above zero.
const LEAST_HALF: f32 = 1.0 / (1u32 << 24) as f32;

/// Adding this leaves `f32` no bits below the point: the number is rounded, half to even, and its low bits are the integer's.
const ROUNDER: f32 = 12_582_912.0;

// ---------------------------------------------------------------------------------------------------------------
// What the 32-element formats need without a search.

/// The first element of largest magnitude.
#[inline(always)]
pub fn extreme(x: &[f32; 32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    for x in x.as_chunks::<8>().0 {
        for (a, x) in lanes.iter_mut().zip(x) {
            *a = larger(*a, x.abs());
        }
    }
    let most = lanes.into_iter().fold(0.0, larger);
    x.iter().copied().find(|x| x.abs() == most).unwrap_or(0.0)
}

/// The least and the greatest element.
#[inline(always)]
pub fn ends(x: &[f32; 32]) -> (f32, f32) {
    let (mut low, mut high) = ([x[0]; 8], [x[0]; 8]);
    for x in x.as_chunks::<8>().0 {
        for j in 0..8 {
            low[j] = smaller(low[j], x[j]);
            high[j] = larger(high[j], x[j]);
        }
    }
    (low.into_iter().fold(x[0], smaller), high.into_iter().fold(x[0], larger))
}

/// The integer part; 0 for what is no number of levels at all, which comes of infinite elements and subnormal scales.
#[inline(always)]
pub fn cut(level: f32) -> u8 {
    if level < 256.0 { level as i32 as u8 } else { 0 }
}

// ---------------------------------------------------------------------------------------------------------------
// Searched formats: input.

/// The elements, with NaN made 0 and magnitudes cut to [`FARTHEST`].
#[inline(always)]
pub fn sane(x: &[f32; 256]) -> [f32; 256] {
    x.map(|x| {
        let x = if x.is_nan() { 0.0 } else { x };
        larger(smaller(x, FARTHEST), -FARTHEST)
    })
}

/// The weights over their mean, none below a thousandth; all 1 when there is nothing to go by.
#[inline(always)]
pub fn importance<const N: usize>(w: &[f32; N]) -> [f32; N] {
    let w = w.map(|w| if (0.0..f32::INFINITY).contains(&w) { w } else { 0.0 });
    let most = w.into_iter().fold(0.0, larger);
    let first = inverse(most);
    let mean = w.iter().map(|w| w * first).sum::<f32>() / N as f32;
    let second = inverse(mean);
    if second == 0.0 { [1.0; N] } else { w.map(|w| larger(w * first * second, 0.001)) }
}

/// `[L·N]` as `[N][L]`.
#[inline(always)]
pub fn transpose<const L: usize, const N: usize>(x: &[f32; 256]) -> Lanes<L, N> {
    const { assert!(L * N == 256) };
    let mut out = [[0.0; L]; N];
    for (i, out) in out.iter_mut().enumerate() {
        for (j, out) in out.iter_mut().enumerate() {
            *out = x[j * N + i];
        }
    }
    out
}

#[inline(always)]
fn load<const L: usize, const N: usize>(x: &[f32; 256], weights: Option<&[f32; 256]>) -> (Lanes<L, N>, Lanes<L, N>) {
    let w = match weights {
        Some(w) => transpose(&importance(w)),
        None => [[1.0; L]; N],
    };
    (transpose(&sane(x)), w)
}

// ---------------------------------------------------------------------------------------------------------------
// Lane arithmetic.

/// As the vector instruction has it: `b` when `a` is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// As the vector instruction has it: `b` when `a` is NaN.
#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// `1 / v`, or 0 where that is not finite.
#[inline(always)]
fn inverse(v: f32) -> f32 {
    if v.abs() > 1e-37 { 1.0 / v } else { 0.0 }
}

/// The nearest integer of `lo..=hi`, plus [`ROUNDER`].
#[inline(always)]
fn raw_level(v: f32, lo: f32, hi: f32) -> f32 {
    smaller(larger(v, lo), hi) + ROUNDER
}

/// The nearest integer of `lo..=hi`; `lo` for NaN.
#[inline(always)]
fn level(v: f32, lo: f32, hi: f32) -> f32 {
    raw_level(v, lo, hi) - ROUNDER
}

/// Half precision, never infinite, and never zero when `v` is not.
#[inline(always)]
fn to_half(v: f32) -> f16 {
    if v == 0.0 {
        return f16::ZERO;
    }
    let size = smaller(larger(v.abs(), LEAST_HALF), f16::MAX.to_f32());
    f16::from_f32(size.copysign(v))
}

#[inline(always)]
fn per_lane<const L: usize>(f: impl FnMut(usize) -> f32) -> [f32; L] {
    std::array::from_fn(f)
}

#[inline(always)]
fn total<const L: usize>(v: &[f32; L]) -> f32 {
    v.iter().sum()
}

/// Weighted sums over each lane of the rounded levels.
#[derive(Clone, Copy)]
struct Moments<const L: usize> {
    /// Σ w·q
    q: [f32; L],
    /// Σ w·q²
    qq: [f32; L],
    /// Σ w·q·x
    qx: [f32; L],
}

/// Rounds `x·inv + shift` to `lo..=hi` and adds up.
#[inline(always)]
fn moments<const L: usize, const N: usize>(
    x: &Lanes<L, N>,
    w: &Lanes<L, N>,
    inv: &[f32; L],
    shift: &[f32; L],
    (lo, hi): (f32, f32),
) -> Moments<L> {
    let mut sum = Moments { q: [0.0; L], qq: [0.0; L], qx: [0.0; L] };
    for (x, w) in x.iter().zip(w) {
        for j in 0..L {
            let q = level(x[j] * inv[j] + shift[j], lo, hi);
            let wq = w[j] * q;
            sum.q[j] += wq;
            sum.qq[j] += wq * q;
            sum.qx[j] += wq * x[j];
        }
    }
    sum
}

/// Σ w·(d·q − m − x)² per lane, `q` being the nearest levels.
#[inline(always)]
fn errors<const L: usize, const N: usize>(x: &Lanes<L, N>, w: &Lanes<L, N>, d: &[f32; L], m: &[f32; L], (lo, hi): (f32, f32)) -> [f32; L] {
    let inv: [f32; L] = per_lane(|j| inverse(d[j]));
    let mut sum = [0.0; L];
    for (x, w) in x.iter().zip(w) {
        for j in 0..L {
            let q = level((x[j] + m[j]) * inv[j], lo, hi);
            let error = d[j] * q - m[j] - x[j];
            sum[j] += w[j] * error * error;
        }
    }
    sum
}

/// The nearest levels, `[sub-block][element]`, in two's complement.
#[inline(always)]
fn levels<const L: usize, const N: usize>(x: &Lanes<L, N>, d: &[f32; L], m: &[f32; L], (lo, hi): (f32, f32)) -> [[u8; N]; L] {
    let inv: [f32; L] = per_lane(|j| inverse(d[j]));
    let mut out = [[0; N]; L];
    for (i, x) in x.iter().enumerate() {
        for j in 0..L {
            out[j][i] = raw_level((x[j] + m[j]) * inv[j], lo, hi).to_bits() as u8;
        }
    }
    out
}

// ---------------------------------------------------------------------------------------------------------------
// x = d·q − m

/// Sums that do not depend on the levels, and the extent of each lane.
struct Extent<const L: usize> {
    /// Σ w
    w: [f32; L],
    /// Σ w·x
    x: [f32; L],
    /// The least element; not above 0 where minima are not negative.
    low: [f32; L],
    high: [f32; L],
}

#[inline(always)]
fn extent<const L: usize, const N: usize>(x: &Lanes<L, N>, w: &Lanes<L, N>, free: bool) -> Extent<L> {
    let first = if free { x[0] } else { [0.0; L] };
    let mut e = Extent { w: [0.0; L], x: [0.0; L], low: first, high: x[0] };
    for (x, w) in x.iter().zip(w) {
        for j in 0..L {
            e.w[j] += w[j];
            e.x[j] += w[j] * x[j];
            e.low[j] = smaller(e.low[j], x[j]);
            e.high[j] = larger(e.high[j], x[j]);
        }
    }
    e
}

/// Scale and minimum of each lane, and by how much they lower Σ w·x².
#[derive(Clone, Copy)]
struct Fit<const L: usize> {
    gain: [f32; L],
    d: [f32; L],
    m: [f32; L],
}

impl<const L: usize> Fit<L> {
    #[inline(always)]
    fn keep_better(&mut self, other: &Fit<L>) {
        for j in 0..L {
            let better = other.gain[j] > self.gain[j];
            self.gain[j] = if better { other.gain[j] } else { self.gain[j] };
            self.d[j] = if better { other.d[j] } else { self.d[j] };
            self.m[j] = if better { other.m[j] } else { self.m[j] };
        }
    }
}

/// Least squares for `d ≥ 0` and `m` (`m ≥ 0` unless `free`), given the levels.
#[inline(always)]
fn fit<const L: usize>(e: &Extent<L>, s: &Moments<L>, free: bool) -> Fit<L> {
    let mut out = Fit { gain: [0.0; L], d: [0.0; L], m: [0.0; L] };
    for j in 0..L {
        let per_w = 1.0 / e.w[j];
        let cross = s.qx[j] - e.x[j] * s.q[j] * per_w;
        let square = s.qq[j] - s.q[j] * s.q[j] * per_w;
        let d = larger(cross * inverse(square), 0.0);
        let m = (d * s.q[j] - e.x[j]) * per_w;
        let gain = e.x[j] * e.x[j] * per_w + cross * d;
        // Where the minimum would be negative it is 0, and the scale stands alone.
        let alone = larger(s.qx[j] * inverse(s.qq[j]), 0.0);
        let inside = free || m >= 0.0;
        out.d[j] = if inside { d } else { alone };
        out.m[j] = if inside { m } else { 0.0 };
        out.gain[j] = if inside { gain } else { s.qx[j] * alone };
    }
    out
}

/// The best scale and minimum of each lane as real numbers.
#[inline(always)]
fn affine<const L: usize, const N: usize>(
    x: &Lanes<L, N>,
    w: &Lanes<L, N>,
    e: &Extent<L>,
    top: f32,
    free: bool,
    starts: &[(f32, f32)],
) -> Fit<L> {
    let range = (0.0, top);
    let mut best = fit(e, &Moments { q: [0.0; L], qq: [0.0; L], qx: [0.0; L] }, free);
    for &(extra, below) in starts {
        let inv: [f32; L] = per_lane(|j| (top + extra) * inverse(e.high[j] - e.low[j]));
        let shift: [f32; L] = per_lane(|j| -e.low[j] * inv[j] - below);
        best.keep_better(&fit(e, &moments(x, w, &inv, &shift, range), free));
    }
    for _ in 0..2 {
        let inv: [f32; L] = per_lane(|j| inverse(best.d[j]));
        let shift: [f32; L] = per_lane(|j| best.m[j] * inv[j]);
        best.keep_better(&fit(e, &moments(x, w, &inv, &shift, range), free));
    }
    best
}

/// Integer scales and minima, and what error they leave.
#[derive(Clone, Copy)]
struct Settled<const L: usize> {
    d: f16,
    dmin: f16,
    s: [f32; L],
    m: [f32; L],
    error: [f32; L],
}

impl<const L: usize> Settled<L> {
    #[inline(always)]
    fn real(&self) -> ([f32; L], [f32; L]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        (per_lane(|j| d * self.s[j]), per_lane(|j| dmin * self.m[j]))
    }
}

/// The best integers of `0..=steps` for given half-precision numbers, near the real scales and minima of `want`.
#[inline(always)]
fn settle<const L: usize, const N: usize>(
    x: &Lanes<L, N>,
    w: &Lanes<L, N>,
    e: &Extent<L>,
    (top, steps): (f32, f32),
    (d16, dmin16): (f16, f16),
    want: &Fit<L>,
) -> Settled<L> {
    let (d, dmin) = (d16.to_f32(), dmin16.to_f32());
    let (per_d, per_dmin) = (inverse(d), inverse(dmin));
    let range = (0.0, top);
    let mut best = Settled { d: d16, dmin: dmin16, s: [0.0; L], m: [0.0; L], error: [f32::INFINITY; L] };
    for step in [0.0, -1.0, 1.0] {
        let s: [f32; L] = per_lane(|j| larger(smaller(level(want.d[j] * per_d, 0.0, steps) + step, steps), 0.0));
        let scale: [f32; L] = per_lane(|j| d * s[j]);
        let inv: [f32; L] = per_lane(|j| inverse(scale[j]));
        let shift: [f32; L] = per_lane(|j| want.m[j] * inv[j]);
        let sum = moments(x, w, &inv, &shift, range);
        let m: [f32; L] = per_lane(|j| level((scale[j] * sum.q[j] - e.x[j]) / e.w[j] * per_dmin, 0.0, steps));
        let min: [f32; L] = per_lane(|j| dmin * m[j]);
        let error = errors(x, w, &scale, &min, range);
        for j in 0..L {
            let better = error[j] < best.error[j];
            best.error[j] = if better { error[j] } else { best.error[j] };
            best.s[j] = if better { s[j] } else { best.s[j] };
            best.m[j] = if better { m[j] } else { best.m[j] };
        }
    }
    best
}

/// Least squares for `d` and `dmin` of the whole block, given integers and levels.
#[inline(always)]
fn refit<const L: usize>(e: &Extent<L>, s: &Moments<L>, at: &Settled<L>) -> (f16, f16) {
    let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for j in 0..L {
        aa += at.s[j] * at.s[j] * s.qq[j];
        ab += at.s[j] * at.m[j] * s.q[j];
        bb += at.m[j] * at.m[j] * e.w[j];
        ax += at.s[j] * s.qx[j];
        bx += at.m[j] * e.x[j];
    }
    let determinant = aa * bb - ab * ab;
    if determinant > 1e-6 * aa * bb {
        (to_half(larger((ax * bb - bx * ab) / determinant, 0.0)), to_half(larger((ax * ab - bx * aa) / determinant, 0.0)))
    } else {
        (to_half(larger(ax * inverse(aa), 0.0)), at.dmin)
    }
}

/// `x = d·s·q − dmin·m` with `q` in `0..=top` and `s`, `m` in `0..=steps`.
#[inline(always)]
pub fn affine_k<const L: usize, const N: usize>(
    x: &[f32; 256],
    weights: Option<&[f32; 256]>,
    top: f32,
    steps: f32,
    starts: &[(f32, f32)],
    rounds: usize,
) -> AffineK<L> {
    let (x, w) = load::<L, N>(x, weights);
    let e = extent(&x, &w, false);
    let want = affine(&x, &w, &e, top, false, starts);
    let most = |v: &[f32; L]| v.iter().copied().fold(0.0, larger);
    let mut halves = (to_half(most(&want.d) / steps), to_half(most(&want.m) / steps));
    let mut best = settle(&x, &w, &e, (top, steps), halves, &want);
    for _ in 0..rounds {
        let (d, m) = best.real();
        let inv: [f32; L] = per_lane(|j| inverse(d[j]));
        let shift: [f32; L] = per_lane(|j| m[j] * inv[j]);
        let next = refit(&e, &moments(&x, &w, &inv, &shift, (0.0, top)), &best);
        if next == halves {
            break;
        }
        halves = next;
        let settled = settle(&x, &w, &e, (top, steps), halves, &want);
        if total(&settled.error) < total(&best.error) {
            best = settled;
        }
    }
    let (d, m) = best.real();
    let mut q = [0; 256];
    for (q, found) in q.as_chunks_mut::<N>().0.iter_mut().zip(levels(&x, &d, &m, (0.0, top))) {
        *q = found;
    }
    AffineK { d: best.d, dmin: best.dmin, scales: std::array::from_fn(|j| (best.s[j] as u8, best.m[j] as u8)), q }
}

/// `x = d·q + m` with half-precision `d`, `m` per lane and `q` in `0..=top`.
#[inline(always)]
pub fn shifted(x: &Lanes<8, 32>, w: &Lanes<8, 32>, top: f32, starts: &[(f32, f32)]) -> ([f16; 8], [f16; 8], [[u8; 32]; 8]) {
    let e = extent(x, w, true);
    let found = affine(x, w, &e, top, true, starts);
    let d16 = found.d.map(to_half);
    let d = d16.map(f16::to_f32);
    let inv: [f32; 8] = per_lane(|j| inverse(d[j]));
    let shift: [f32; 8] = per_lane(|j| found.m[j] * inv[j]);
    let sum = moments(x, w, &inv, &shift, (0.0, top));
    let m16: [f16; 8] = std::array::from_fn(|j| to_half((e.x[j] - d[j] * sum.q[j]) / e.w[j]));
    let q = levels(x, &d, &m16.map(|m| -m.to_f32()), (0.0, top));
    (d16, m16, q)
}

// ---------------------------------------------------------------------------------------------------------------
// x = d·q

/// The best scale of each lane as a real number, and by how much it lowers Σ w·x².
#[inline(always)]
fn signed<const L: usize, const N: usize>(x: &Lanes<L, N>, w: &Lanes<L, N>, range: (f32, f32), starts: &[(f32, f32)]) -> Fit<L> {
    let mut extreme = [0.0f32; L];
    for x in x {
        for j in 0..L {
            extreme[j] = if x[j].abs() > extreme[j].abs() { x[j] } else { extreme[j] };
        }
    }
    let mut best = Fit { gain: [0.0; L], d: [0.0; L], m: [0.0; L] };
    for &(sign, extra) in starts {
        let inv = per_lane(|j| sign * (extra - range.0) * inverse(extreme[j]));
        best.keep_better(&fit_signed(&moments(x, w, &inv, &[0.0; L], range)));
    }
    for _ in 0..2 {
        let inv = per_lane(|j| inverse(best.d[j]));
        best.keep_better(&fit_signed(&moments(x, w, &inv, &[0.0; L], range)));
    }
    best
}

/// Least squares for `d`, given the levels.
#[inline(always)]
fn fit_signed<const L: usize>(s: &Moments<L>) -> Fit<L> {
    let d: [f32; L] = per_lane(|j| s.qx[j] * inverse(s.qq[j]));
    Fit { gain: per_lane(|j| s.qx[j] * d[j]), d, m: [0.0; L] }
}

/// The best integers of `steps` for a given half-precision number, near the real scales of `want`.
#[inline(always)]
fn settle_signed<const L: usize, const N: usize>(
    x: &Lanes<L, N>,
    w: &Lanes<L, N>,
    range: (f32, f32),
    steps: (f32, f32),
    d16: f16,
    want: &Fit<L>,
) -> Settled<L> {
    let d = d16.to_f32();
    let per_d = inverse(d);
    let zero = [0.0; L];
    let mut best = Settled { d: d16, dmin: f16::ZERO, s: zero, m: zero, error: [f32::INFINITY; L] };
    for step in [0.0, -1.0, 1.0] {
        let s: [f32; L] = per_lane(|j| larger(smaller(level(want.d[j] * per_d, steps.0, steps.1) + step, steps.1), steps.0));
        let error = errors(x, w, &per_lane(|j| d * s[j]), &zero, range);
        for j in 0..L {
            let better = error[j] < best.error[j];
            best.error[j] = if better { error[j] } else { best.error[j] };
            best.s[j] = if better { s[j] } else { best.s[j] };
        }
    }
    best
}

/// `x = d·s·q` with `q` in `range` and `s` in `steps`.
#[inline(always)]
pub fn signed_k<const L: usize, const N: usize>(
    x: &[f32; 256],
    weights: Option<&[f32; 256]>,
    range: (f32, f32),
    steps: (f32, f32),
    starts: &[(f32, f32)],
    rounds: usize,
) -> SignedK<L> {
    let (x, w) = load::<L, N>(x, weights);
    let want = signed(&x, &w, range, starts);
    let most = want.d.iter().fold(0.0f32, |a, &d| if d.abs() > a.abs() { d } else { a });
    let mut half = to_half(most / steps.0);
    let mut best = settle_signed(&x, &w, range, steps, half, &want);
    for _ in 0..rounds {
        let sum = moments(&x, &w, &per_lane(|j| inverse(best.real().0[j])), &[0.0; L], range);
        let (mut aa, mut ax) = (0.0, 0.0);
        for j in 0..L {
            aa += best.s[j] * best.s[j] * sum.qq[j];
            ax += best.s[j] * sum.qx[j];
        }
        let next = to_half(ax * inverse(aa));
        if next == half {
            break;
        }
        half = next;
        let settled = settle_signed(&x, &w, range, steps, half, &want);
        if total(&settled.error) < total(&best.error) {
            best = settled;
        }
    }
    let mut q = [0; 256];
    for (q, found) in q.as_chunks_mut::<N>().0.iter_mut().zip(levels(&x, &best.real().0, &[0.0; L], range)) {
        *q = found;
    }
    SignedK { d: best.d, scales: best.s.map(|s| s as i8), q }
}

/// `x = d·q` with a half-precision `d` per lane and `q` in `lo..=hi`, in two's complement.
#[inline(always)]
pub fn scaled(x: &Lanes<8, 32>, w: &Lanes<8, 32>, lo: f32, hi: f32, starts: &[(f32, f32)]) -> ([f16; 8], [[u8; 32]; 8]) {
    let found = signed(x, w, (lo, hi), starts);
    let d = found.d.map(to_half);
    (d, levels(x, &d.map(f16::to_f32), &[0.0; 8], (lo, hi)))
}
