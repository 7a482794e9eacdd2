//! `F32`, `F16` and `BF16`: rows of numbers, little-endian.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Copies `F32` bytes, bit by bit.
#[inline(always)]
pub fn f32_from_bytes(bytes: &[u8], out: &mut [f32]) {
    for (b, x) in bytes.as_chunks().0.iter().zip(out) {
        *x = f32::from_le_bytes(*b);
    }
}

/// Writes `F32` bytes, bit by bit.
#[inline(always)]
pub fn f32_to_bytes(row: &[f32], out: &mut [u8]) {
    for (b, x) in out.as_chunks_mut().0.iter_mut().zip(row) {
        *b = x.to_le_bytes();
    }
}

/// Widens `F16`, which is exact.
#[inline(always)]
pub fn f16_from_bytes(bytes: &[u8], out: &mut [f32]) {
    let mut piece = [f16::ZERO; 256];
    for (bytes, out) in bytes.chunks(512).zip(out.chunks_mut(256)) {
        for (b, x) in bytes.as_chunks().0.iter().zip(&mut piece) {
            *x = f16::from_le_bytes(*b);
        }
        piece[..out.len()].convert_to_f32_slice(out);
    }
}

/// Rounds to `F16`, nearest even; beyond ±65 520 becomes infinite.
#[inline(always)]
pub fn f16_to_bytes(row: &[f32], out: &mut [u8]) {
    let mut piece = [f16::ZERO; 256];
    for (out, row) in out.chunks_mut(512).zip(row.chunks(256)) {
        let piece = &mut piece[..row.len()];
        piece.convert_from_f32_slice(row);
        for (b, x) in out.as_chunks_mut().0.iter_mut().zip(piece) {
            *b = x.to_le_bytes();
        }
    }
}

/// Widens `BF16`, which is exact.
#[inline(always)]
pub fn bf16_from_bytes(bytes: &[u8], out: &mut [f32]) {
    for (b, x) in bytes.as_chunks().0.iter().zip(out) {
        *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
    }
}

/// Rounds to `BF16`, nearest even; a NaN stays one and becomes quiet.
#[inline(always)]
pub fn bf16_to_bytes(row: &[f32], out: &mut [u8]) {
    for (b, x) in out.as_chunks_mut().0.iter_mut().zip(row) {
        let bits = x.to_bits();
        let nan = bits & 0x7fff_ffff > 0x7f80_0000;
        let bits = if nan { (bits & 0xffff_0000) | 0x0040_0000 } else { bits };
        // A NaN's low half is zero by now, and nothing else comes near the top, so this cannot wrap.
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        *b = ((rounded >> 16) as u16).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_even_and_overflow_to_infinity() {
        let row = [1.0 + 0.5f32.powi(11), 1.0 + 3.0 * 0.5f32.powi(11), 65519.0, -65520.0, 0.5f32.powi(25), -0.0];
        let mut bytes = [0; 12];
        f16_to_bytes(&row, &mut bytes);
        let bits: Vec<u16> = bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        assert_eq!(bits, [0x3c00, 0x3c02, 0x7bff, 0xfc00, 0, 0x8000]);
    }

    #[test]
    fn brain_floats_round_to_even_and_keep_nan() {
        let row = [0x3f80_8000, 0x3f81_8000, 0x7f80_0001, 0xff80_0000, 0x7f7f_ffff].map(f32::from_bits);
        let mut bytes = [0; 10];
        bf16_to_bytes(&row, &mut bytes);
        let bits: Vec<u16> = bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        assert_eq!(bits, [0x3f80, 0x3f82, 0x7fc0, 0xff80, 0x7f80]);
    }
}
