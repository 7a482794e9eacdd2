//! What a `llama_type` is: which language model, and how a picture is cut up for which encoders.
//!
//! A variant is data. Nothing after this file asks for a type's name; to add a member of the family, add a row to
//! [`VARIANTS`] (and, for a new part, its registry).

use std::path::Path;

use crate::checkpoint::Checkpoint;
use crate::error::{ConvertError, Result};

/// The kinds of decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// One feed-forward part per layer, rotary pairs adjacent: LLaMA as Meta stores it.
    Dense,
}

/// The picture encoders, in the order in which their features are put side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoder {
    /// ConvNeXt-XXLarge of OpenCLIP.
    ConvNext,
    /// DINOv2 ViT-g/14.
    Dinov2,
}

impl Encoder {
    /// Its name in the metadata.
    pub fn name(self) -> &'static str {
        match self {
            Encoder::ConvNext => "convnext",
            Encoder::Dinov2 => "dinov2",
        }
    }
}

/// From a picture to what the encoders see. Sides are in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Side of the preprocessed square.
    pub image_size: u32,
    /// Sub-images per side; 0 for the global view only.
    pub grid: u32,
    /// Side of a ViT input.
    pub vit_input: u32,
    /// Side of the square from which ViT tiles are cut.
    pub vit_board: u32,
    /// Side of a ConvNeXt input.
    pub convnext_input: u32,
    /// Side of the square from which ConvNeXt tiles are cut; 0: nearest resize of the ViT tile.
    pub convnext_board: u32,
    /// Encoders in the order of their features.
    pub encoders: &'static [Encoder],
}

/// Side of a ViT patch, the same in every member of the family.
pub const VIT_PATCH: u32 = 14;

impl Layout {
    /// Views of one picture: the whole, then its parts.
    pub fn views(&self) -> u32 {
        1 + self.grid * self.grid
    }

    /// Patches per side of a ViT input.
    pub fn vit_grid(&self) -> u32 {
        self.vit_input / VIT_PATCH
    }

    /// Rows that a picture adds after BOS: per view a start row, a class row, the patches, an end row.
    pub fn image_rows(&self) -> u32 {
        self.views() * (3 + self.vit_grid() * self.vit_grid())
    }
}

/// A member of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Its name in `meta.json`.
    pub llama_type: &'static str,
    /// Its decoder.
    pub language: Language,
    /// How it sees; `None` for text only.
    pub vision: Option<Layout>,
    /// `dim`, `n_layers` and `n_heads` when config.json does not say.
    pub defaults: (u32, u32, u32),
}

const LIGHT: &[Encoder] = &[Encoder::ConvNext, Encoder::Dinov2];

/// What this version converts.
pub const VARIANTS: &[Variant] = &[
    Variant {
        llama_type: "llama_ens_light",
        language: Language::Dense,
        vision: Some(Layout {
            image_size: 512,
            grid: 0,
            vit_input: 224,
            vit_board: 224,
            convnext_input: 512,
            convnext_board: 512,
            encoders: LIGHT,
        }),
        defaults: (5120, 40, 40),
    },
    Variant {
        llama_type: "llama_ens5_light",
        language: Language::Dense,
        vision: Some(Layout {
            image_size: 1024,
            grid: 2,
            vit_input: 224,
            vit_board: 448,
            convnext_input: 512,
            convnext_board: 1024,
            encoders: LIGHT,
        }),
        defaults: (5120, 40, 40),
    },
    Variant { llama_type: "llama", language: Language::Dense, vision: None, defaults: (4096, 32, 32) },
];

/// Members of the family that this version knows by name and does not convert yet.
const NOT_YET: &[&str] = &[
    "llama_ens",
    "llama_ens5",
    "llama_ens5p2",
    "llama_ens10",
    "mixtral",
    "mixtral_sparse",
    "mixtral_sparse_ens",
    "mixtral_sparse_ens5",
    "mixtral_sparse_ens_light",
    "mixtral_sparse_ens5_light",
    "mistral",
    "mistral_sparse",
    "internlm2_ens_light",
    "internlm2_ens5_light",
];

/// The names in [`VARIANTS`], for messages.
pub fn supported() -> String {
    VARIANTS.iter().map(|v| v.llama_type).collect::<Vec<_>>().join(", ")
}

/// The variant called `llama_type`; the name came from `file`.
///
/// # Errors
/// `Invalid`, naming the type and what is supported, for anything else: apart for types of the family that are not
/// converted yet, for types of the same code base that do not belong to it, and for unknown words.
pub fn find(llama_type: &str, file: &Path) -> Result<&'static Variant> {
    if let Some(v) = VARIANTS.iter().find(|v| v.llama_type == llama_type) {
        return Ok(v);
    }
    let shown = sphinx_quant::error::printable(llama_type);
    let foreign = llama_type.ends_with("_peft")
        || llama_type == "llama_adapter"
        || llama_type.starts_with("llama_qformerv2")
        || llama_type.starts_with("falcon")
        || llama_type == "internlm";
    let what = if NOT_YET.contains(&llama_type) {
        format!("llama_type \"{shown}\" is not supported by this version yet")
    } else if foreign {
        format!("llama_type \"{shown}\" is not a member of the SPHINX family and is not supported")
    } else {
        format!("llama_type \"{shown}\" is unknown")
    };
    Err(ConvertError::invalid(file, what, format!("supported types: {}", supported())))
}

/// The variant of a checkpoint: what the caller says, else `meta.json`, else what the tensor names leave no doubt about.
///
/// # Errors
/// `Invalid` when the type is not supported, or is not stated and cannot be told from the names.
pub fn of_checkpoint(checkpoint: &Checkpoint, stated: Option<&str>) -> Result<&'static Variant> {
    let folder = checkpoint.folder();
    if let Some(llama_type) = stated {
        return find(llama_type, folder);
    }
    if let Some(llama_type) = checkpoint.llama_type() {
        return find(llama_type, &folder.join("meta.json"));
    }
    let has = |part: &str| checkpoint.names().any(|n| n.contains(part));
    let ask = |what: &str, which: &str| {
        ConvertError::invalid(
            folder,
            format!("no meta.json says which llama_type this is{what}"),
            format!("state it with --llama-type: {which}"),
        )
    };
    if has("feed_forward.gate") {
        Err(ask(", and sparse mixtures are not supported yet", &format!("supported types: {}", supported())))
    } else if has("qformer_proj") {
        Err(ask(", and models with a Q-Former are not supported yet", &format!("supported types: {}", supported())))
    } else if has("visual_proj") {
        Err(ask("; the tensors do not show how many views it uses", "llama_ens_light (one view) or llama_ens5_light (five)"))
    } else if has("attention.wqkv") {
        Err(ask(", and fused attention weights are not supported yet", &format!("supported types: {}", supported())))
    } else {
        find("llama", folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_rows_are_the_published_ones() {
        let rows = |t| find(t, Path::new("m")).unwrap().vision.map(|l| l.image_rows());
        assert_eq!(rows("llama_ens_light"), Some(259));
        assert_eq!(rows("llama_ens5_light"), Some(1295));
        assert_eq!(rows("llama"), None);
    }

    #[test]
    fn refusals_name_the_type_and_what_works() {
        for (t, word) in [
            ("llama_ens5", "yet"),
            ("mixtral_sparse_ens5", "yet"),
            ("llama_peft", "not a member"),
            ("llama_qformerv2_peft", "not a member"),
            ("falcon_40b", "not a member"),
            ("internlm", "not a member"),
            ("gpt", "unknown"),
        ] {
            let message = find(t, Path::new("meta.json")).unwrap_err().to_string();
            assert!(message.contains(t) && message.contains(word) && message.contains("llama_ens5_light"), "{message}");
        }
    }
}
