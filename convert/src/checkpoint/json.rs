//! JSON from untrusted files: bounded in size and depth, and no key twice.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use sphinx_quant::error::printable;

use super::source::Source;
use crate::error::{ConvertError, Result};

/// The longest `config.json` or `meta.json` read, in bytes.
pub(super) const MAX_SETTINGS_BYTES: u64 = 1 << 20;
/// The longest `model.safetensors.index.json` read, in bytes.
pub(super) const MAX_INDEX_BYTES: u64 = 16 << 20;

/// Reads a file that holds one object.
///
/// # Errors
/// [`ConvertError::Invalid`] when it is longer than `most` bytes, nests deeper than 128, names a key twice or is no object.
pub(super) fn object(path: &Path, most: u64) -> Result<Map<String, Value>> {
    let file = Source::open(path)?;
    let bad = |what: String| ConvertError::invalid(path, what, "repair the file, or get it again");
    if file.bytes() > most {
        return Err(bad(format!("is {} bytes long, at most {most} are read", file.bytes())));
    }
    let text = file.read_vec(0, file.bytes() as usize)?;
    match serde_json::from_slice(&text) {
        Ok(Strict(Value::Object(map))) => Ok(map),
        Ok(_) => Err(bad("is JSON, but not an object { … }".into())),
        Err(e) => Err(bad(format!("is not valid JSON: {}", printable(&e.to_string())))),
    }
}

/// A value in which no object names a key twice. Depth is bounded by `serde_json` itself (128).
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strict, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
                Ok(Value::Bool(v))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
                Ok(Value::Number(v.into()))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
                Ok(Value::Number(v.into()))
            }
            fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
                Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
            }
            fn visit_str<E>(self, v: &str) -> Result<Value, E> {
                Ok(Value::String(v.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut items = Vec::new();
                while let Some(Strict(item)) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Value::Array(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut object = Map::new();
                while let Some((key, Strict(value))) = map.next_entry::<String, Strict>()? {
                    if object.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("key \"{key}\" comes twice")));
                    }
                    object.insert(key, value);
                }
                Ok(Value::Object(object))
            }
        }
        deserializer.deserialize_any(Any).map(Strict)
    }
}
