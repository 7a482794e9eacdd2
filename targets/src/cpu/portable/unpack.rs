//! Weight blocks taken apart into unsigned codes, scales and minima.
//!
//! Every quantised format says `w = s · (q − OFFSET) − m`, with `q` an unsigned byte and `s` and `m` shared by a
//! group of 16 or 32 neighbours.

use sphinx_quant::block::{
    Block, BlockQ2_K, BlockQ3_K, BlockQ4_0, BlockQ4_1, BlockQ4_K, BlockQ5_0, BlockQ5_1, BlockQ5_K, BlockQ6_K, BlockQ8_0, k_scales,
};

/// A block that can be taken apart.
pub trait Codes: Block {
    /// Elements of a block.
    const LEN: usize = Self::TYPE.block_len();
    /// Elements that share a scale: 16 or 32.
    const GROUP: usize;
    /// What is taken off a code.
    const OFFSET: i32;
    /// The largest code.
    const MOST: u8;
    /// Whether groups have minima.
    const MIN: bool;

    /// Writes codes `[LEN]`, scales `[LEN / GROUP]` and, for formats with minima, minima `[LEN / GROUP]`.
    fn unpack(&self, q: &mut [u8], s: &mut [f32], m: &mut [f32]);
}

/// `f32` of the half-precision number with these bits; branch-free, so that loops over it vectorise.
#[inline(always)]
pub fn half(bits: u16) -> f32 {
    let magnitude = (u32::from(bits) & 0x7fff) << 13;
    let scaled = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000); // 2^112 moves the exponent's bias
    let special = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    f32::from_bits((scaled.to_bits() | special) | (u32::from(bits) & 0x8000) << 16)
}

/// Nibbles of 16 bytes: the low ones first.
#[inline(always)]
fn nibbles(qs: &[u8; 16], q: &mut [u8]) {
    for (i, &byte) in qs.iter().enumerate() {
        q[i] = byte & 15;
        q[i + 16] = byte >> 4;
    }
}

/// Adds the fifth bits of a `Q5_0` or `Q5_1` block, eight at a time.
#[inline(always)]
fn fifth_bits(qh: [u8; 4], q: &mut [u8]) {
    const EACH: u64 = 0x0101_0101_0101_0101;
    for (&bits, q) in qh.iter().zip(q.as_chunks_mut::<8>().0) {
        // Byte i keeps bit i alone; adding 127 then sets its top bit if there is one.
        let alone = (u64::from(bits) * EACH) & 0x8040_2010_0804_0201;
        let sixteens = ((alone + 127 * EACH) >> 7 & EACH) << 4;
        *q = (u64::from_le_bytes(*q) | sixteens).to_le_bytes();
    }
}

/// The 16 scales of a `Q3_K` block, four at a time; see [`sphinx_quant::block::q3_k::scales`].
#[inline(always)]
pub(in crate::cpu) fn q3_k_scales(packed: &[u8; 12]) -> [i8; 16] {
    let [a, b, top] = [0, 4, 8].map(|i| u32::from_le_bytes([packed[i], packed[i + 1], packed[i + 2], packed[i + 3]]));
    let low = [a, b, a >> 4, b >> 4];
    let mut scales = [0i8; 16];
    for (i, four) in scales.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let six = (low[i] & 0x0f0f_0f0f) | (top >> (2 * i) & 0x0303_0303) << 4;
        *four = six.to_le_bytes().map(|s| s as i8 - 32);
    }
    scales
}

impl Codes for BlockQ8_0 {
    const GROUP: usize = 32;
    const OFFSET: i32 = 128;
    const MOST: u8 = 255;
    const MIN: bool = false;
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], s: &mut [f32], _: &mut [f32]) {
        for (q, &code) in q[..32].iter_mut().zip(&self.qs) {
            *q = code as u8 ^ 0x80;
        }
        s[0] = half(self.d.to_bits());
    }
}

impl Codes for BlockQ4_0 {
    const GROUP: usize = 32;
    const OFFSET: i32 = 8;
    const MOST: u8 = 15;
    const MIN: bool = false;
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], s: &mut [f32], _: &mut [f32]) {
        nibbles(&self.qs, &mut q[..32]);
        s[0] = half(self.d.to_bits());
    }
}

impl Codes for BlockQ4_1 {
    const GROUP: usize = 32;
    const OFFSET: i32 = 0;
    const MOST: u8 = 15;
    const MIN: bool = true;
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], s: &mut [f32], m: &mut [f32]) {
        nibbles(&self.qs, &mut q[..32]);
        s[0] = half(self.d.to_bits());
        m[0] = -half(self.m.to_bits());
    }
}

impl Codes for BlockQ5_0 {
    const GROUP: usize = 32;
    const OFFSET: i32 = 16;
    const MOST: u8 = 31;
    const MIN: bool = false;
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], s: &mut [f32], _: &mut [f32]) {
        nibbles(&self.qs, &mut q[..32]);
        fifth_bits(self.qh, &mut q[..32]);
        s[0] = half(self.d.to_bits());
    }
}

impl Codes for BlockQ5_1 {
    const GROUP: usize = 32;
    const OFFSET: i32 = 0;
    const MOST: u8 = 31;
    const MIN: bool = true;
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], s: &mut [f32], m: &mut [f32]) {
        nibbles(&self.qs, &mut q[..32]);
        fifth_bits(self.qh, &mut q[..32]);
        s[0] = half(self.d.to_bits());
        m[0] = -half(self.m.to_bits());
    }
}

/// Two bits per element: element `128·h + 32·p + l` is bits `2p` of byte `32·h + l`.
#[inline(always)]
fn pairs_of_bits(qs: &[u8; 64], q: &mut [u8]) {
    for h in 0..2 {
        for p in 0..4 {
            let (from, to) = (&qs[32 * h..32 * h + 32], &mut q[128 * h + 32 * p..128 * h + 32 * p + 32]);
            for l in 0..32 {
                to[l] = from[l] >> (2 * p) & 3;
            }
        }
    }
}

impl Codes for BlockQ2_K {
    const GROUP: usize = 16;
    const OFFSET: i32 = 0;
    const MOST: u8 = 3;
    const MIN: bool = true;
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], s: &mut [f32], m: &mut [f32]) {
        pairs_of_bits(&self.qs, &mut q[..256]);
        let (d, dmin) = (half(self.d.to_bits()), half(self.dmin.to_bits()));
        for (j, &both) in self.scales.iter().enumerate() {
            s[j] = d * f32::from(both & 15);
            m[j] = dmin * f32::from(both >> 4);
        }
    }
}

impl Codes for BlockQ3_K {
    const GROUP: usize = 16;
    const OFFSET: i32 = 4;
    const MOST: u8 = 7;
    const MIN: bool = false;
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], s: &mut [f32], _: &mut [f32]) {
        pairs_of_bits(&self.qs, &mut q[..256]);
        for h in 0..8 {
            let to = &mut q[32 * h..32 * h + 32];
            for l in 0..32 {
                to[l] |= (self.hmask[l] >> h & 1) << 2;
            }
        }
        let d = half(self.d.to_bits());
        for (s, scale) in s.iter_mut().zip(q3_k_scales(&self.scales)) {
            *s = d * f32::from(scale);
        }
    }
}

/// Scales and minima of a `Q4_K` or `Q5_K` block.
#[inline(always)]
fn k_scales_and_minima(d: u16, dmin: u16, scales: &[u8; 12], s: &mut [f32], m: &mut [f32]) {
    let (d, dmin) = (half(d), half(dmin));
    for j in 0..8 {
        let (scale, min) = k_scales(scales, j);
        s[j] = d * f32::from(scale);
        m[j] = dmin * f32::from(min);
    }
}

impl Codes for BlockQ4_K {
    const GROUP: usize = 32;
    const OFFSET: i32 = 0;
    const MOST: u8 = 15;
    const MIN: bool = true;
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], s: &mut [f32], m: &mut [f32]) {
        for p in 0..4 {
            let (from, to) = (&self.qs[32 * p..32 * p + 32], &mut q[64 * p..64 * p + 64]);
            for l in 0..32 {
                to[l] = from[l] & 15;
                to[l + 32] = from[l] >> 4;
            }
        }
        k_scales_and_minima(self.d.to_bits(), self.dmin.to_bits(), &self.scales, s, m);
    }
}

impl Codes for BlockQ5_K {
    const GROUP: usize = 32;
    const OFFSET: i32 = 0;
    const MOST: u8 = 31;
    const MIN: bool = true;
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], s: &mut [f32], m: &mut [f32]) {
        for p in 0..4 {
            let (from, to) = (&self.qs[32 * p..32 * p + 32], &mut q[64 * p..64 * p + 64]);
            for l in 0..32 {
                let high = self.qh[l] >> (2 * p);
                to[l] = from[l] & 15 | (high & 1) << 4;
                to[l + 32] = from[l] >> 4 | (high >> 1 & 1) << 4;
            }
        }
        k_scales_and_minima(self.d.to_bits(), self.dmin.to_bits(), &self.scales, s, m);
    }
}

impl Codes for BlockQ6_K {
    const GROUP: usize = 16;
    const OFFSET: i32 = 32;
    const MOST: u8 = 63;
    const MIN: bool = false;
    #[inline(always)]
    fn unpack(&self, q: &mut [u8], s: &mut [f32], _: &mut [f32]) {
        for h in 0..2 {
            let (ql, qh) = (&self.ql[64 * h..64 * h + 64], &self.qh[32 * h..32 * h + 32]);
            let to = &mut q[128 * h..128 * h + 128];
            for l in 0..32 {
                to[l] = ql[l] & 15 | (qh[l] & 3) << 4;
                to[l + 32] = ql[l + 32] & 15 | (qh[l] >> 2 & 3) << 4;
                to[l + 64] = ql[l] >> 4 | (qh[l] >> 4 & 3) << 4;
                to[l + 96] = ql[l + 32] >> 4 | (qh[l] >> 6) << 4;
            }
        }
        let d = half(self.d.to_bits());
        for (s, &scale) in s.iter_mut().zip(&self.scales) {
            *s = d * f32::from(scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_pcg::Pcg64;

    use super::*;

    /// Codes, scales and minima say what the format's own de-quantiser says, bit for bit.
    fn agrees<B: Codes>() {
        let mut rng = Pcg64::seed_from_u64(7);
        for _ in 0..200 {
            let mut bytes = vec![0u8; B::TYPE.block_bytes()];
            rng.fill_bytes(&mut bytes);
            let block: B = bytemuck::pod_read_unaligned(&bytes);
            let mut want = [0f32; 256];
            block.dequantize(&mut want[..B::LEN]);
            if want[..B::LEN].iter().any(|v| !v.is_finite()) {
                continue;
            }
            let (mut q, mut s, mut m) = ([0xffu8; 256], [f32::NAN; 16], [f32::NAN; 16]);
            block.unpack(&mut q[..B::LEN], &mut s[..B::LEN / B::GROUP], &mut m[..B::LEN / B::GROUP]);
            for i in 0..B::LEN {
                let g = i / B::GROUP;
                let product = s[g] * (i32::from(q[i]) - B::OFFSET) as f32;
                let got = if B::MIN { product - m[g] } else { product };
                assert_eq!(got, want[i], "{} element {i}", B::TYPE);
            }
        }
    }

    #[test]
    fn codes_say_what_dequantising_says() {
        agrees::<BlockQ4_0>();
        agrees::<BlockQ4_1>();
        agrees::<BlockQ5_0>();
        agrees::<BlockQ5_1>();
        agrees::<BlockQ8_0>();
        agrees::<BlockQ2_K>();
        agrees::<BlockQ3_K>();
        agrees::<BlockQ4_K>();
        agrees::<BlockQ5_K>();
        agrees::<BlockQ6_K>();
    }

    #[test]
    fn every_half_converts_as_the_library_does() {
        for bits in 0..=u16::MAX {
            let (got, want) = (half(bits), half::f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#x}");
        }
    }
}
