//! JSON from untrusted files: bounded in size and depth, and no key twice.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use sphinx_quant::error::printable;

use super::source::Source;
use crate::error::{ConvertError, Result};

/// The longest `config.json` or `meta.json` read, in bytes.
pub(crate) const MAX_SETTINGS_BYTES: u64 = 1 << 20;
/// The longest index or tokeniser settings read, in bytes.
pub(crate) const MAX_INDEX_BYTES: u64 = 16 << 20;

/// Reads a file that holds one object.
///
/// # Errors
/// [`ConvertError::Invalid`] when it is longer than `most` bytes, nests deeper than 128, names a key twice or is no object.
pub(crate) fn object(path: &Path, most: u64) -> Result<Map<String, Value>> {
    let file = Source::open(path)?;
    let bad = |what: String| ConvertError::invalid(path, what, "repair the file, or get it again");
    if file.bytes() > most {
        return Err(bad(format!("is {} bytes long, at most {most} are read", file.bytes())));
    }
    let text = file.read_vec(0, file.bytes() as usize)?;
    let parsed = serde_json::from_slice(&text).and_then(|UniqueKeys| serde_json::from_slice(&text));
    match parsed {
        Ok(Value::Object(map)) if map.values().all(finite) => Ok(map),
        Ok(Value::Object(_)) => Err(bad("is not valid JSON: a number is out of range".into())),
        Ok(_) => Err(bad("is JSON, but not an object { … }".into())),
        Err(e) => Err(bad(format!("is not valid JSON: {}", printable(&e.to_string())))),
    }
}

/// Every number in it can be a double. Depth is bounded, as the value was parsed.
fn finite(value: &Value) -> bool {
    match value {
        Value::Number(n) => n.as_f64().is_some_and(f64::is_finite),
        Value::Array(items) => items.iter().all(finite),
        Value::Object(map) => map.values().all(finite),
        _ => true,
    }
}

/// JSON in which no object names a key twice. Depth is bounded by `serde_json` itself (128).
///
/// Values are read in a second pass: how numbers come to a visitor depends on features that other crates may switch on.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<UniqueKeys, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = ();
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<(), E> {
                Ok(())
            }
            fn visit_bool<E>(self, _: bool) -> Result<(), E> {
                Ok(())
            }
            fn visit_i64<E>(self, _: i64) -> Result<(), E> {
                Ok(())
            }
            fn visit_u64<E>(self, _: u64) -> Result<(), E> {
                Ok(())
            }
            fn visit_f64<E>(self, _: f64) -> Result<(), E> {
                Ok(())
            }
            fn visit_str<E>(self, _: &str) -> Result<(), E> {
                Ok(())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
                while let Some(UniqueKeys) = seq.next_element()? {}
                Ok(())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
                let mut keys = HashSet::new();
                while let Some((key, UniqueKeys)) = map.next_entry::<String, UniqueKeys>()? {
                    if let Some(twice) = keys.replace(key) {
                        return Err(A::Error::custom(format_args!("key \"{twice}\" comes twice")));
                    }
                }
                Ok(())
            }
        }
        deserializer.deserialize_any(Any).map(|()| UniqueKeys)
    }
}
