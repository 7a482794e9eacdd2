//! A model's two files: the language half, and the vision half beside it.

use std::path::{Path, PathBuf};

use sphinx_quant::error::printable;
use sphinx_quant::gguf::Gguf;
use sphinx_quant::gguf::keys::{self, Half};

use crate::{Result, RuntimeError};

pub(crate) mod ahead;
mod params;
pub(crate) mod stacks;
pub(crate) mod window;

pub use params::LanguageParams;

/// Architectures of language files that this version runs.
pub const ARCHITECTURES: &[&str] = &["llama", "internlm2", keys::ARCH_SPLIT];

/// An open language file that knows where its vision half should be.
#[derive(Debug)]
pub struct Source {
    language: Gguf,
    params: LanguageParams,
    vision_path: PathBuf,
    /// Whether the caller named it.
    vision_given: bool,
}

impl Source {
    /// Opens and checks the language half at `path`. The vision half is `mmproj`, or `mmproj-NAME.gguf` beside
    /// `NAME.gguf`; a given one is checked here, the other when [`open_vision`](Source::open_vision) asks for it.
    ///
    /// # Errors
    /// [`RuntimeError::Quant`] for an unreadable or broken file, [`RuntimeError::Invalid`] for one that is not a
    /// language model that this version runs.
    pub fn open(path: &Path, mmproj: Option<&Path>) -> Result<Source> {
        let language = Gguf::open(path)?;
        let params = LanguageParams::read(&language)?;
        let vision_path = match mmproj {
            Some(given) => given.to_owned(),
            None => {
                let mut name = std::ffi::OsString::from("mmproj-");
                name.push(path.file_name().unwrap_or_default());
                path.with_file_name(name)
            }
        };
        let source = Source { language, params, vision_path, vision_given: mmproj.is_some() };
        if source.vision_given {
            source.open_vision()?;
        }
        Ok(source)
    }

    /// The language half.
    pub fn language(&self) -> &Gguf {
        &self.language
    }

    /// What the language half says about itself.
    pub fn params(&self) -> &LanguageParams {
        &self.params
    }

    /// Where the vision half is, or would be.
    pub fn vision_path(&self) -> &Path {
        &self.vision_path
    }

    /// Whether there is a vision half.
    pub fn has_vision(&self) -> bool {
        self.vision_path.is_file()
    }

    /// Opens the vision half and checks that it belongs to the language half.
    ///
    /// # Errors
    /// [`RuntimeError::Invalid`] when there is none, when it is something else, and when the two halves come from
    /// different models.
    pub fn open_vision(&self) -> Result<Gguf> {
        let invalid = |file: &Path, what: String, remedy| RuntimeError::Invalid { file: file.to_owned(), what, remedy };
        if !self.vision_given && !self.vision_path.exists() {
            let what = format!("the model is text only: there is no vision file {}", printable(&self.vision_path.display().to_string()));
            return Err(invalid(self.language.path(), what, "leave the picture out, or name the file with --mmproj"));
        }
        let vision = Gguf::open(&self.vision_path)?;
        if vision.half() != Half::Vision {
            let what = format!("the architecture is \"{}\", expected \"{}\"", printable(vision.arch()), keys::ARCH_VISION);
            return Err(invalid(vision.path(), what, "give the mmproj file that was converted together with the language file"));
        }
        let ours = self.params.pair_id.as_deref();
        let theirs = vision.opt_str(&Half::Vision.key(keys::PAIR_ID))?;
        if ours.is_none() || ours != theirs {
            let name = |id: Option<&str>| id.map_or("none".into(), printable);
            let what = format!(
                "this vision file (pair id {}) does not belong to the language file {} (pair id {})",
                name(theirs),
                printable(&self.language.path().display().to_string()),
                name(ours)
            );
            return Err(invalid(vision.path(), what, "use two files that were converted together"));
        }
        Ok(vision)
    }
}
