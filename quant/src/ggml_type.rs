//! The block formats by name, number, block length and size.

use std::fmt;

/// A ggml element format that this project reads, writes and computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types, missing_docs)] // the formats' own names
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

use GgmlType::*;

impl GgmlType {
    /// Every format, in the order of the enum.
    pub const ALL: [GgmlType; 13] = [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K];

    /// ggml's number, as stored in GGUF files.
    pub const fn id(self) -> u32 {
        match self {
            F32 => 0,
            F16 => 1,
            Q4_0 => 2,
            Q4_1 => 3,
            Q5_0 => 6,
            Q5_1 => 7,
            Q8_0 => 8,
            Q2_K => 10,
            Q3_K => 11,
            Q4_K => 12,
            Q5_K => 13,
            Q6_K => 14,
            BF16 => 30,
        }
    }

    /// The format with ggml's number `id`.
    pub fn from_id(id: u32) -> Option<GgmlType> {
        GgmlType::ALL.into_iter().find(|t| t.id() == id)
    }

    /// The format called `name`, in any case (`q4_k` is `Q4_K`).
    pub fn from_name(name: &str) -> Option<GgmlType> {
        GgmlType::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// Elements per block.
    pub const fn block_len(self) -> usize {
        match self {
            F32 | F16 | BF16 => 1,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 => 32,
            Q2_K | Q3_K | Q4_K | Q5_K | Q6_K => 256,
        }
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            Q4_0 => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q2_K => 84,
            Q3_K => 110,
            Q4_K => 144,
            Q5_K => 176,
            Q6_K => 210,
        }
    }

    /// Whether rows are stored as numbers (`F32`, `F16`, `BF16`) rather than quantised blocks.
    pub const fn is_float(self) -> bool {
        matches!(self, F32 | F16 | BF16)
    }

    /// Bytes of a row of `cols` elements; `None` when the row is no whole number of blocks or too long.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Where a block keeps its f16 scales and minima, in bytes. Numbers (`is_float`) have none.
    pub const fn scale_offsets(self) -> &'static [usize] {
        match self {
            F32 | F16 | BF16 => &[],
            Q4_0 | Q5_0 | Q8_0 => &[0],
            Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
            Q2_K => &[80, 82],
            Q3_K => &[108],
            Q6_K => &[208],
        }
    }

    /// The first block in `bytes` with a scale, or a number, that is NaN or infinite.
    pub fn first_non_finite(self, bytes: &[u8]) -> Option<usize> {
        let half = |b: &[u8], at: usize, mask: u16| u16::from_le_bytes([b[at], b[at + 1]]) & mask == mask;
        match self {
            F32 => bytes.chunks_exact(4).position(|b| half(b, 2, 0x7f80)),
            F16 => bytes.chunks_exact(2).position(|b| half(b, 0, 0x7c00)),
            BF16 => bytes.chunks_exact(2).position(|b| half(b, 0, 0x7f80)),
            _ => {
                let scales = self.scale_offsets();
                bytes.chunks_exact(self.block_bytes()).position(|b| scales.iter().any(|&at| half(b, at, 0x7c00)))
            }
        }
    }

    /// ggml's name.
    pub const fn name(self) -> &'static str {
        match self {
            F32 => "F32",
            F16 => "F16",
            BF16 => "BF16",
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q8_0 => "Q8_0",
            Q2_K => "Q2_K",
            Q3_K => "Q3_K",
            Q4_K => "Q4_K",
            Q5_K => "Q5_K",
            Q6_K => "Q6_K",
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
