//! Random numbers by place: number `i` of a tensor is a function of the tensor's seed and `i`.

use half::{bf16, f16};
use sphinx_quant::GgmlType;

/// A normal distribution, roughly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fill {
    /// Its mean.
    pub mean: f32,
    /// Its standard deviation.
    pub std: f32,
}

/// 64 random bits for place `i`: SplitMix64, which can be entered anywhere.
#[inline(always)]
fn bits(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number of mean 0 and standard deviation 1 for place `i`: four 16-bit uniform numbers added up, so within ±3.47.
#[inline(always)]
fn normal(seed: u64, i: u64) -> f32 {
    let r = bits(seed, i);
    let sum = (r & 0xffff) + (r >> 16 & 0xffff) + (r >> 32 & 0xffff) + (r >> 48);
    // √(4 · 65536² / 12)
    const STD: f32 = 37_837.227;
    (sum as f32 - 131_070.0) * (1.0 / STD)
}

/// Appends `count` numbers from place `first` on to `out`, encoded as `ty`. Whole blocks.
///
/// Quantised blocks are drawn, not quantised: random codes under scales that give them the wanted spread and mean 0.
pub fn draw(ty: GgmlType, seed: u64, fill: Fill, first: u64, count: usize, out: &mut Vec<u8>) {
    let blocks = count / ty.block_len();
    let start = out.len();
    out.resize(start + blocks * ty.block_bytes(), 0);
    let out = &mut out[start..];
    let value = |i: usize| fill.mean + fill.std * normal(seed, first + i as u64);
    match ty {
        GgmlType::F32 => out.as_chunks_mut().0.iter_mut().enumerate().for_each(|(i, b)| *b = value(i).to_le_bytes()),
        GgmlType::F16 => out.as_chunks_mut().0.iter_mut().enumerate().for_each(|(i, b)| *b = f16::from_f32(value(i)).to_le_bytes()),
        GgmlType::BF16 => out.as_chunks_mut().0.iter_mut().enumerate().for_each(|(i, b)| *b = bf16::from_f32(value(i)).to_le_bytes()),
        _ => {
            // Words of randomness of a block, at most 210 bytes: 27, with room for the scale's own.
            const WORDS: u64 = 32;
            let block = first / ty.block_len() as u64;
            for (b, bytes) in out.chunks_exact_mut(ty.block_bytes()).enumerate() {
                let at = (block + b as u64) * WORDS;
                for (w, word) in bytes.chunks_mut(8).enumerate() {
                    word.copy_from_slice(&bits(seed, at + w as u64).to_le_bytes()[..word.len()]);
                }
                let spread = 0.75 + 0.5 * (bits(seed, at + WORDS - 1) >> 40) as f32 / (1 << 24) as f32;
                let sign = if bits(seed, at + WORDS - 1) & 1 == 0 { 1.0 } else { -1.0 };
                scale(ty, bytes, fill.std * spread, sign);
            }
        }
    }
}

/// Puts scales on a block of random codes, so that its numbers have standard deviation `std` and mean 0 over many blocks.
fn scale(ty: GgmlType, block: &mut [u8], std: f32, sign: f32) {
    let mut put = |at: usize, x: f32| block[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
    match ty {
        GgmlType::Q8_0 => {
            put(0, std / 73.6);
            // −128 is a code that quantising never gives.
            block[2..].iter_mut().for_each(|q| *q = if *q == 0x80 { 0x81 } else { *q });
        }
        // Codes −8..=7: a mean of −½ that the sign takes away over many blocks.
        GgmlType::Q4_0 => put(0, sign * std / 4.64),
        GgmlType::Q5_0 => put(0, sign * std / 9.25),
        GgmlType::Q4_1 => {
            put(0, std / 4.61);
            put(2, -7.5 * std / 4.61);
        }
        GgmlType::Q5_1 => {
            put(0, std / 9.23);
            put(2, -15.5 * std / 9.23);
        }
        // Scales and minima are equal, the minima's factor half the range of the codes: mean 0 in every sub-block.
        GgmlType::Q4_K | GgmlType::Q5_K => {
            let (half, codes) = if ty == GgmlType::Q4_K { (7.5, 4.61) } else { (15.5, 9.23) };
            let d = std / (codes * 48.4);
            put(0, d);
            put(2, half * d);
            // Six-bit numbers 32 to 63: the top bits of the first eight bytes belong to the last four sub-blocks.
            for j in 0..4 {
                let scale = 0x80 | 0x20 | (block[4 + j] & 0x5f);
                block[4 + j] = scale;
                block[8 + j] = scale;
                block[12 + j] = (block[12 + j] & 0x0f) * 0x11;
            }
        }
        GgmlType::Q6_K => {
            put(208, std / (97.3 * 18.5));
            // ±64 to ±127.
            block[192..208].iter_mut().for_each(|s| {
                let size = 64 + (*s & 0x3f) as i8;
                *s = (if *s & 0x80 == 0 { size } else { -size }) as u8;
            });
        }
        GgmlType::Q2_K => {
            let d = std / (1.118 * 11.7);
            put(80, d);
            put(82, 1.5 * d);
            block[..16].iter_mut().for_each(|s| *s = (8 | *s & 7) * 0x11);
        }
        GgmlType::Q3_K => {
            put(108, sign * std / (2.35 * 18.5));
        }
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sphinx_quant::block::dequantize;

    #[test]
    fn every_format_has_the_wanted_spread() {
        let fill = Fill { mean: 0.0, std: 0.02 };
        for ty in GgmlType::ALL {
            let count = 1 << 16;
            let mut bytes = vec![];
            draw(ty, 7, fill, 0, count, &mut bytes);
            let mut x = vec![0f32; count];
            dequantize(ty, &bytes, &mut x);
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / count as f64;
            let std = (x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / count as f64).sqrt();
            assert!(x.iter().all(|x| x.is_finite()), "{ty}");
            assert!((std / 0.02 - 1.0).abs() < 0.1, "{ty}: std {std}");
            assert!(mean.abs() < 0.02 * 0.03, "{ty}: mean {mean}");
        }
    }

    #[test]
    fn any_piece_is_the_same() {
        let fill = Fill { mean: 1.0, std: 0.1 };
        for ty in [GgmlType::BF16, GgmlType::F32, GgmlType::Q8_0, GgmlType::Q4_K, GgmlType::Q6_K] {
            let (mut whole, mut part) = (vec![], vec![]);
            draw(ty, 3, fill, 0, 2048, &mut whole);
            draw(ty, 3, fill, 512, 256, &mut part);
            let per = ty.block_bytes() * 256 / ty.block_len();
            assert!(whole[2 * per..3 * per] == part[..], "{ty}");
            part.clear();
            draw(ty, 4, fill, 512, 256, &mut part);
            assert!(whole[2 * per..3 * per] != part[..], "{ty}");
        }
    }
}
