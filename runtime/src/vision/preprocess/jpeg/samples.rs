//! From coefficients to samples, from samples to pixels: libjpeg's integer arithmetic.

/// Multiplies by the quantisation table and inverts the DCT, "islow" in libjpeg: 13-bit constants, two passes.
pub(super) fn inverse_dct(block: &[i16; 64], quant: &[u16; 64], out: &mut [u8; 64]) {
    if block[1..].iter().all(|&v| v == 0) {
        let dc = i32::from(block[0]).wrapping_mul(quant[0].into());
        out.fill(sample((dc + 4) >> 3));
        return;
    }
    let mut work = [0i32; 64];
    for x in 0..8 {
        let column: [i32; 8] = std::array::from_fn(|y| i32::from(block[8 * y + x]).wrapping_mul(quant[8 * y + x].into()));
        for (y, v) in one_dimension(column, 11).into_iter().enumerate() {
            work[8 * y + x] = v;
        }
    }
    for (row, out) in work.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<8>().0) {
        *out = one_dimension(*row, 18).map(sample);
    }
}

/// A sample from its value around zero.
fn sample(value: i32) -> u8 {
    (value.saturating_add(128)).clamp(0, 255) as u8
}

/// Eight outputs from eight coefficients, `shift` bits rounded away.
#[inline(always)]
fn one_dimension(c: [i32; 8], shift: u32) -> [i32; 8] {
    let mul = |a: i32, b: i32| a.wrapping_mul(b);
    let sum = |a: i32, b: i32| a.wrapping_add(b);
    // Even part.
    let z1 = mul(sum(c[2], c[6]), 4433);
    let even2 = sum(z1, mul(c[6], -15137));
    let even3 = sum(z1, mul(c[2], 6270));
    let even0 = sum(c[0], c[4]).wrapping_shl(13);
    let even1 = c[0].wrapping_sub(c[4]).wrapping_shl(13);
    let t = [sum(even0, even3), sum(even1, even2), even1.wrapping_sub(even2), even0.wrapping_sub(even3)];
    // Odd part.
    let z3 = sum(c[7], c[3]);
    let z4 = sum(c[5], c[1]);
    let z5 = mul(sum(z3, z4), 9633);
    let z1 = mul(sum(c[7], c[1]), -7373);
    let z2 = mul(sum(c[5], c[3]), -20995);
    let z3 = sum(mul(z3, -16069), z5);
    let z4 = sum(mul(z4, -3196), z5);
    let odd = [
        sum(sum(mul(c[1], 12299), z1), z4),
        sum(sum(mul(c[3], 25172), z2), z3),
        sum(sum(mul(c[5], 16819), z2), z4),
        sum(sum(mul(c[7], 2446), z1), z3),
    ];
    let half = 1 << (shift - 1);
    std::array::from_fn(|i| {
        let value = if i < 4 { sum(t[i], odd[i]) } else { t[7 - i].wrapping_sub(odd[7 - i]) };
        sum(value, half) >> shift
    })
}

/// The samples of one component, in blocks of 8 × 8.
pub(super) struct Plane<'a> {
    pub(super) samples: &'a [u8],
    /// Blocks per row of blocks.
    pub(super) stride: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

impl Plane<'_> {
    /// Copies row `y` out of its blocks; `row` has room for whole blocks.
    fn row(&self, y: usize, row: &mut [u8]) {
        let blocks = &self.samples.as_chunks::<64>().0[y / 8 * self.stride..];
        for (to, block) in row.as_chunks_mut::<8>().0.iter_mut().zip(blocks).take(self.width.div_ceil(8)) {
            to.copy_from_slice(&block[y % 8 * 8..][..8]);
        }
    }
}

/// Row `y` of the picture from a component with `1/h` of its columns and `1/v` of its rows.
///
/// Ratios of two are interpolated between the two nearest samples, weighted 3 to 1 ("fancy" in libjpeg), others repeated.
pub(super) fn upsample_row(plane: &Plane, h: usize, v: usize, y: usize, scratch: &mut [Vec<u8>; 2], out: &mut [u8]) {
    let [near, far] = scratch;
    let wide = plane.width > 2;
    match (h, v) {
        (1, 1) => plane.row(y, out),
        (2, 1) if wide => {
            plane.row(y, near);
            let row = &near[..plane.width];
            let last = row.len() - 1;
            for (x, pair) in out.as_chunks_mut::<2>().0.iter_mut().enumerate().take(row.len()) {
                let centre = 3 * u16::from(row[x]);
                let left = if x == 0 { row[0] } else { ((centre + u16::from(row[x - 1]) + 1) >> 2) as u8 };
                let right = if x == last { row[last] } else { ((centre + u16::from(row[x + 1]) + 2) >> 2) as u8 };
                *pair = [left, right];
            }
        }
        (1 | 2, 2) if h == 1 || wide => {
            plane.row(y / 2, near);
            let neighbour = if y.is_multiple_of(2) { (y / 2).saturating_sub(1) } else { (y / 2 + 1).min(plane.height - 1) };
            plane.row(neighbour, far);
            let (near, far) = (&near[..plane.width], &far[..plane.width]);
            let column = |x: usize| 3 * u16::from(near[x]) + u16::from(far[x]);
            if h == 1 {
                let bias = if y.is_multiple_of(2) { 1 } else { 2 };
                for (x, to) in out.iter_mut().enumerate().take(near.len()) {
                    *to = ((column(x) + bias) >> 2) as u8;
                }
                return;
            }
            let last = near.len() - 1;
            for (x, pair) in out.as_chunks_mut::<2>().0.iter_mut().enumerate().take(near.len()) {
                let centre = column(x);
                let left = if x == 0 { (4 * centre + 8) >> 4 } else { (3 * centre + column(x - 1) + 8) >> 4 };
                let right = if x == last { (4 * centre + 7) >> 4 } else { (3 * centre + column(x + 1) + 7) >> 4 };
                *pair = [left as u8, right as u8];
            }
        }
        _ => {
            plane.row(y / v, near);
            for (to, &value) in out.chunks_mut(h).zip(&near[..plane.width]) {
                to.fill(value);
            }
        }
    }
}

/// YCbCr to RGB in 16-bit fixed point.
pub(super) struct Convert {
    red: [i32; 256],
    blue: [i32; 256],
    green_cb: [i32; 256],
    green_cr: [i32; 256],
}

impl Convert {
    pub(super) fn new() -> Convert {
        let table = |f: fn(i32) -> i32| std::array::from_fn(|i| f(i as i32 - 128));
        Convert {
            red: table(|x| (91_881 * x + 32_768) >> 16),
            blue: table(|x| (116_130 * x + 32_768) >> 16),
            green_cb: table(|x| -22_554 * x + 32_768),
            green_cr: table(|x| -46_802 * x),
        }
    }

    /// One pixel.
    pub(super) fn rgb(&self, luma: u8, cb: u8, cr: u8) -> [u8; 3] {
        let (y, cb, cr) = (i32::from(luma), usize::from(cb), usize::from(cr));
        let green = (self.green_cb[cb] + self.green_cr[cr]) >> 16;
        [y + self.red[cr], y + green, y + self.blue[cb]].map(|v| v.clamp(0, 255) as u8)
    }
}
