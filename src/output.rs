//! Files that appear whole or not at all.

use std::path::Path;

use anyhow::Result;
use safetensors::tensor::{Dtype, View};

use crate::failure::{Failure, shown};

/// Refuses a file that exists, unless it may be replaced. To be called before any work.
pub fn free(path: &Path, force: bool) -> Result<()> {
    if !force && path.symlink_metadata().is_ok() {
        return Err(Failure::usage(format!("{}: exists — choose another name or say --force", shown(path))));
    }
    Ok(())
}

/// Writes `path` through `path.partial`, synced and renamed.
pub fn write(path: &Path, fill: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let partial = crate::interrupt::partial(path);
    crate::interrupt::writes(path);
    let attempt = || -> std::io::Result<()> {
        fill(&partial)?;
        std::fs::File::open(&partial)?.sync_all()?;
        std::fs::rename(&partial, path)
    };
    attempt().map_err(|e| {
        let _gone = std::fs::remove_file(&partial);
        Failure::io(path, &e)
    })
}

/// A tensor to write: numbers of one type and a shape.
pub enum Array {
    F32(Vec<usize>, Vec<f32>),
    I64(Vec<usize>, Vec<i64>),
}

impl View for &Array {
    fn dtype(&self) -> Dtype {
        match self {
            Array::F32(..) => Dtype::F32,
            Array::I64(..) => Dtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Array::F32(shape, _) | Array::I64(shape, _) => shape,
        }
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        match self {
            Array::F32(_, v) => bytemuck::cast_slice(v).into(),
            Array::I64(_, v) => bytemuck::cast_slice(v).into(),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Array::F32(_, v) => v.len() * 4,
            Array::I64(_, v) => v.len() * 8,
        }
    }
}

/// Writes tensors as safetensors.
pub fn safetensors(path: &Path, tensors: &[(String, Array)]) -> Result<()> {
    write(path, |partial| {
        let views = tensors.iter().map(|(name, array)| (name.clone(), array));
        safetensors::serialize_to_file(views, None, partial).map_err(|e| match e {
            safetensors::SafeTensorError::IoError(e) => e,
            other => std::io::Error::other(other),
        })
    })
}
