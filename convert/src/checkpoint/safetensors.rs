//! One safetensors file.
//!
//! The element types and the records of the header are the `safetensors` crate's; the checks around them are ours, because the crate
//! wants the whole file in memory and lets a later key replace an earlier one of the same name.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use ::safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use sphinx_quant::error::printable;

use super::source::Source;
use super::stored::{Element, Layout, Storage, Stored};
use super::{Dtype, MAX_TENSORS, Tensors};
use crate::error::{ConvertError, Result};

/// The longest header read, in bytes.
const MAX_HEADER_BYTES: u64 = 32 << 20;
const AGAIN: &str = "get the file again; its download may be incomplete";

/// The header, names in the order stored and all different.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a table of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut out = Vec::new();
                let mut seen = HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format_args!("tensor \"{key}\" comes twice")));
                    }
                    if key == "__metadata__" {
                        map.next_value::<HashMap<String, String>>()?;
                        continue;
                    }
                    if out.len() >= MAX_TENSORS {
                        return Err(A::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
                    }
                    out.push((key, map.next_value()?));
                }
                Ok(Header(out))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Reads the header; data is left where it is. Integers and booleans are left out; their names come second.
///
/// # Errors
/// [`ConvertError::Invalid`] when the header is not what it should be, or the tensors do not fill the rest of the file exactly.
pub(super) fn tensors(file: &Arc<Source>) -> Result<(Tensors, Vec<String>)> {
    let bad = |what: String| ConvertError::invalid(file.path(), what, AGAIN);
    if file.bytes() < 8 {
        return Err(bad(format!("is too short for a safetensors file ({} bytes)", file.bytes())));
    }
    let mut length = [0; 8];
    file.read(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    let Some(data) = length.checked_add(8).filter(|&d| d <= file.bytes()) else {
        return Err(bad(format!("declares a header of {length} bytes but is {} bytes long", file.bytes())));
    };
    if length > MAX_HEADER_BYTES {
        return Err(bad(format!("declares a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")));
    }
    let raw = file.read_vec(8, length as usize)?;
    if raw.first() != Some(&b'{') {
        return Err(bad("is no safetensors file: its header does not begin with {".into()));
    }
    let Header(mut infos) =
        serde_json::from_slice(&raw).map_err(|e| bad(format!("has a broken header: {}", printable(&e.to_string()))).at(8))?;

    infos.sort_by_key(|(_, info)| info.data_offsets);
    let room = file.bytes() - data;
    let mut free = 0;
    let mut out = Tensors::new();
    let mut skipped = Vec::new();
    for (name, info) in infos {
        super::check_name(file, &name)?;
        let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let wrong = |what: String| bad(what).of_tensor(&name).at(data.saturating_add(start));
        if end < start || end > room {
            return Err(wrong(format!("has data at bytes {start}..{end} of {room}")));
        }
        if start != free {
            let how = if start < free { "overlap" } else { "leave a hole" };
            return Err(wrong(format!("has tensors that {how}: one ends at byte {free}, the next begins at {start}")));
        }
        free = end;
        let elements = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize())).map(|n| n as u64);
        if bits != (end - start).checked_mul(8) {
            return Err(wrong(format!("states {:?} of shape {:?} but {} bytes", info.dtype, info.shape, end - start)));
        }
        use ::safetensors::Dtype as D;
        let element = match info.dtype {
            D::F32 => Element::Float(Dtype::F32),
            D::F16 => Element::Float(Dtype::F16),
            D::BF16 => Element::Float(Dtype::BF16),
            D::BOOL | D::U8 | D::I8 | D::U16 | D::I16 | D::U32 | D::I32 | D::U64 | D::I64 => {
                skipped.push(name);
                continue;
            }
            other => Element::Other(format!("{other:?}"), (other.bitsize() as u64).div_ceil(8)),
        };
        let storage = Arc::new(Storage::new(file.clone(), data + start, end - start, None));
        let stored = if let Element::Other(..) = element {
            Stored::unreadable(element, info.shape, storage)
        } else {
            Stored::new(element, Layout::contiguous(info.shape), storage).map_err(wrong)?
        };
        out.insert(name.clone(), Arc::new(stored));
    }
    if free != room {
        return Err(bad(format!("its tensors end at byte {} but the file is {} bytes long", data + free, file.bytes())));
    }
    Ok((out, skipped))
}
