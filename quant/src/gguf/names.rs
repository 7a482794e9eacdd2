//! Tensor names, spelled once. `{i}` and `{j}` stand for layer, stage or block numbers; [`at`] fills them in.

/// `template` with `{i}` replaced by `i` and `{j}` by `j`.
pub fn at(template: &str, i: usize, j: usize) -> String {
    template.replace("{i}", &i.to_string()).replace("{j}", &j.to_string())
}

/// The numbers that make `template` into `name`, 0 where the template has none; `None` when `name` does not come from it.
pub fn numbers(template: &str, name: &str) -> Option<(usize, usize)> {
    let mut parts = name.split('.');
    let (mut i, mut j) = (0, 0);
    for want in template.split('.') {
        let part = parts.next()?;
        match want {
            "{i}" => i = number(part)?,
            "{j}" => j = number(part)?,
            _ if part == want => {}
            _ => return None,
        }
    }
    parts.next().is_none().then_some((i, j))
}

/// A number as [`at`] writes it: digits only, no leading zero.
fn number(part: &str) -> Option<usize> {
    let n = part.parse::<usize>().ok()?;
    (n.to_string() == part).then_some(n)
}

// The language model: llama.cpp's names for architecture `llama`.

/// Token embeddings `[vocabulary, dim]`.
pub const TOKEN_EMBD: &str = "token_embd.weight";
/// Final norm `[dim]`.
pub const OUTPUT_NORM: &str = "output_norm.weight";
/// Logits projection `[vocabulary, dim]`.
pub const OUTPUT: &str = "output.weight";
/// Norm before attention `[dim]`.
pub const ATTN_NORM: &str = "blk.{i}.attn_norm.weight";
/// Query projection `[heads · head_dim, dim]`, rotary pairs adjacent.
pub const ATTN_Q: &str = "blk.{i}.attn_q.weight";
/// Key projection `[kv heads · head_dim, dim]`, rotary pairs adjacent.
pub const ATTN_K: &str = "blk.{i}.attn_k.weight";
/// Value projection `[kv heads · head_dim, dim]`.
pub const ATTN_V: &str = "blk.{i}.attn_v.weight";
/// Output projection of attention `[dim, heads · head_dim]`.
pub const ATTN_OUTPUT: &str = "blk.{i}.attn_output.weight";
/// Norm before the feed-forward part `[dim]`.
pub const FFN_NORM: &str = "blk.{i}.ffn_norm.weight";
/// Gate projection `[hidden, dim]`.
pub const FFN_GATE: &str = "blk.{i}.ffn_gate.weight";
/// Up projection `[hidden, dim]`.
pub const FFN_UP: &str = "blk.{i}.ffn_up.weight";
/// Down projection `[dim, hidden]`.
pub const FFN_DOWN: &str = "blk.{i}.ffn_down.weight";

/// Router of a mixture `[experts, dim]`.
pub const FFN_GATE_INP: &str = "blk.{i}.ffn_gate_inp.weight";
/// Gate projections of all experts `[experts, hidden, dim]`.
pub const FFN_GATE_EXPS: &str = "blk.{i}.ffn_gate_exps.weight";
/// Up projections of all experts `[experts, hidden, dim]`.
pub const FFN_UP_EXPS: &str = "blk.{i}.ffn_up_exps.weight";
/// Down projections of all experts `[experts, dim, hidden]`.
pub const FFN_DOWN_EXPS: &str = "blk.{i}.ffn_down_exps.weight";

// The vision half: names of ours. Matrices are [out, in]; convolutions are stored as the matrix that a patch multiplies.

/// ConvNeXt stem, a 4×4 patch `[width, 3·4·4]`, channel-major inside the patch.
pub const CNX_STEM_W: &str = "v.cnx.stem.weight";
/// ConvNeXt stem bias.
pub const CNX_STEM_B: &str = "v.cnx.stem.bias";
/// LayerNorm after the stem.
pub const CNX_STEM_NORM_W: &str = "v.cnx.stem_norm.weight";
/// LayerNorm after the stem, bias.
pub const CNX_STEM_NORM_B: &str = "v.cnx.stem_norm.bias";
/// LayerNorm before the down-sampling of stage `{i}`.
pub const CNX_DOWN_NORM_W: &str = "v.cnx.{i}.down_norm.weight";
/// LayerNorm before the down-sampling of stage `{i}`, bias.
pub const CNX_DOWN_NORM_B: &str = "v.cnx.{i}.down_norm.bias";
/// 2×2 down-sampling convolution `[out, 2·2·in]`, in the order (row, column, channel).
pub const CNX_DOWN_W: &str = "v.cnx.{i}.down.weight";
/// Down-sampling bias.
pub const CNX_DOWN_B: &str = "v.cnx.{i}.down.bias";
/// Depthwise 7×7 kernel `[7·7, width]`, channels last.
pub const CNX_DW_W: &str = "v.cnx.{i}.{j}.dw.weight";
/// Depthwise bias.
pub const CNX_DW_B: &str = "v.cnx.{i}.{j}.dw.bias";
/// LayerNorm of a block.
pub const CNX_NORM_W: &str = "v.cnx.{i}.{j}.norm.weight";
/// LayerNorm of a block, bias.
pub const CNX_NORM_B: &str = "v.cnx.{i}.{j}.norm.bias";
/// First linear of a block `[4·width, width]`.
pub const CNX_FC1_W: &str = "v.cnx.{i}.{j}.fc1.weight";
/// First linear of a block, bias.
pub const CNX_FC1_B: &str = "v.cnx.{i}.{j}.fc1.bias";
/// Second linear of a block `[width, 4·width]`.
pub const CNX_FC2_W: &str = "v.cnx.{i}.{j}.fc2.weight";
/// Second linear of a block, bias.
pub const CNX_FC2_B: &str = "v.cnx.{i}.{j}.fc2.bias";
/// Per-channel scale of a block `[width]`.
pub const CNX_GAMMA: &str = "v.cnx.{i}.{j}.gamma";
/// LayerNorm of the head.
pub const CNX_HEAD_NORM_W: &str = "v.cnx.norm.weight";
/// LayerNorm of the head, bias.
pub const CNX_HEAD_NORM_B: &str = "v.cnx.norm.bias";

/// DINOv2 patch embedding `[width, 3·14·14]`, channel-major inside the patch.
pub const DINO_PATCH_W: &str = "v.dino.patch.weight";
/// DINOv2 patch embedding, bias.
pub const DINO_PATCH_B: &str = "v.dino.patch.bias";
/// Class token `[width]`.
pub const DINO_CLS: &str = "v.dino.cls";
/// Position table, already resized to the encoder's grid: `[1 + grid², width]`, class row first.
pub const DINO_POS: &str = "v.dino.pos";
/// First LayerNorm of block `{i}`.
pub const DINO_NORM1_W: &str = "v.dino.{i}.norm1.weight";
/// First LayerNorm of block `{i}`, bias.
pub const DINO_NORM1_B: &str = "v.dino.{i}.norm1.bias";
/// Packed q, k, v `[3·width, width]`.
pub const DINO_QKV_W: &str = "v.dino.{i}.qkv.weight";
/// Packed q, k, v, bias.
pub const DINO_QKV_B: &str = "v.dino.{i}.qkv.bias";
/// Output projection of attention `[width, width]`.
pub const DINO_PROJ_W: &str = "v.dino.{i}.proj.weight";
/// Output projection of attention, bias.
pub const DINO_PROJ_B: &str = "v.dino.{i}.proj.bias";
/// LayerScale after attention `[width]`.
pub const DINO_LS1: &str = "v.dino.{i}.ls1";
/// Second LayerNorm of block `{i}`.
pub const DINO_NORM2_W: &str = "v.dino.{i}.norm2.weight";
/// Second LayerNorm of block `{i}`, bias.
pub const DINO_NORM2_B: &str = "v.dino.{i}.norm2.bias";
/// SwiGLU gate and up in one `[2·hidden, width]`, gate first.
pub const DINO_W12_W: &str = "v.dino.{i}.w12.weight";
/// SwiGLU gate and up, bias.
pub const DINO_W12_B: &str = "v.dino.{i}.w12.bias";
/// SwiGLU down `[width, hidden]`.
pub const DINO_W3_W: &str = "v.dino.{i}.w3.weight";
/// SwiGLU down, bias.
pub const DINO_W3_B: &str = "v.dino.{i}.w3.bias";
/// Plain MLP (variants without SwiGLU), first linear.
pub const DINO_FC1_W: &str = "v.dino.{i}.fc1.weight";
/// Plain MLP, first bias.
pub const DINO_FC1_B: &str = "v.dino.{i}.fc1.bias";
/// Plain MLP, second linear.
pub const DINO_FC2_W: &str = "v.dino.{i}.fc2.weight";
/// Plain MLP, second bias.
pub const DINO_FC2_B: &str = "v.dino.{i}.fc2.bias";
/// LayerScale after the MLP `[width]`.
pub const DINO_LS2: &str = "v.dino.{i}.ls2";
/// Final LayerNorm.
pub const DINO_NORM_W: &str = "v.dino.norm.weight";
/// Final LayerNorm, bias.
pub const DINO_NORM_B: &str = "v.dino.norm.bias";

/// Projection of the concatenated features `[dim, features]`.
pub const PROJ_W: &str = "v.proj.weight";
/// Projection of the concatenated features, bias.
pub const PROJ_B: &str = "v.proj.bias";
/// LayerNorm after the projection.
pub const PROJ_NORM_W: &str = "v.proj_norm.weight";
/// LayerNorm after the projection, bias.
pub const PROJ_NORM_B: &str = "v.proj_norm.bias";
/// Learned row before every view `[dim]`.
pub const START_IMG: &str = "v.start_img";
/// Learned row after every view `[dim]`.
pub const END_IMG: &str = "v.end_img";
