//! The family card of `sphinx inspect`: which member of the family a model is, what it is made of, and what it needs.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use sphinx_convert::inspect::part_of;
use sphinx_quant::error::printable;
use sphinx_quant::gguf::{Gguf, keys::Half};
use sphinx_runtime::source::Source;
use sphinx_runtime::vision::VisionParams;

use crate::table;

/// One part of a model.
struct Part {
    name: &'static str,
    parameters: u64,
    bytes: u64,
}

fn add(parts: &mut Vec<Part>, file: &Gguf) {
    for t in file.tensors() {
        let name = part_of(t.name());
        let (parameters, bytes) = (t.len() as u64, t.bytes().len() as u64);
        match parts.iter_mut().find(|p| p.name == name) {
            Some(p) => (p.parameters, p.bytes) = (p.parameters + parameters, p.bytes + bytes),
            None => parts.push(Part { name, parameters, bytes }),
        }
    }
}

/// A model as its files describe it, or why there is no card; `None` for a file that is neither half of one.
///
/// `path` may be either half: the vision half of a language half is looked for beside it.
pub fn of_model(path: &Path, file: &Gguf, context: Option<usize>) -> Option<Value> {
    described(path, file, context).unwrap_or_else(|e| Some(json!({ "problem": format!("{e:#}") })))
}

fn described(path: &Path, file: &Gguf, context: Option<usize>) -> Result<Option<Value>> {
    let mut parts = Vec::new();
    if file.half() == Half::Vision {
        let vision = VisionParams::read(file)?;
        add(&mut parts, file);
        return Ok(Some(json!({ "picture": picture(&vision), "parts": listed(&parts) })));
    }
    // What is no decoder of ours has no card; `inspect` shows its keys all the same.
    let Ok(source) = Source::open(path, None) else { return Ok(None) };
    let p = source.params();
    add(&mut parts, source.language());
    let vision = if source.has_vision() { Some(source.open_vision()?) } else { None };
    let sees = vision.as_ref().map(VisionParams::read).transpose()?;
    if let Some(vision) = &vision {
        add(&mut parts, vision);
    }
    let context = context.unwrap_or(p.context);
    let weights: u64 = parts.iter().map(|p| p.bytes).sum();
    // Keys and values of every layer, two bytes a number.
    let cache = 2 * 2 * (p.layers * p.kv_heads * p.head_dim * context) as u64;
    let mixture = p.is_mixture().then(|| json!({ "experts": p.experts, "used": p.experts_used }));
    Ok(Some(json!({
        "llama_type": p.llama_type, "name": p.name,
        "decoder": {
            "layers": p.layers, "dim": p.dim, "hidden": p.hidden, "heads": p.heads, "kv_heads": p.kv_heads, "head_dim": p.head_dim,
            "vocabulary": p.vocabulary, "rope_base": p.rope_base, "mixture": mixture,
        },
        "picture": sees.as_ref().map(picture),
        "parts": listed(&parts),
        "parameters": parts.iter().map(|p| p.parameters).sum::<u64>(),
        "memory": { "context": context, "weights_bytes": weights, "cache_f16_bytes": cache, "together_bytes": weights + cache },
    })))
}

fn listed(parts: &[Part]) -> Value {
    parts.iter().map(|p| json!({ "part": p.name, "parameters": p.parameters, "bytes": p.bytes })).collect()
}

fn picture(p: &VisionParams) -> Value {
    let towers: Vec<&str> = p.encoders.iter().map(|e| e.name()).chain(p.qformer.as_ref().map(|_| "qformer")).collect();
    json!({
        "square": p.image_size, "grid": p.grid, "views": p.views(), "rows": p.image_rows(),
        "towers": towers, "skip_tokens": p.skip.is_some(), "pooled_parts": p.pool_parts,
    })
}

/// The card as text.
pub fn text(card: &Value) -> String {
    if let Some(problem) = card["problem"].as_str() {
        return format!("no card: {}\n", printable(problem));
    }
    let mut out = String::new();
    let mut line = |name: &str, what: String| out += &format!("{name:<12} {what}\n");
    if let Some(t) = card["llama_type"].as_str() {
        line("variant", printable(t));
    }
    let d = &card["decoder"];
    if d.is_object() {
        let mixture = match &d["mixture"] {
            Value::Null => String::new(),
            m => format!(", {} experts of which {} at a time", m["experts"], m["used"]),
        };
        line(
            "decoder",
            format!(
                "{} layers of {}, hidden {}{mixture}, {} heads ({} for keys) of {}, {} pieces",
                d["layers"], d["dim"], d["hidden"], d["heads"], d["kv_heads"], d["head_dim"], d["vocabulary"]
            ),
        );
    }
    let p = &card["picture"];
    if p.is_object() {
        let towers: Vec<&str> = p["towers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let skip = if p["skip_tokens"] == true { " at most (empty sub-images are skipped)" } else { "" };
        let s = if p["views"] == 1 { "" } else { "s" };
        line("picture", format!("{0} × {0} pixels, {1} view{s}, {2} rows{skip}", p["square"], p["views"], p["rows"]));
        line("towers", towers.join(", "));
    } else if d.is_object() {
        line("picture", "none: text only, or the vision half is not beside it".into());
    }
    let m = &card["memory"];
    if m.is_object() {
        let of = |k: &str| table::bytes(m[k].as_u64().unwrap_or_default());
        line(
            "memory",
            format!(
                "{} of mapped weights and {} of cache for {} positions (f16): {}, working buffers aside",
                of("weights_bytes"),
                of("cache_f16_bytes"),
                m["context"],
                of("together_bytes")
            ),
        );
    }
    let rows = card["parts"].as_array().into_iter().flatten().map(|p| {
        let number = |k: &str| p[k].as_u64().unwrap_or_default();
        vec![
            p["part"].as_str().unwrap_or_default().to_owned(),
            format!("{:.1} M", number("parameters") as f64 / 1e6),
            table::bytes(number("bytes")),
        ]
    });
    out += &format!("\n{}\n", table::plain(&["part", "parameters", "size"], rows));
    out
}
