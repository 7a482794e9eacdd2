//! Metadata keys, spelled once.
//!
//! Standard keys (`general.*`, `llama.*`, `tokenizer.ggml.*`) mean what the GGUF specification says. Our own start
//! with `sphinx.` in the language half and `sphinx-vision.` in the vision half; [`Half::key`] puts the prefix on.

/// Which of a model's two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// `NAME.gguf`: the language model.
    Language,
    /// `mmproj-NAME.gguf`: encoders, projections, image tags.
    Vision,
}

impl Half {
    /// The half that a file of architecture `arch` is.
    pub fn of(arch: &str) -> Half {
        if arch == ARCH_VISION { Half::Vision } else { Half::Language }
    }

    /// Prefix of our own keys, without the dot.
    pub const fn prefix(self) -> &'static str {
        match self {
            Half::Language => "sphinx",
            Half::Vision => ARCH_VISION,
        }
    }

    /// Our key `name` in this half.
    pub fn key(self, name: &str) -> String {
        format!("{}.{name}", self.prefix())
    }
}

/// Architecture of the vision half.
pub const ARCH_VISION: &str = "sphinx-vision";
/// Architecture of a language half whose stacks of experts are cut into runs: for this runtime only.
pub const ARCH_SPLIT: &str = "sphinx-llama";

/// str.
pub const ARCHITECTURE: &str = "general.architecture";
/// str.
pub const NAME: &str = "general.name";
/// str: `imatrix` for an importance matrix, which may lack an architecture.
pub const TYPE: &str = "general.type";
/// u32, llama.cpp's file type number.
pub const FILE_TYPE: &str = "general.file_type";
/// u32, 2 when anything is quantised.
pub const QUANTIZATION_VERSION: &str = "general.quantization_version";
/// u32, only when not 32.
pub const ALIGNMENT: &str = "general.alignment";

// With the architecture in front: `llama.context_length`. All u32 unless said.

/// Positions the model is used with.
pub const CONTEXT_LENGTH: &str = "context_length";
/// Width of a row.
pub const EMBEDDING_LENGTH: &str = "embedding_length";
/// Decoder layers.
pub const BLOCK_COUNT: &str = "block_count";
/// Hidden width of the feed-forward part (of one expert in a mixture).
pub const FEED_FORWARD_LENGTH: &str = "feed_forward_length";
/// Query heads.
pub const HEAD_COUNT: &str = "attention.head_count";
/// Key and value heads.
pub const HEAD_COUNT_KV: &str = "attention.head_count_kv";
/// f32.
pub const RMS_EPS: &str = "attention.layer_norm_rms_epsilon";
/// f32.
pub const ROPE_BASE: &str = "rope.freq_base";
/// Width of a head.
pub const ROPE_DIM: &str = "rope.dimension_count";
/// Pieces in the vocabulary.
pub const VOCAB_SIZE: &str = "vocab_size";
/// str, `linear`.
pub const ROPE_SCALING_TYPE: &str = "rope.scaling.type";
/// f32, 1 / rope_scaling.
pub const ROPE_SCALING_FACTOR: &str = "rope.scaling.factor";
/// Experts of a mixture.
pub const EXPERT_COUNT: &str = "expert_count";
/// Experts used per token.
pub const EXPERT_USED_COUNT: &str = "expert_used_count";

// Importance matrices, as llama.cpp writes them.

/// str array: the files that the activations came from.
pub const IMATRIX_DATASETS: &str = "imatrix.datasets";
/// u32: pieces of those that went through the model.
pub const IMATRIX_CHUNK_COUNT: &str = "imatrix.chunk_count";
/// u32: tokens in such a piece.
pub const IMATRIX_CHUNK_SIZE: &str = "imatrix.chunk_size";

/// str, `llama`.
pub const TOK_MODEL: &str = "tokenizer.ggml.model";
/// str, `default`.
pub const TOK_PRE: &str = "tokenizer.ggml.pre";
/// str array.
pub const TOK_TOKENS: &str = "tokenizer.ggml.tokens";
/// f32 array.
pub const TOK_SCORES: &str = "tokenizer.ggml.scores";
/// i32 array: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
pub const TOK_TYPES: &str = "tokenizer.ggml.token_type";
/// u32.
pub const TOK_BOS: &str = "tokenizer.ggml.bos_token_id";
/// u32.
pub const TOK_EOS: &str = "tokenizer.ggml.eos_token_id";
/// u32.
pub const TOK_UNK: &str = "tokenizer.ggml.unknown_token_id";
/// bool.
pub const TOK_ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
/// bool.
pub const TOK_ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
/// bool.
pub const TOK_ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";

// Ours, in both halves (through [`Half::key`]).

/// str: 32 hex digits, a hash of the source tensors' checksums; equal in the two halves of a model.
pub const PAIR_ID: &str = "pair_id";
/// str: the checkpoint's `llama_type`.
pub const LLAMA_TYPE: &str = "llama_type";
/// u64: XXH3-64 of the bytes before the tensor data, with these eight bytes taken as zero. The first key of a file of ours.
pub const CHECKSUM_HEADER: &str = "checksum.header";
/// u64 array: XXH3-64 of each tensor's bytes, in file order. The last key of a file of ours.
pub const CHECKSUM_TENSORS: &str = "checksum.tensors";

// Ours, language half only.

/// u64 array: XXH3-64 of each expert's bytes, for every stack of experts in file order, so that an expert that is read alone can be
/// checked alone. Files without experts, and those of older versions, have none.
pub const CHECKSUM_EXPERTS: &str = "checksum.experts";

/// u32: rows that a picture adds after BOS.
pub const IMAGE_ROWS: &str = "image_rows";
/// str: chat template, `v1`.
pub const TEMPLATE: &str = "template";
/// str array: texts that end a reply.
pub const STOP: &str = "stop";
/// u32: `max_seq_len` of the checkpoint's config.json.
pub const CONFIG_MAX_SEQ_LEN: &str = "config_max_seq_len";
/// u32: id of the piece that is the NUL character, which stands under another text in the token list.
pub const NUL_PIECE: &str = "nul_piece_id";

// Ours, vision half only. u32 unless said. These describe the layout in whole: the runtime never looks at the type's name.

/// Width of the rows that enter the decoder.
pub const PROJECTION_DIM: &str = "projection_dim";
/// Side of the preprocessed square.
pub const IMAGE_SIZE: &str = "image.size";
/// f32 array of 3: mean of the square's normalisation.
pub const IMAGE_MEAN: &str = "image.mean";
/// f32 array of 3: standard deviation of the square's normalisation.
pub const IMAGE_STD: &str = "image.std";
/// u8 array of 3: colour of the square padding.
pub const PAD_RGB: &str = "pad.rgb";
/// str: `centre` or `top_left`.
pub const PAD_ANCHOR: &str = "pad.anchor";
/// Sub-images per side; 0 for the global view only.
pub const GRID: &str = "grid";
/// str array: encoders in the order in which their features are concatenated (`clip`, `convnext`, `dinov2`).
pub const ENCODERS: &str = "encoders";
/// Side of a ViT input.
pub const VIT_INPUT: &str = "vit.input";
/// Side of the square from which ViT tiles are cut.
pub const VIT_BOARD: &str = "vit.board";
/// Side of a ConvNeXt input.
pub const CONVNEXT_INPUT: &str = "convnext.input";
/// Side of the square from which ConvNeXt tiles are cut; 0: nearest resize of the ViT tile.
pub const CONVNEXT_BOARD: &str = "convnext.board";
/// u32 array: blocks per stage.
pub const CONVNEXT_DEPTHS: &str = "convnext.depths";
/// u32 array: width per stage.
pub const CONVNEXT_WIDTHS: &str = "convnext.widths";
/// f32.
pub const CONVNEXT_EPS: &str = "convnext.layer_norm_epsilon";
/// Blocks of DINOv2.
pub const DINO_BLOCK_COUNT: &str = "dinov2.block_count";
/// Width of DINOv2.
pub const DINO_EMBEDDING_LENGTH: &str = "dinov2.embedding_length";
/// Hidden width of its MLP.
pub const DINO_FEED_FORWARD_LENGTH: &str = "dinov2.feed_forward_length";
/// Heads of DINOv2.
pub const DINO_HEAD_COUNT: &str = "dinov2.attention.head_count";
/// Side of a patch.
pub const DINO_PATCH: &str = "dinov2.patch_size";
/// f32.
pub const DINO_EPS: &str = "dinov2.layer_norm_epsilon";
/// str: `swiglu` or `gelu`.
pub const DINO_MLP: &str = "dinov2.mlp";
/// f32 array of 3: mean of DINOv2's own normalisation.
pub const DINO_MEAN: &str = "dinov2.image.mean";
/// f32 array of 3: standard deviation of DINOv2's own normalisation.
pub const DINO_STD: &str = "dinov2.image.std";
/// f32: epsilon of the projection's LayerNorm.
pub const PROJ_EPS: &str = "projector.layer_norm_epsilon";
/// str array: what the rows of a view are, in order: `qformer` (one row per query), `features` (a class row and one per patch).
/// `["features"]` when absent.
pub const VIEW_ROWS: &str = "view.rows";
/// bool: whether the patch rows of sub-images are averaged over 2×2 neighbourhoods before the projection; false when absent.
pub const VIEW_POOL_PARTS: &str = "view.pool_parts";
/// bool: whether a view stands between a start row and an end row; true when absent.
pub const VIEW_TAGGED: &str = "view.tagged";
/// str: `pad_resize` or `resize_pad`, which of the two comes first; `pad_resize` when absent.
pub const PAD_ORDER: &str = "pad.order";
/// bool: whether an empty sub-image is not encoded and learned rows stand for it; false when absent.
pub const SKIP_ENABLED: &str = "skip.enabled";
/// Rows that stand for an empty sub-image; 1 when absent.
pub const SKIP_TOKENS: &str = "skip.tokens";
/// bool: whether these stand between a start row and an end row; false when absent.
pub const SKIP_TAGGED: &str = "skip.tagged";
/// Blocks of CLIP's visual tower.
pub const CLIP_BLOCK_COUNT: &str = "clip.block_count";
/// Width of CLIP's visual tower.
pub const CLIP_EMBEDDING_LENGTH: &str = "clip.embedding_length";
/// Hidden width of its MLP.
pub const CLIP_FEED_FORWARD_LENGTH: &str = "clip.feed_forward_length";
/// Heads of CLIP's visual tower.
pub const CLIP_HEAD_COUNT: &str = "clip.attention.head_count";
/// f32.
pub const CLIP_EPS: &str = "clip.layer_norm_epsilon";
/// Side of a patch.
pub const CLIP_PATCH: &str = "clip.patch_size";
/// Blocks of the EVA tower that the Q-Former looks at.
pub const EVA_BLOCK_COUNT: &str = "eva.block_count";
/// Width of the EVA tower that the Q-Former looks at.
pub const EVA_EMBEDDING_LENGTH: &str = "eva.embedding_length";
/// Hidden width of its MLP.
pub const EVA_FEED_FORWARD_LENGTH: &str = "eva.feed_forward_length";
/// Heads of the EVA tower that the Q-Former looks at.
pub const EVA_HEAD_COUNT: &str = "eva.attention.head_count";
/// f32.
pub const EVA_EPS: &str = "eva.layer_norm_epsilon";
/// Side of a patch.
pub const EVA_PATCH: &str = "eva.patch_size";
/// Blocks of the Q-Former.
pub const QF_BLOCK_COUNT: &str = "qformer.block_count";
/// Width of the Q-Former.
pub const QF_EMBEDDING_LENGTH: &str = "qformer.embedding_length";
/// Hidden width of its MLP.
pub const QF_FEED_FORWARD_LENGTH: &str = "qformer.feed_forward_length";
/// Heads of the Q-Former.
pub const QF_HEAD_COUNT: &str = "qformer.attention.head_count";
/// f32.
pub const QF_EPS: &str = "qformer.layer_norm_epsilon";
/// bool: whether CLIP's MLP uses QuickGELU, as its training did, rather than GELU, as the public inference code does.
pub const CLIP_QUICK_GELU: &str = "clip.use_quick_gelu";
/// Learned queries of the Q-Former.
pub const QF_QUERIES: &str = "qformer.query_count";
/// Layer 0 and every layer that is a multiple of this look at the EVA tower's rows.
pub const QF_CROSS_EVERY: &str = "qformer.cross_attention_frequency";
