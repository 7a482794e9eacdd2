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

/// Gate projections of a run of experts, the first being `{j}`: `[experts of the run, hidden, dim]`. A recipe that gives experts
/// of one layer different formats cuts the stack into such runs; stock tools do not read them.
pub const FFN_GATE_EXPS_FROM: &str = "blk.{i}.ffn_gate_exps.{j}.weight";
/// Up projections of a run of experts, the first being `{j}`.
pub const FFN_UP_EXPS_FROM: &str = "blk.{i}.ffn_up_exps.{j}.weight";
/// Down projections of a run of experts, the first being `{j}`: `[experts of the run, dim, hidden]`.
pub const FFN_DOWN_EXPS_FROM: &str = "blk.{i}.ffn_down_exps.{j}.weight";

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

/// CLIP patch embedding `[width, 3·14·14]`, channel-major inside the patch; it has no bias.
pub const CLIP_PATCH_W: &str = "v.clip.patch.weight";
/// Class token `[width]`.
pub const CLIP_CLS: &str = "v.clip.cls";
/// Position table `[1 + grid², width]`, class row first.
pub const CLIP_POS: &str = "v.clip.pos";
/// LayerNorm in front of the first block.
pub const CLIP_PRE_NORM_W: &str = "v.clip.pre_norm.weight";
/// LayerNorm in front of the first block, bias.
pub const CLIP_PRE_NORM_B: &str = "v.clip.pre_norm.bias";
/// First LayerNorm of block `{i}`.
pub const CLIP_NORM1_W: &str = "v.clip.{i}.norm1.weight";
/// First LayerNorm of block `{i}`, bias.
pub const CLIP_NORM1_B: &str = "v.clip.{i}.norm1.bias";
/// Packed q, k, v `[3·width, width]`.
pub const CLIP_QKV_W: &str = "v.clip.{i}.qkv.weight";
/// Packed q, k, v `[3·width, width]`, bias.
pub const CLIP_QKV_B: &str = "v.clip.{i}.qkv.bias";
/// Output projection of attention `[width, width]`.
pub const CLIP_PROJ_W: &str = "v.clip.{i}.proj.weight";
/// Output projection of attention `[width, width]`, bias.
pub const CLIP_PROJ_B: &str = "v.clip.{i}.proj.bias";
/// Second LayerNorm of block `{i}`.
pub const CLIP_NORM2_W: &str = "v.clip.{i}.norm2.weight";
/// Second LayerNorm of block `{i}`, bias.
pub const CLIP_NORM2_B: &str = "v.clip.{i}.norm2.bias";
/// First linear of the MLP `[hidden, width]`.
pub const CLIP_FC1_W: &str = "v.clip.{i}.fc1.weight";
/// First linear of the MLP `[hidden, width]`, bias.
pub const CLIP_FC1_B: &str = "v.clip.{i}.fc1.bias";
/// Second linear of the MLP `[width, hidden]`.
pub const CLIP_FC2_W: &str = "v.clip.{i}.fc2.weight";
/// Second linear of the MLP `[width, hidden]`, bias.
pub const CLIP_FC2_B: &str = "v.clip.{i}.fc2.bias";
/// LayerNorm over all tokens at the end.
pub const CLIP_NORM_W: &str = "v.clip.norm.weight";
/// LayerNorm over all tokens at the end, bias.
pub const CLIP_NORM_B: &str = "v.clip.norm.bias";

/// EVA patch embedding `[width, 3·14·14]`, channel-major inside the patch.
pub const EVA_PATCH_W: &str = "v.eva.patch.weight";
/// EVA patch embedding, bias.
pub const EVA_PATCH_B: &str = "v.eva.patch.bias";
/// Class token `[width]`.
pub const EVA_CLS: &str = "v.eva.cls";
/// Position table `[1 + grid², width]`, class row first.
pub const EVA_POS: &str = "v.eva.pos";
/// First LayerNorm of block `{i}`.
pub const EVA_NORM1_W: &str = "v.eva.{i}.norm1.weight";
/// First LayerNorm of block `{i}`, bias.
pub const EVA_NORM1_B: &str = "v.eva.{i}.norm1.bias";
/// Packed q, k, v `[3·width, width]`.
pub const EVA_QKV_W: &str = "v.eva.{i}.qkv.weight";
/// Packed q, k, v `[3·width, width]`, bias.
pub const EVA_QKV_B: &str = "v.eva.{i}.qkv.bias";
/// Output projection of attention `[width, width]`.
pub const EVA_PROJ_W: &str = "v.eva.{i}.proj.weight";
/// Output projection of attention `[width, width]`, bias.
pub const EVA_PROJ_B: &str = "v.eva.{i}.proj.bias";
/// Second LayerNorm of block `{i}`.
pub const EVA_NORM2_W: &str = "v.eva.{i}.norm2.weight";
/// Second LayerNorm of block `{i}`, bias.
pub const EVA_NORM2_B: &str = "v.eva.{i}.norm2.bias";
/// First linear of the MLP `[hidden, width]`.
pub const EVA_FC1_W: &str = "v.eva.{i}.fc1.weight";
/// First linear of the MLP `[hidden, width]`, bias.
pub const EVA_FC1_B: &str = "v.eva.{i}.fc1.bias";
/// Second linear of the MLP `[width, hidden]`.
pub const EVA_FC2_W: &str = "v.eva.{i}.fc2.weight";
/// Second linear of the MLP `[width, hidden]`, bias.
pub const EVA_FC2_B: &str = "v.eva.{i}.fc2.bias";
/// LayerNorm over all tokens at the end.
pub const EVA_NORM_W: &str = "v.eva.norm.weight";
/// LayerNorm over all tokens at the end, bias.
pub const EVA_NORM_B: &str = "v.eva.norm.bias";

/// Learned queries of the Q-Former `[queries, width]`.
pub const QF_QUERY: &str = "v.qf.query";
/// LayerNorm of the queries.
pub const QF_EMBD_NORM_W: &str = "v.qf.embd_norm.weight";
/// LayerNorm of the queries, bias.
pub const QF_EMBD_NORM_B: &str = "v.qf.embd_norm.bias";
/// Query projection of self-attention in layer `{i}` `[width, width]`.
pub const QF_Q_W: &str = "v.qf.{i}.q.weight";
/// Query projection of self-attention in layer `{i}` `[width, width]`, bias.
pub const QF_Q_B: &str = "v.qf.{i}.q.bias";
/// Key projection of self-attention in layer `{i}` `[width, width]`.
pub const QF_K_W: &str = "v.qf.{i}.k.weight";
/// Key projection of self-attention in layer `{i}` `[width, width]`, bias.
pub const QF_K_B: &str = "v.qf.{i}.k.bias";
/// Value projection of self-attention in layer `{i}` `[width, width]`.
pub const QF_V_W: &str = "v.qf.{i}.v.weight";
/// Value projection of self-attention in layer `{i}` `[width, width]`, bias.
pub const QF_V_B: &str = "v.qf.{i}.v.bias";
/// Output projection of self-attention.
pub const QF_PROJ_W: &str = "v.qf.{i}.proj.weight";
/// Output projection of self-attention, bias.
pub const QF_PROJ_B: &str = "v.qf.{i}.proj.bias";
/// LayerNorm after self-attention.
pub const QF_NORM_W: &str = "v.qf.{i}.norm.weight";
/// LayerNorm after self-attention, bias.
pub const QF_NORM_B: &str = "v.qf.{i}.norm.bias";
/// Query projection of cross-attention `[width, width]`, in every other layer.
pub const QF_CROSS_Q_W: &str = "v.qf.{i}.cross_q.weight";
/// Query projection of cross-attention `[width, width]`, in every other layer, bias.
pub const QF_CROSS_Q_B: &str = "v.qf.{i}.cross_q.bias";
/// Key projection of cross-attention `[width, EVA width]`.
pub const QF_CROSS_K_W: &str = "v.qf.{i}.cross_k.weight";
/// Key projection of cross-attention `[width, EVA width]`, bias.
pub const QF_CROSS_K_B: &str = "v.qf.{i}.cross_k.bias";
/// Value projection of cross-attention `[width, EVA width]`.
pub const QF_CROSS_V_W: &str = "v.qf.{i}.cross_v.weight";
/// Value projection of cross-attention `[width, EVA width]`, bias.
pub const QF_CROSS_V_B: &str = "v.qf.{i}.cross_v.bias";
/// Output projection of cross-attention.
pub const QF_CROSS_PROJ_W: &str = "v.qf.{i}.cross_proj.weight";
/// Output projection of cross-attention, bias.
pub const QF_CROSS_PROJ_B: &str = "v.qf.{i}.cross_proj.bias";
/// LayerNorm after cross-attention.
pub const QF_CROSS_NORM_W: &str = "v.qf.{i}.cross_norm.weight";
/// LayerNorm after cross-attention, bias.
pub const QF_CROSS_NORM_B: &str = "v.qf.{i}.cross_norm.bias";
/// First linear of the feed-forward part `[hidden, width]`.
pub const QF_FC1_W: &str = "v.qf.{i}.fc1.weight";
/// First linear of the feed-forward part `[hidden, width]`, bias.
pub const QF_FC1_B: &str = "v.qf.{i}.fc1.bias";
/// Second linear of the feed-forward part `[width, hidden]`.
pub const QF_FC2_W: &str = "v.qf.{i}.fc2.weight";
/// Second linear of the feed-forward part `[width, hidden]`, bias.
pub const QF_FC2_B: &str = "v.qf.{i}.fc2.bias";
/// LayerNorm after the feed-forward part.
pub const QF_FFN_NORM_W: &str = "v.qf.{i}.ffn_norm.weight";
/// LayerNorm after the feed-forward part, bias.
pub const QF_FFN_NORM_B: &str = "v.qf.{i}.ffn_norm.bias";

/// Projection of the Q-Former's rows `[dim, Q-Former width]`.
pub const QPROJ_W: &str = "v.qproj.weight";
/// Projection of the Q-Former's rows `[dim, Q-Former width]`, bias.
pub const QPROJ_B: &str = "v.qproj.bias";
/// LayerNorm after the projection of the Q-Former's rows.
pub const QPROJ_NORM_W: &str = "v.qproj_norm.weight";
/// LayerNorm after the projection of the Q-Former's rows, bias.
pub const QPROJ_NORM_B: &str = "v.qproj_norm.bias";
/// Learned rows that stand for an empty sub-image: `[tokens, dim]`, or `[sub-images · tokens, dim]`, one set per place.
pub const SKIP_TOKEN: &str = "v.skip_token";
