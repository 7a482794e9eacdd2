//! The table of kernels: portable ones first, overwritten by what the processor has.

use std::ops::Range;

use half::{bf16, f16};
use sphinx_quant::GgmlType;
use sphinx_quant::block::{BlockQ2_K, BlockQ3_K, BlockQ4_0, BlockQ4_1, BlockQ4_K, BlockQ5_0, BlockQ5_1, BlockQ5_K, BlockQ6_K, BlockQ8_0};

use super::isa::Isa;
use super::portable;
use super::portable::attend::{Keys, ROOM, Share, Values};
use super::portable::gemm::{Batch, Kind, PANEL, PANEL_BLOCK, Panels};
use super::q8::{FineRow, Q8Row, Q8RowMut};

/// Weight rows with a row of 8-bit activations.
type Dot<B> = unsafe fn(&[B], Q8Row<'_>, &mut [f32]);
/// Weight rows with a row of 16-bit activations.
type FineDot<B> = unsafe fn(&[B], FineRow<'_>, &mut [f32]);
/// A weight row with a row of activations.
type FloatDot<W> = unsafe fn(&[W], &[f32]) -> f32;
/// Weight rows into a panel.
type Pack<B> = unsafe fn(&[B], usize, &mut [u8], &mut [f32], &mut [f32]);

/// The kernels of one instruction set.
pub struct Kernels {
    isa: Isa,
    dot_f32: FloatDot<f32>,
    dot_f16: FloatDot<f16>,
    dot_bf16: FloatDot<bf16>,
    dot_q4_0: Dot<BlockQ4_0>,
    dot_q4_1: Dot<BlockQ4_1>,
    dot_q5_0: Dot<BlockQ5_0>,
    dot_q5_1: Dot<BlockQ5_1>,
    dot_q8_0: Dot<BlockQ8_0>,
    dot_q2_k: Dot<BlockQ2_K>,
    dot_q3_k: Dot<BlockQ3_K>,
    dot_q4_k: Dot<BlockQ4_K>,
    dot_q5_k: Dot<BlockQ5_K>,
    dot_q6_k: Dot<BlockQ6_K>,
    fine_q4_0: FineDot<BlockQ4_0>,
    fine_q4_1: FineDot<BlockQ4_1>,
    fine_q5_0: FineDot<BlockQ5_0>,
    fine_q5_1: FineDot<BlockQ5_1>,
    fine_q8_0: FineDot<BlockQ8_0>,
    fine_q2_k: FineDot<BlockQ2_K>,
    fine_q3_k: FineDot<BlockQ3_K>,
    fine_q4_k: FineDot<BlockQ4_K>,
    fine_q5_k: FineDot<BlockQ5_K>,
    fine_q6_k: FineDot<BlockQ6_K>,
    pack_q4_0: Pack<BlockQ4_0>,
    pack_q4_1: Pack<BlockQ4_1>,
    pack_q5_0: Pack<BlockQ5_0>,
    pack_q5_1: Pack<BlockQ5_1>,
    pack_q8_0: Pack<BlockQ8_0>,
    pack_q2_k: Pack<BlockQ2_K>,
    pack_q3_k: Pack<BlockQ3_K>,
    pack_q4_k: Pack<BlockQ4_K>,
    pack_q5_k: Pack<BlockQ5_K>,
    pack_q6_k: Pack<BlockQ6_K>,
    gemm_multiply: unsafe fn(Batch<'_>, Panels<'_>, &mut [f32], usize),
    gemm_pack_float: unsafe fn(&[f32], usize, &mut [f32]),
    gemm_multiply_float: unsafe fn(&[f32], usize, &[f32], &mut [f32], usize),
    quantize_q8: unsafe fn(&[f32], Q8RowMut<'_>),
    norm_rms: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    #[allow(clippy::type_complexity)] // x, weight, bias, eps, out
    norm_layer: unsafe fn(&[f32], &[f32], &[f32], f32, &mut [f32]),
    #[allow(clippy::type_complexity)] // scores, stride, width, valid, scale, tops, sums
    softmax_exp: unsafe fn(&mut [f32], usize, usize, &[usize], f32, &mut [f32], &mut [f32]),
    act_gelu: unsafe fn(&mut [f32]),
    act_quick_gelu: unsafe fn(&mut [f32]),
    act_silu_gate: unsafe fn(&mut [f32], &[f32]),
    act_set: unsafe fn(&mut [f32], &[f32]),
    act_settle: unsafe fn(),
    act_add: unsafe fn(&mut [f32], &[f32]),
    act_add_scaled: unsafe fn(&mut [f32], &[f32], &[f32]),
    rope_rotate: unsafe fn(&mut [f32], &[f32], &[f32]),
    #[allow(clippy::type_complexity)] // the shapes of a convolution
    conv_depthwise: unsafe fn(&[f32], usize, usize, &[f32], usize, &[f32], Range<usize>, &mut [f32], &mut [f32]),
    conv_scratch: fn(usize, usize) -> usize,
    #[allow(clippy::type_complexity)] // row, firsts, weights, starts, out
    resample_across: unsafe fn(&[u8], &[u32], &[i32], &[[i32; 3]], &mut [u8]),
    #[allow(clippy::type_complexity)] // rows, weights, start, out
    resample_down: unsafe fn(&[&[u8]], &[i32], [i32; 3], &mut [u8]),
    #[allow(clippy::type_complexity)] // the shapes of a product
    attend_scores: unsafe fn(&[f32], usize, Keys<'_>, usize, &mut [f32], &mut [f32], usize),
    #[allow(clippy::type_complexity)] // the shapes of a product
    attend_mix: unsafe fn(&[f32], usize, Values<'_>, usize, usize, &mut [f32], &mut [f32]),
    attend_fold: unsafe fn(Share<'_>, Share<'_>, usize, f32),
    attend_turn: unsafe fn(&[f32], usize, usize, usize, &mut [f32], usize),
}

/// The products of quantised rows, from a module that has them all.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! take_dots {
    ($table:ident, $from:ident: $($dot:ident $fine:ident = $name:ident $fine_name:ident,)*) => {
        $($table.$dot = $from::$name; $table.$fine = $from::$fine_name;)*
    };
    ($table:ident, $from:ident) => {
        take_dots!(
            $table, $from:
            dot_q4_0 fine_q4_0 = q4_0 fine_q4_0,
            dot_q4_1 fine_q4_1 = q4_1 fine_q4_1,
            dot_q5_0 fine_q5_0 = q5_0 fine_q5_0,
            dot_q5_1 fine_q5_1 = q5_1 fine_q5_1,
            dot_q8_0 fine_q8_0 = q8_0 fine_q8_0,
            dot_q2_k fine_q2_k = q2_k fine_q2_k,
            dot_q3_k fine_q3_k = q3_k fine_q3_k,
            dot_q4_k fine_q4_k = q4_k fine_q4_k,
            dot_q5_k fine_q5_k = q5_k fine_q5_k,
            dot_q6_k fine_q6_k = q6_k fine_q6_k,
        )
    };
}

/// What unpacks rows into panels, likewise.
#[cfg(target_arch = "aarch64")]
macro_rules! take_packs {
    ($table:ident, $from:ident: $($pack:ident = $name:ident,)*) => {
        $($table.$pack = $from::$name;)*
    };
    ($table:ident, $from:ident) => {
        take_packs!(
            $table, $from:
            pack_q4_0 = q4_0, pack_q4_1 = q4_1, pack_q5_0 = q5_0, pack_q5_1 = q5_1, pack_q8_0 = q8_0,
            pack_q2_k = q2_k, pack_q3_k = q3_k, pack_q4_k = q4_k, pack_q5_k = q5_k, pack_q6_k = q6_k,
        )
    };
}

impl Kernels {
    /// The table for `isa`, or for the best below it that this processor has.
    pub fn for_isa(isa: Isa) -> Kernels {
        let isa = Isa::best(Some(isa));
        #[allow(unused_mut)] // where there are no siblings
        let mut table = Kernels { isa, ..Kernels::portable() };
        #[cfg(target_arch = "x86_64")]
        {
            if isa >= Isa::Avx2 {
                table.take_avx2();
            }
            // Those with AVX-512 need not have it.
            if isa == Isa::AvxVnni {
                table.take_avxvnni();
            }
            if isa >= Isa::Avx512 {
                table.take_avx512();
            }
            if isa >= Isa::Avx512Vnni {
                table.take_vnni();
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if isa >= Isa::Neon {
                table.take_neon();
            }
            if isa >= Isa::DotProd {
                table.take_dotprod();
            }
            if isa >= Isa::I8mm {
                table.take_i8mm();
            }
        }
        table
    }

    #[cfg(target_arch = "x86_64")]
    fn take_avx2(&mut self) {
        use super::simd::{act, attend, conv, dot::avx2 as floats, norm, rope, softmax};
        use super::x86::{dot::avx2 as dot, gemm::avx2 as gemm, pack, quantize, resample};
        *self = Kernels {
            isa: self.isa,
            dot_f32: floats::f32,
            dot_f16: floats::f16,
            dot_bf16: floats::bf16,
            dot_q4_0: dot::q4_0,
            dot_q4_1: dot::q4_1,
            dot_q5_0: dot::q5_0,
            dot_q5_1: dot::q5_1,
            dot_q8_0: dot::q8_0,
            dot_q2_k: dot::q2_k,
            dot_q3_k: dot::q3_k,
            dot_q4_k: dot::q4_k,
            dot_q5_k: dot::q5_k,
            dot_q6_k: dot::q6_k,
            fine_q4_0: dot::fine_q4_0,
            fine_q4_1: dot::fine_q4_1,
            fine_q5_0: dot::fine_q5_0,
            fine_q5_1: dot::fine_q5_1,
            fine_q8_0: dot::fine_q8_0,
            fine_q2_k: dot::fine_q2_k,
            fine_q3_k: dot::fine_q3_k,
            fine_q4_k: dot::fine_q4_k,
            fine_q5_k: dot::fine_q5_k,
            fine_q6_k: dot::fine_q6_k,
            pack_q4_0: pack::avx2::q4_0,
            pack_q4_1: pack::avx2::q4_1,
            pack_q5_0: pack::avx2::q5_0,
            pack_q5_1: pack::avx2::q5_1,
            pack_q8_0: pack::avx2::q8_0,
            pack_q2_k: pack::avx2::q2_k,
            pack_q3_k: pack::avx2::q3_k,
            pack_q4_k: pack::avx2::q4_k,
            pack_q5_k: pack::avx2::q5_k,
            pack_q6_k: pack::avx2::q6_k,
            gemm_multiply: gemm::multiply,
            gemm_pack_float: self.gemm_pack_float,
            gemm_multiply_float: gemm::multiply_float,
            quantize_q8: quantize::avx2::q8,
            norm_rms: norm::avx2::rms,
            norm_layer: norm::avx2::layer,
            softmax_exp: softmax::avx2::exp,
            act_gelu: act::avx2::gelu,
            act_quick_gelu: act::avx2::quick_gelu,
            act_silu_gate: act::avx2::silu_gate,
            act_set: act::avx2::set,
            act_settle: act::avx2::settle,
            act_add: act::avx2::add_to,
            act_add_scaled: act::avx2::add_scaled,
            rope_rotate: rope::avx2::rotate,
            conv_depthwise: conv::avx2::depthwise,
            conv_scratch: conv::depthwise_scratch,
            resample_across: resample::avx2::across,
            resample_down: resample::avx2::down,
            attend_scores: attend::avx2::scores,
            attend_mix: attend::avx2::mix,
            attend_fold: attend::avx2::fold,
            attend_turn: attend::turned::avx2,
        };
    }

    #[cfg(target_arch = "x86_64")]
    fn take_avxvnni(&mut self) {
        use super::x86::{dot::avxvnni as dot, gemm::avxvnni as gemm};
        take_dots!(self, dot);
        self.gemm_multiply = gemm::multiply;
    }

    /// Without the byte products of VNNI, the 256-bit kernels for 8-bit activations stay.
    #[cfg(target_arch = "x86_64")]
    fn take_avx512(&mut self) {
        use super::simd::{act, attend, conv, dot::avx512 as floats, norm, rope, softmax};
        use super::x86::{gemm::avx512 as gemm, pack, quantize};
        self.dot_f32 = floats::f32;
        self.dot_f16 = floats::f16;
        self.dot_bf16 = floats::bf16;
        self.pack_q4_0 = pack::q4_0;
        self.pack_q8_0 = pack::q8_0;
        self.pack_q4_k = pack::q4_k;
        self.pack_q6_k = pack::q6_k;
        self.gemm_pack_float = gemm::pack_float;
        self.gemm_multiply_float = gemm::multiply_float;
        self.quantize_q8 = quantize::avx512::q8;
        self.norm_rms = norm::avx512::rms;
        self.norm_layer = norm::avx512::layer;
        self.softmax_exp = softmax::avx512::exp;
        self.act_gelu = act::avx512::gelu;
        self.act_quick_gelu = act::avx512::quick_gelu;
        self.act_silu_gate = act::avx512::silu_gate;
        self.act_set = act::avx512::set;
        self.act_settle = act::avx512::settle;
        self.act_add = act::avx512::add_to;
        self.act_add_scaled = act::avx512::add_scaled;
        self.rope_rotate = rope::avx512::rotate;
        self.conv_depthwise = conv::avx512::depthwise;
        self.attend_scores = attend::avx512::scores;
        self.attend_mix = attend::avx512::mix;
        self.attend_fold = attend::avx512::fold;
        self.attend_turn = attend::turned::avx512;
    }

    #[cfg(target_arch = "x86_64")]
    fn take_vnni(&mut self) {
        use super::x86::{dot::vnni as dot, gemm::vnni as gemm};
        take_dots!(self, dot);
        self.gemm_multiply = gemm::multiply;
    }

    /// Norms, rotations and panels of floats stay as they are: what compilers make of them for this family is NEON already.
    #[cfg(target_arch = "aarch64")]
    fn take_neon(&mut self) {
        use super::arm::{dot::neon as dot, gemm, pack, quantize, resample};
        use super::simd::{act, attend, conv, dot::neon as floats, softmax};
        self.dot_f32 = floats::f32;
        self.dot_f16 = floats::f16;
        self.dot_bf16 = floats::bf16;
        take_dots!(self, dot);
        take_packs!(self, pack);
        self.gemm_multiply = gemm::neon::multiply;
        self.gemm_multiply_float = gemm::multiply_float;
        self.quantize_q8 = quantize::q8;
        self.softmax_exp = softmax::neon::exp;
        self.act_gelu = act::neon::gelu;
        self.act_quick_gelu = act::neon::quick_gelu;
        self.act_silu_gate = act::neon::silu_gate;
        self.act_set = act::neon::set;
        self.act_settle = act::neon::settle;
        self.act_add = act::neon::add_to;
        self.act_add_scaled = act::neon::add_scaled;
        self.conv_depthwise = conv::neon::depthwise;
        self.conv_scratch = conv::depthwise_scratch;
        self.resample_across = resample::across;
        self.resample_down = resample::down;
        self.attend_scores = attend::neon::scores;
        self.attend_mix = attend::neon::mix;
        self.attend_fold = attend::neon::fold;
    }

    #[cfg(target_arch = "aarch64")]
    fn take_dotprod(&mut self) {
        use super::arm::{dot::dotprod as dot, gemm};
        take_dots!(self, dot);
        self.gemm_multiply = gemm::dotprod::multiply;
    }

    /// Panels are in another order, which the same table's product knows.
    #[cfg(target_arch = "aarch64")]
    fn take_i8mm(&mut self) {
        use super::arm::{gemm, pack::eights as pack};
        take_packs!(self, pack);
        self.gemm_multiply = gemm::i8mm::multiply;
    }

    fn portable() -> Kernels {
        use portable::*;
        Kernels {
            isa: Isa::Portable,
            dot_f32: dot::f32,
            dot_f16: dot::f16,
            dot_bf16: dot::bf16,
            dot_q4_0: dot::q4_0,
            dot_q4_1: dot::q4_1,
            dot_q5_0: dot::q5_0,
            dot_q5_1: dot::q5_1,
            dot_q8_0: dot::q8_0,
            dot_q2_k: dot::q2_k,
            dot_q3_k: dot::q3_k,
            dot_q4_k: dot::q4_k,
            dot_q5_k: dot::q5_k,
            dot_q6_k: dot::q6_k,
            fine_q4_0: dot::fine_q4_0,
            fine_q4_1: dot::fine_q4_1,
            fine_q5_0: dot::fine_q5_0,
            fine_q5_1: dot::fine_q5_1,
            fine_q8_0: dot::fine_q8_0,
            fine_q2_k: dot::fine_q2_k,
            fine_q3_k: dot::fine_q3_k,
            fine_q4_k: dot::fine_q4_k,
            fine_q5_k: dot::fine_q5_k,
            fine_q6_k: dot::fine_q6_k,
            pack_q4_0: gemm::pack,
            pack_q4_1: gemm::pack,
            pack_q5_0: gemm::pack,
            pack_q5_1: gemm::pack,
            pack_q8_0: gemm::pack,
            pack_q2_k: gemm::pack,
            pack_q3_k: gemm::pack,
            pack_q4_k: gemm::pack,
            pack_q5_k: gemm::pack,
            pack_q6_k: gemm::pack,
            gemm_multiply: gemm::multiply,
            gemm_pack_float: gemm::pack_float,
            gemm_multiply_float: gemm::multiply_float,
            quantize_q8: quantize::q8,
            norm_rms: norm::rms,
            norm_layer: norm::layer,
            softmax_exp: softmax::exp,
            act_gelu: act::gelu,
            act_quick_gelu: act::quick_gelu,
            act_silu_gate: act::silu_gate,
            act_set: act::set,
            act_settle: act::settle,
            act_add: act::add,
            act_add_scaled: act::add_scaled,
            rope_rotate: rope::rotate,
            conv_depthwise: conv::depthwise,
            conv_scratch: conv::depthwise_scratch,
            resample_across: resample::across,
            resample_down: resample::down,
            attend_scores: attend::scores,
            attend_mix: attend::mix,
            attend_fold: attend::fold,
            attend_turn: attend::turn,
        }
    }

    /// The instruction set of the table.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// A weight row of quantised type `ty` with a row of 8-bit activations.
    ///
    /// # Panics
    /// As [`Kernels::dots`].
    pub fn dot(&self, ty: GgmlType, w: &[u8], x: Q8Row<'_>) -> f32 {
        let mut out = [0.0];
        self.dots(ty, w, x, &mut out);
        out[0]
    }

    /// Weight rows of quantised type `ty`, as many as there are results, each with a row of 8-bit activations.
    ///
    /// # Panics
    /// When the rows have another length than `x`, or `ty` is a float type.
    pub fn dots(&self, ty: GgmlType, w: &[u8], x: Q8Row<'_>, out: &mut [f32]) {
        use bytemuck::cast_slice as blocks;
        let k = x.qs.len();
        assert_eq!(ty.row_bytes(k).map(|row| row * out.len()), Some(w.len()), "{} rows of {ty}", out.len());
        assert!(x.d.len() == k / 32 && x.sums.len() == k / 16);
        // SAFETY: `Kernels::for_isa` builds a table only for an `Isa` this CPU reported; rows and activations are
        // equally long, as asserted.
        unsafe {
            match ty {
                GgmlType::Q4_0 => (self.dot_q4_0)(blocks(w), x, out),
                GgmlType::Q4_1 => (self.dot_q4_1)(blocks(w), x, out),
                GgmlType::Q5_0 => (self.dot_q5_0)(blocks(w), x, out),
                GgmlType::Q5_1 => (self.dot_q5_1)(blocks(w), x, out),
                GgmlType::Q8_0 => (self.dot_q8_0)(blocks(w), x, out),
                GgmlType::Q2_K => (self.dot_q2_k)(blocks(w), x, out),
                GgmlType::Q3_K => (self.dot_q3_k)(blocks(w), x, out),
                GgmlType::Q4_K => (self.dot_q4_k)(blocks(w), x, out),
                GgmlType::Q5_K => (self.dot_q5_k)(blocks(w), x, out),
                GgmlType::Q6_K => (self.dot_q6_k)(blocks(w), x, out),
                GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => panic!("{ty} rows take f32 activations"),
            }
        }
    }

    /// A weight row of quantised type `ty` with a row of 16-bit activations.
    ///
    /// # Panics
    /// As [`Kernels::dots`].
    pub fn dot_fine(&self, ty: GgmlType, w: &[u8], x: FineRow<'_>) -> f32 {
        let mut out = [0.0];
        self.dots_fine(ty, w, x, &mut out);
        out[0]
    }

    /// Weight rows of quantised type `ty`, as many as there are results, each with a row of 16-bit activations.
    ///
    /// # Panics
    /// As [`Kernels::dots`].
    pub fn dots_fine(&self, ty: GgmlType, w: &[u8], x: FineRow<'_>, out: &mut [f32]) {
        use bytemuck::cast_slice as blocks;
        for x in x {
            assert_eq!(ty.row_bytes(x.qs.len()).map(|row| row * out.len()), Some(w.len()), "{} rows of {ty}", out.len());
            assert!(x.d.len() == x.qs.len() / 32 && x.sums.len() == x.qs.len() / 16);
        }
        // SAFETY: as in `dots`, for both rows of `x`.
        unsafe {
            match ty {
                GgmlType::Q4_0 => (self.fine_q4_0)(blocks(w), x, out),
                GgmlType::Q4_1 => (self.fine_q4_1)(blocks(w), x, out),
                GgmlType::Q5_0 => (self.fine_q5_0)(blocks(w), x, out),
                GgmlType::Q5_1 => (self.fine_q5_1)(blocks(w), x, out),
                GgmlType::Q8_0 => (self.fine_q8_0)(blocks(w), x, out),
                GgmlType::Q2_K => (self.fine_q2_k)(blocks(w), x, out),
                GgmlType::Q3_K => (self.fine_q3_k)(blocks(w), x, out),
                GgmlType::Q4_K => (self.fine_q4_k)(blocks(w), x, out),
                GgmlType::Q5_K => (self.fine_q5_k)(blocks(w), x, out),
                GgmlType::Q6_K => (self.fine_q6_k)(blocks(w), x, out),
                GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => panic!("{ty} rows take f32 activations"),
            }
        }
    }

    /// A weight row of float type `ty` with a row of activations.
    ///
    /// # Panics
    /// When the row has another length than `x`, or `ty` is a quantised type.
    pub fn dot_float(&self, ty: GgmlType, w: &[u8], x: &[f32]) -> f32 {
        use bytemuck::cast_slice as numbers;
        assert_eq!(ty.row_bytes(x.len()), Some(w.len()), "a row of {ty}");
        // SAFETY: as in `dots`.
        unsafe {
            match ty {
                GgmlType::F32 => (self.dot_f32)(numbers(w), x),
                GgmlType::F16 => (self.dot_f16)(numbers(w), x),
                GgmlType::BF16 => (self.dot_bf16)(numbers(w), x),
                _ => panic!("{ty} rows take 8-bit activations"),
            }
        }
    }

    /// Unpacks up to 16 rows of quantised type `ty` into one panel; see [`portable::gemm::pack`].
    ///
    /// # Panics
    /// When `w` is not `rows` rows of `blocks` activation blocks, an output is too short, or `ty` is a float type.
    #[allow(clippy::too_many_arguments)] // a panel has three parts
    pub fn pack(&self, ty: GgmlType, w: &[u8], rows: usize, blocks: usize, codes: &mut [u8], s: &mut [f32], m: &mut [f32]) {
        use bytemuck::cast_slice as cast;
        let kind = kind(ty).expect("quantised rows are packed");
        let scales = blocks * kind.groups() * PANEL;
        assert!(rows > 0 && rows <= PANEL && ty.row_bytes(32 * blocks).map(|n| n * rows) == Some(w.len()));
        assert!(codes.len() == blocks * PANEL_BLOCK && s.len() == scales && m.len() == if kind.min { scales } else { 0 });
        // SAFETY: the table is for this CPU; the panel has the room that the kernel needs, as asserted.
        unsafe {
            match ty {
                GgmlType::Q4_0 => (self.pack_q4_0)(cast(w), rows, codes, s, m),
                GgmlType::Q4_1 => (self.pack_q4_1)(cast(w), rows, codes, s, m),
                GgmlType::Q5_0 => (self.pack_q5_0)(cast(w), rows, codes, s, m),
                GgmlType::Q5_1 => (self.pack_q5_1)(cast(w), rows, codes, s, m),
                GgmlType::Q8_0 => (self.pack_q8_0)(cast(w), rows, codes, s, m),
                GgmlType::Q2_K => (self.pack_q2_k)(cast(w), rows, codes, s, m),
                GgmlType::Q3_K => (self.pack_q3_k)(cast(w), rows, codes, s, m),
                GgmlType::Q4_K => (self.pack_q4_k)(cast(w), rows, codes, s, m),
                GgmlType::Q5_K => (self.pack_q5_k)(cast(w), rows, codes, s, m),
                GgmlType::Q6_K => (self.pack_q6_k)(cast(w), rows, codes, s, m),
                GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => {}
            }
        }
    }

    /// A batch times panels; see [`portable::gemm::multiply`].
    pub fn multiply(&self, x: Batch<'_>, w: Panels<'_>, out: &mut [f32], stride: usize) {
        let (groups, scales) = (w.kind.groups(), w.count * w.blocks * w.kind.groups() * PANEL);
        assert!(
            x.qs.len() >= x.rows * w.blocks * if x.fine { 64 } else { 32 }
                && x.d.len() >= x.rows * w.blocks
                && x.aux.len() >= x.rows * w.blocks * groups
        );
        assert!(w.codes.len() >= w.count * w.blocks * PANEL_BLOCK && w.s.len() >= scales && (!w.kind.min || w.m.len() >= scales));
        assert!(x.rows > 0 && stride >= w.count * PANEL && out.len() >= (x.rows - 1) * stride + w.count * PANEL);
        // SAFETY: the table is for this CPU; all operands hold `x.rows` rows and `w.count` panels, as asserted.
        unsafe { (self.gemm_multiply)(x, w, out, stride) }
    }

    /// Up to 16 float rows into one panel; see [`portable::gemm::pack_float`].
    pub fn pack_float(&self, w: &[f32], rows: usize, panel: &mut [f32]) {
        assert!(rows > 0 && rows <= PANEL && w.len().is_multiple_of(rows) && panel.len() == w.len() / rows * PANEL);
        // SAFETY: the table is for this CPU; the panel has the room that the kernel needs, as asserted.
        unsafe { (self.gemm_pack_float)(w, rows, panel) }
    }

    /// A batch of float rows times panels; see [`portable::gemm::multiply_float`].
    pub fn multiply_float(&self, x: &[f32], k: usize, w: &[f32], out: &mut [f32], stride: usize) {
        let (rows, panels) = (x.len() / k, w.len() / (k * PANEL));
        assert!(x.len() == rows * k && w.len() == panels * k * PANEL && rows > 0);
        assert!(stride >= panels * PANEL && out.len() >= (rows - 1) * stride + panels * PANEL);
        // SAFETY: the table is for this CPU; all operands hold `rows` rows and `panels` panels, as asserted.
        unsafe { (self.gemm_multiply_float)(x, k, w, out, stride) }
    }

    /// A row of activations in 8 bits; see [`portable::quantize::q8`].
    pub fn quantize_q8(&self, x: &[f32], out: Q8RowMut<'_>) {
        let k = x.len();
        assert!(k.is_multiple_of(32) && out.qs.len() == k && out.d.len() == k / 32 && out.sums.len() == k / 16);
        // SAFETY: the table is for this CPU; the outputs are as long as the kernel needs, as asserted.
        unsafe { (self.quantize_q8)(x, out) }
    }

    /// A row of activations in 16 bits, as the two rows of [`FineRow`]; see [`portable::quantize::low`].
    pub fn quantize_fine(&self, x: &[f32], [high, low]: [Q8RowMut<'_>; 2]) {
        let k = x.len();
        assert!(low.qs.len() == k && low.d.len() == k / 32 && low.sums.len() == k / 16);
        let Q8RowMut { qs, d, sums } = high;
        self.quantize_q8(x, Q8RowMut { qs: &mut *qs, d: &mut *d, sums });
        portable::quantize::low(x, qs, d, low);
    }

    /// See [`portable::norm::rms`].
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert!(weight.len() == x.len() && out.len() == x.len());
        // SAFETY: the table is for this CPU; all rows are equally long, as asserted.
        unsafe { (self.norm_rms)(x, weight, eps, out) }
    }

    /// See [`portable::norm::layer`].
    pub fn layer_norm(&self, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        assert!(weight.len() == x.len() && bias.len() == x.len() && out.len() == x.len());
        // SAFETY: the table is for this CPU; all rows are equally long, as asserted.
        unsafe { (self.norm_layer)(x, weight, bias, eps, out) }
    }

    /// See [`portable::softmax::exp`].
    #[allow(clippy::too_many_arguments)] // rows, and what is noted of each
    pub fn softmax_exp(
        &self,
        scores: &mut [f32],
        stride: usize,
        width: usize,
        valid: &[usize],
        scale: f32,
        tops: &mut [f32],
        sums: &mut [f32],
    ) {
        let n = valid.len();
        assert!(width <= stride && stride > 0 && n > 0 && scores.len() >= (n - 1) * stride + width);
        assert!(tops.len() == n && sums.len() == n && valid.iter().all(|&valid| valid <= width));
        // SAFETY: the table is for this CPU; all rows are there and `valid` is inside them, as asserted.
        unsafe { (self.softmax_exp)(scores, stride, width, valid, scale, tops, sums) }
    }

    /// See [`portable::act::gelu`].
    pub fn gelu(&self, x: &mut [f32]) {
        // SAFETY: the table is for this CPU.
        unsafe { (self.act_gelu)(x) }
    }

    /// See [`portable::act::quick_gelu`].
    pub fn quick_gelu(&self, x: &mut [f32]) {
        // SAFETY: the table is for this CPU.
        unsafe { (self.act_quick_gelu)(x) }
    }

    /// See [`portable::act::silu_gate`].
    pub fn silu_gate(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: the table is for this CPU; both are equally long, as asserted.
        unsafe { (self.act_silu_gate)(gate, up) }
    }

    /// See [`portable::act::set`].
    pub fn set(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: the table is for this CPU; both are equally long, as asserted.
        unsafe { (self.act_set)(x, y) }
    }

    /// See [`portable::act::settle`].
    pub fn settle(&self) {
        // SAFETY: the table is for this CPU.
        unsafe { (self.act_settle)() }
    }

    /// See [`portable::act::add`].
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: the table is for this CPU.
        unsafe { (self.act_add)(x, y) }
    }

    /// See [`portable::act::add_scaled`].
    pub fn add_scaled(&self, x: &mut [f32], scale: &[f32], y: &[f32]) {
        assert!(x.len() == y.len() && x.len() == scale.len());
        // SAFETY: the table is for this CPU.
        unsafe { (self.act_add_scaled)(x, scale, y) }
    }

    /// See [`portable::rope::rotate`].
    pub fn rotate(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert!(!cos.is_empty() && cos.len() == sin.len() && x.len().is_multiple_of(2 * cos.len()));
        // SAFETY: the table is for this CPU; `x` is whole heads, as asserted.
        unsafe { (self.rope_rotate)(x, cos, sin) }
    }

    /// See [`portable::conv::depthwise`]; `scratch` as long as [`Kernels::conv_scratch`] says.
    #[allow(clippy::too_many_arguments)] // shapes of a convolution
    pub fn conv_depthwise(
        &self,
        x: &[f32],
        width: usize,
        channels: usize,
        kernel: &[f32],
        side: usize,
        bias: &[f32],
        rows: Range<usize>,
        out: &mut [f32],
        scratch: &mut [f32],
    ) {
        let row = width * channels;
        assert!(row > 0 && x.len().is_multiple_of(row) && rows.end <= x.len() / row && out.len() == rows.len() * row);
        assert!(side % 2 == 1 && kernel.len() == side * side * channels && bias.len() == channels);
        assert!(scratch.len() >= self.conv_scratch(width, side));
        // SAFETY: the table is for this CPU; all slices have the shapes the kernel needs, as asserted.
        unsafe { (self.conv_depthwise)(x, width, channels, kernel, side, bias, rows, out, scratch) }
    }

    /// See [`portable::resample::across`].
    pub fn resample_across(&self, row: &[u8], firsts: &[u32], weights: &[i32], starts: &[[i32; 3]], out: &mut [u8]) {
        let n = firsts.len();
        assert!(n > 0 && weights.len().is_multiple_of(n) && !weights.is_empty() && starts.len() == n && out.len() == 3 * n);
        // SAFETY: the table is for this CPU; the kernel checks every other place.
        unsafe { (self.resample_across)(row, firsts, weights, starts, out) }
    }

    /// See [`portable::resample::down`].
    pub fn resample_down(&self, rows: &[&[u8]], weights: &[i32], start: [i32; 3], out: &mut [u8]) {
        assert!(rows.len() == weights.len() && out.len().is_multiple_of(3));
        // SAFETY: the table is for this CPU; the kernel checks every other place.
        unsafe { (self.resample_down)(rows, weights, start, out) }
    }

    /// Numbers of scratch that [`Kernels::conv_depthwise`] needs.
    pub fn conv_scratch(&self, width: usize, side: usize) -> usize {
        (self.conv_scratch)(width, side)
    }

    /// See [`portable::attend::scores`].
    #[allow(clippy::too_many_arguments)] // shapes of a product
    pub fn scores(&self, q: &[f32], head_dim: usize, k: Keys<'_>, tiles: usize, room: &mut [f32], out: &mut [f32], stride: usize) {
        let n = q.len() / head_dim;
        let (numbers, width) = (tiles * head_dim * portable::attend::TILE, tiles * portable::attend::TILE);
        assert!(q.len() == n * head_dim && n > 0 && width <= stride && out.len() >= (n - 1) * stride + width && room.len() >= ROOM);
        assert!(match k {
            Keys::F32(k) => k.len() >= numbers,
            Keys::F16(k) => k.len() >= numbers,
            Keys::Q8(k, d) => k.len() >= numbers && d.len() >= numbers / 32 && head_dim.is_multiple_of(32),
        });
        // SAFETY: the table is for this CPU; all slices hold what the kernel reads and writes, as asserted.
        unsafe { (self.attend_scores)(q, head_dim, k, tiles, room, out, stride) }
    }

    /// See [`portable::attend::mix`].
    #[allow(clippy::too_many_arguments)] // shapes of a product
    pub fn mix(&self, p: &[f32], stride: usize, v: Values<'_>, positions: usize, head_dim: usize, room: &mut [f32], out: &mut [f32]) {
        let n = out.len() / head_dim;
        let numbers = positions * head_dim;
        assert!(out.len() == n * head_dim && n > 0 && room.len() >= ROOM);
        assert!(positions > 0 && positions <= stride && p.len() >= (n - 1) * stride + positions);
        assert!(match v {
            Values::F32(v) => v.len() >= numbers,
            Values::F16(v) => v.len() >= numbers,
            Values::Q8(v, d) => v.len() >= numbers && d.len() >= numbers / 32 && head_dim.is_multiple_of(32),
        });
        // SAFETY: the table is for this CPU; all slices hold what the kernel reads and writes, as asserted.
        unsafe { (self.attend_mix)(p, stride, v, positions, head_dim, room, out) }
    }

    /// See [`portable::attend::fold`].
    pub fn fold(&self, into: Share<'_>, part: Share<'_>, head_dim: usize, scale: f32) {
        let n = into.tops.len();
        for share in [&into, &part] {
            assert!(share.tops.len() == n && share.sums.len() == n && share.mixed.len() == n * head_dim);
        }
        // SAFETY: the table is for this CPU; both are of `n` queries, as asserted.
        unsafe { (self.attend_fold)(into, part, head_dim, scale) }
    }

    /// See [`portable::attend::turn`].
    pub fn turn(&self, x: &[f32], stride: usize, rows: usize, cols: usize, out: &mut [f32], out_stride: usize) {
        assert!(rows > 0 && cols > 0 && cols <= stride && x.len() >= (rows - 1) * stride + cols);
        assert!(rows <= out_stride && out.len() >= (cols - 1) * out_stride + rows);
        // SAFETY: the table is for this CPU; rows and columns are there, as asserted.
        unsafe { (self.attend_turn)(x, stride, rows, cols, out, out_stride) }
    }
}

/// What panels of a format hold; `None` for the float formats.
pub fn kind(ty: GgmlType) -> Option<Kind> {
    match ty {
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => None,
        GgmlType::Q4_0 => Some(Kind::of::<BlockQ4_0>()),
        GgmlType::Q4_1 => Some(Kind::of::<BlockQ4_1>()),
        GgmlType::Q5_0 => Some(Kind::of::<BlockQ5_0>()),
        GgmlType::Q5_1 => Some(Kind::of::<BlockQ5_1>()),
        GgmlType::Q8_0 => Some(Kind::of::<BlockQ8_0>()),
        GgmlType::Q2_K => Some(Kind::of::<BlockQ2_K>()),
        GgmlType::Q3_K => Some(Kind::of::<BlockQ3_K>()),
        GgmlType::Q4_K => Some(Kind::of::<BlockQ4_K>()),
        GgmlType::Q5_K => Some(Kind::of::<BlockQ5_K>()),
        GgmlType::Q6_K => Some(Kind::of::<BlockQ6_K>()),
    }
}
