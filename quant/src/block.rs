//! Rows of numbers as ggml blocks, and back.
//!
//! A quantised row is a sequence of blocks of 32 or 256 elements. A block carries one or two half-precision
//! scales (the 256-element "K" formats also carry small integer scales per sub-block of 16 or 32) and a few bits
//! per element. Each format has a module with its struct (ggml's exact bytes), `dequantize_block`, which is the
//! specification that kernels are measured against, and `quantize_block`.
//!
//! De-quantising gives the same bits as the Python package `gguf` for every format. Quantising to the floats and
//! the 32-element formats gives the same bytes as that package, unless the caller hands in weights. Quantising to
//! the K formats is a search of our own (`search`) for the least weighted squared error.
//!
//! ```text
//! x = d·q              Q4_0 Q5_0 Q8_0
//! x = d·q + m          Q4_1 Q5_1
//! x = d·s·q            Q3_K Q6_K        s: scale of a sub-block of 16
//! x = d·s·q − dmin·m   Q2_K Q4_K Q5_K   s, m: scale and minimum of a sub-block of 16 (Q2_K) or 32
//! ```

use bytemuck::Pod;

use crate::GgmlType;

pub mod float;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
mod search;

pub use q2_k::BlockQ2_K;
pub use q3_k::BlockQ3_K;
pub use q4_0::BlockQ4_0;
pub use q4_1::BlockQ4_1;
pub use q4_k::BlockQ4_K;
pub use q5_0::BlockQ5_0;
pub use q5_1::BlockQ5_1;
pub use q5_k::BlockQ5_K;
pub use q6_k::BlockQ6_K;
pub use q8_0::BlockQ8_0;

/// A block struct: which format it is, and how it reads.
pub trait Block: Pod {
    /// Its format; `TYPE.block_bytes()` is its size.
    const TYPE: GgmlType;

    /// Writes its elements.
    ///
    /// # Panics
    /// When `out` is not `TYPE.block_len()` long.
    fn dequantize(&self, out: &mut [f32]);
}

/// A block of 32. (Traits, so that the calls are direct ones and compiled for the caller's instruction set.)
trait Block32: Block {
    /// As the Python package does it.
    fn plain(x: &[f32; 32]) -> Self;
    /// Eight at once, by search.
    fn weighted(x: &search::Lanes<8, 32>, w: &search::Lanes<8, 32>) -> [Self; 8];
}

/// A block of 256.
trait Block256: Block {
    /// By search.
    fn search(x: &[f32; 256], weights: Option<&[f32; 256]>) -> Self;
}

/// Ties a block struct to its format, and checks ggml's layout while compiling.
macro_rules! block {
    ($block:ty, $ty:ident, 32) => {
        crate::block::block!($block, $ty);

        impl crate::block::Block32 for $block {
            #[inline(always)]
            fn plain(x: &[f32; 32]) -> Self {
                quantize_block(x)
            }
            #[inline(always)]
            fn weighted(x: &Lanes<8, 32>, w: &Lanes<8, 32>) -> [Self; 8] {
                quantize_weighted(x, w)
            }
        }
    };
    ($block:ty, $ty:ident, 256) => {
        crate::block::block!($block, $ty);

        impl crate::block::Block256 for $block {
            #[inline(always)]
            fn search(x: &[f32; 256], weights: Option<&[f32; 256]>) -> Self {
                quantize_block(x, weights)
            }
        }
    };
    ($block:ty, $ty:ident) => {
        const _: () = assert!(size_of::<$block>() == crate::GgmlType::$ty.block_bytes() && align_of::<$block>() == 2);

        impl crate::block::Block for $block {
            const TYPE: crate::GgmlType = crate::GgmlType::$ty;

            #[inline(always)]
            fn dequantize(&self, out: &mut [f32]) {
                dequantize_block(self, out.try_into().expect("`out` holds one block"))
            }
        }
    };
}
use block;

/// De-quantises whole blocks of `ty`, floats included. `bytes` may start at any address.
///
/// Any bytes are accepted; scales that are infinite or NaN give infinite or NaN elements.
///
/// # Panics
/// When `bytes` and `out` are not the same whole number of blocks: the caller's bug, never a property of a file
/// whose tensors were measured on opening.
///
/// Source: `gguf.quants.dequantize` of the Python package `gguf`, bit for bit.
pub fn dequantize(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    check(ty, out.len(), bytes.len());
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: this CPU has AVX2.
        return unsafe { dequantize_avx2(ty, bytes, out) };
    }
    dequantize_any(ty, bytes, out);
}

/// Quantises whole blocks to `ty`: one row, or a run of whole blocks of it.
///
/// `weights`: the importance of each element's error, as long as `row`, or `None` for all alike. With weights the
/// 32-element formats search for the least weighted squared error as the K formats always do; floats ignore them.
/// Weights that are negative or not finite count as nothing, and no weight counts less than a thousandth of the
/// mean of its 256 elements (32 for the short formats), so that no element goes astray.
///
/// Nothing in `row` panics. In the searched formats NaN becomes 0 and elements beyond ±2³⁰ are cut to it; elsewhere
/// they do what they do in the Python package, whose results this equals byte for byte (apart from NaN itself).
/// The result is the same on every CPU.
///
/// # Panics
/// When `row` is not a whole number of blocks, or `out` or `weights` have another length than `row` calls for.
pub fn quantize(ty: GgmlType, row: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    check(ty, row.len(), out.len());
    if let Some(w) = weights {
        assert_eq!(w.len(), row.len(), "one weight per element");
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: this CPU has AVX2.
        return unsafe { quantize_avx2(ty, row, weights, out) };
    }
    quantize_any(ty, row, weights, out);
}

/// The 6-bit scale and minimum of sub-block `j` (0 to 7) of a `Q4_K` or `Q5_K` block.
///
/// Bytes 0–3 and 4–7 hold scales and minima of sub-blocks 0–3 in their low six bits; bytes 8–11 the low nibbles of
/// sub-blocks 4–7, whose two high bits are the top bits of the first eight bytes.
#[inline(always)]
pub fn k_scales(scales: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        let low = scales[j + 4];
        ((low & 15) | (scales[j - 4] >> 6 << 4), (low >> 4) | (scales[j] >> 6 << 4))
    }
}

/// The inverse of [`k_scales`]: `pairs[j]` is scale and minimum of sub-block `j`, each at most 63.
#[inline(always)]
fn pack_k_scales(pairs: &[(u8, u8); 8]) -> [u8; 12] {
    let mut out = [0; 12];
    for j in 0..4 {
        let ((s, m), (s_high, m_high)) = (pairs[j], pairs[j + 4]);
        out[j] = s | (s_high >> 4 << 6);
        out[j + 4] = m | (m_high >> 4 << 6);
        out[j + 8] = (s_high & 15) | (m_high << 4);
    }
    out
}

fn check(ty: GgmlType, elements: usize, bytes: usize) {
    assert_eq!(ty.row_bytes(elements), Some(bytes), "{elements} elements of {ty} in {bytes} bytes");
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn dequantize_avx2(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    dequantize_any(ty, bytes, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantize_avx2(ty: GgmlType, row: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    quantize_any(ty, row, weights, out);
}

/// [`dequantize`] in whatever instruction set the caller is compiled for.
#[inline(always)]
fn dequantize_any(ty: GgmlType, bytes: &[u8], out: &mut [f32]) {
    match ty {
        GgmlType::F32 => float::f32_from_bytes(bytes, out),
        GgmlType::F16 => float::f16_from_bytes(bytes, out),
        GgmlType::BF16 => float::bf16_from_bytes(bytes, out),
        GgmlType::Q4_0 => read::<BlockQ4_0>(bytes, out),
        GgmlType::Q4_1 => read::<BlockQ4_1>(bytes, out),
        GgmlType::Q5_0 => read::<BlockQ5_0>(bytes, out),
        GgmlType::Q5_1 => read::<BlockQ5_1>(bytes, out),
        GgmlType::Q8_0 => read::<BlockQ8_0>(bytes, out),
        GgmlType::Q2_K => read::<BlockQ2_K>(bytes, out),
        GgmlType::Q3_K => read::<BlockQ3_K>(bytes, out),
        GgmlType::Q4_K => read::<BlockQ4_K>(bytes, out),
        GgmlType::Q5_K => read::<BlockQ5_K>(bytes, out),
        GgmlType::Q6_K => read::<BlockQ6_K>(bytes, out),
    }
}

/// [`quantize`] in whatever instruction set the caller is compiled for.
#[inline(always)]
fn quantize_any(ty: GgmlType, row: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    match ty {
        GgmlType::F32 => float::f32_to_bytes(row, out),
        GgmlType::F16 => float::f16_to_bytes(row, out),
        GgmlType::BF16 => float::bf16_to_bytes(row, out),
        GgmlType::Q4_0 => write_32::<BlockQ4_0>(row, weights, out),
        GgmlType::Q4_1 => write_32::<BlockQ4_1>(row, weights, out),
        GgmlType::Q5_0 => write_32::<BlockQ5_0>(row, weights, out),
        GgmlType::Q5_1 => write_32::<BlockQ5_1>(row, weights, out),
        GgmlType::Q8_0 => write_32::<BlockQ8_0>(row, weights, out),
        GgmlType::Q2_K => write_256::<BlockQ2_K>(row, weights, out),
        GgmlType::Q3_K => write_256::<BlockQ3_K>(row, weights, out),
        GgmlType::Q4_K => write_256::<BlockQ4_K>(row, weights, out),
        GgmlType::Q5_K => write_256::<BlockQ5_K>(row, weights, out),
        GgmlType::Q6_K => write_256::<BlockQ6_K>(row, weights, out),
    }
}

#[inline(always)]
fn read<B: Block>(bytes: &[u8], out: &mut [f32]) {
    for (bytes, out) in bytes.chunks_exact(size_of::<B>()).zip(out.chunks_exact_mut(B::TYPE.block_len())) {
        bytemuck::pod_read_unaligned::<B>(bytes).dequantize(out);
    }
}

/// Blocks of 32: exactly as the Python package without weights, eight blocks at a time through the search with them.
#[inline(always)]
fn write_32<B: Block32>(row: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    let Some(weights) = weights else {
        for (x, out) in row.as_chunks().0.iter().zip(out.chunks_exact_mut(size_of::<B>())) {
            out.copy_from_slice(bytemuck::bytes_of(&B::plain(x)));
        }
        return;
    };
    for ((x, w), out) in row.chunks(256).zip(weights.chunks(256)).zip(out.chunks_mut(8 * size_of::<B>())) {
        let (mut xs, mut ws) = ([0.0; 256], [0.0; 256]);
        xs[..x.len()].copy_from_slice(x);
        for (ws, w) in ws.as_chunks_mut::<32>().0.iter_mut().zip(w.as_chunks().0) {
            *ws = search::importance(w);
        }
        let blocks = B::weighted(&search::transpose(&search::sane(&xs)), &search::transpose(&ws));
        out.copy_from_slice(&bytemuck::cast_slice(&blocks)[..out.len()]);
    }
}

/// Blocks of 256, always through the search.
#[inline(always)]
fn write_256<B: Block256>(row: &[f32], weights: Option<&[f32]>, out: &mut [u8]) {
    let mut weights = weights.map(|w| w.as_chunks().0.iter());
    for (x, out) in row.as_chunks().0.iter().zip(out.chunks_exact_mut(size_of::<B>())) {
        let w = weights.as_mut().and_then(Iterator::next);
        out.copy_from_slice(bytemuck::bytes_of(&B::search(x, w)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_bit_scales_survive_packing() {
        for seed in 0..64 {
            let pairs = std::array::from_fn(|j| (((seed + 9 * j) % 64) as u8, ((5 * seed + 31 + 7 * j) % 64) as u8));
            let packed = pack_k_scales(&pairs);
            assert_eq!(pairs, std::array::from_fn(|j| k_scales(&packed, j)));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn every_instruction_set_gives_the_same_bytes() {
        if !is_x86_feature_detected!("avx2") {
            eprintln!("skipped: no AVX2 here");
            return;
        }
        let mut state = 1u32;
        let row: Vec<f32> = (0..1024).map(|_| step(&mut state)).collect();
        let weights: Vec<f32> = row.iter().map(|x| 0.1 + x.abs()).rev().collect();
        for ty in GgmlType::ALL {
            let bytes = ty.row_bytes(row.len()).expect("whole blocks");
            for weights in [None, Some(&weights[..])] {
                let (mut a, mut b) = (vec![0; bytes], vec![1; bytes]);
                quantize_any(ty, &row, weights, &mut a);
                // SAFETY: AVX2 was found above.
                unsafe { quantize_avx2(ty, &row, weights, &mut b) };
                assert!(a == b, "{ty} quantised");
                let (mut x, mut y) = (vec![0.0; row.len()], vec![1.0; row.len()]);
                dequantize_any(ty, &a, &mut x);
                // SAFETY: AVX2 was found above.
                unsafe { dequantize_avx2(ty, &a, &mut y) };
                assert!(x == y, "{ty} read back");
            }
        }
    }

    /// A number with a heavy tail.
    fn step(state: &mut u32) -> f32 {
        *state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        let u = (*state >> 8) as f32 / (1 << 24) as f32 - 0.5;
        u / (0.52 - u.abs())
    }
}
