//! `sphinx inspect`: what a file or a checkpoint holds.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value as Json, json};
use sphinx_quant::error::printable;
use sphinx_quant::gguf::{Array, Value};
use sphinx_quant::gguf::{Gguf, keys};

use super::card;
use crate::arguments::{InspectArgs, Reader};
use crate::failure::{Failure, shown};
use crate::{output, table};

pub fn run(args: InspectArgs) -> Result<()> {
    let is_gguf = args.path.is_file() && !args.path.extension().is_some_and(|e| e == "pth" || e == "safetensors");
    let text = match (is_gguf, args.with) {
        (true, Reader::Own) => gguf(&args)?,
        (true, Reader::GgufRs) => gguf_rs(&args)?,
        (false, Reader::GgufRs) => return Err(Failure::usage("--with gguf-rs reads GGUF files only")),
        (false, Reader::Own) => checkpoint(&args)?,
    };
    output::text(&text)
}

/// A metadata value as JSON; arrays longer than `most` as their length.
fn json_value(value: &Value, most: usize) -> Json {
    fn list<T: Copy + Into<Json>>(v: &[T], most: usize) -> Json {
        if v.len() > most { json!({ "array_of": v.len() }) } else { v.iter().map(|&x| x.into()).collect() }
    }
    match value {
        Value::U8(x) => json!(x),
        Value::I8(x) => json!(x),
        Value::U16(x) => json!(x),
        Value::I16(x) => json!(x),
        Value::U32(x) => json!(x),
        Value::I32(x) => json!(x),
        Value::F32(x) => json!(x),
        Value::Bool(x) => json!(x),
        Value::Str(x) => json!(x),
        Value::U64(x) => json!(x),
        Value::I64(x) => json!(x),
        Value::F64(x) => json!(x),
        Value::Array(a) => match a {
            Array::U8(v) => list(v, most),
            Array::I8(v) => list(v, most),
            Array::U16(v) => list(v, most),
            Array::I16(v) => list(v, most),
            Array::U32(v) => list(v, most),
            Array::I32(v) => list(v, most),
            Array::F32(v) => list(v, most),
            Array::Bool(v) => list(v, most),
            Array::U64(v) => list(v, most),
            Array::I64(v) => list(v, most),
            Array::F64(v) => list(v, most),
            Array::Str(v) if v.len() > most => json!({ "array_of": v.len() }),
            Array::Str(v) => json!(v),
        },
    }
}

fn gguf(args: &InspectArgs) -> Result<String> {
    let file = Gguf::open(&args.path)?;
    let parameters: u64 = file.tensors().iter().map(|t| t.len() as u64).sum();
    let mut by_type: Vec<(&str, u64, u64)> = Vec::new();
    for t in file.tensors() {
        match by_type.iter_mut().find(|(ty, ..)| *ty == t.ty().name()) {
            Some((_, n, bytes)) => (*n, *bytes) = (*n + 1, *bytes + t.bytes().len() as u64),
            None => by_type.push((t.ty().name(), 1, t.bytes().len() as u64)),
        }
    }
    let card = card::of_model(&args.path, &file, args.context);
    if args.json {
        let metadata: Map<String, Json> = file.metadata().iter().map(|(k, v)| (k.clone(), json_value(v, 64))).collect();
        let mut out = json!({
            "path": args.path.to_string_lossy(), "format": "gguf", "version": file.version(), "alignment": file.alignment(), "bytes": file.file_bytes(),
            "trailing_bytes": file.trailing_bytes(), "architecture": file.arch(), "parameters": parameters, "metadata": metadata,
            "types": by_type.iter().map(|&(ty, n, bytes)| json!({ "type": ty, "tensors": n, "bytes": bytes })).collect::<Json>(),
        });
        if let Some(card) = card {
            out["card"] = card;
        }
        if args.tensors {
            let list = file.tensors().iter().enumerate().map(|(i, t)| {
                let sum = file.checksum(i).map(|c| format!("{c:016x}"));
                json!({ "name": t.name(), "type": t.ty().name(), "dims": t.dims(), "offset": file.offset(i), "bytes": t.bytes().len(), "xxh3": sum })
            });
            out["tensors"] = list.collect();
        }
        return Ok(format!("{out}\n"));
    }
    let mut text = format!(
        "{}: GGUF {}, architecture {}, {} tensors, {:.1} M parameters, {}\n\n",
        shown(&args.path),
        file.version(),
        printable(file.arch()),
        file.tensors().len(),
        parameters as f64 / 1e6,
        table::bytes(file.file_bytes())
    );
    if let Some(card) = &card {
        text += &format!("{}\n", card::text(card));
    }
    for (key, value) in file.metadata() {
        if key.ends_with(keys::CHECKSUM_TENSORS) {
            continue;
        }
        let shown = match json_value(value, 16) {
            Json::Object(o) => format!("[{} values]", o["array_of"]),
            other => other.to_string(),
        };
        text += &format!("{:<44} {}\n", printable(key), printable(&shown));
    }
    let rows = by_type.iter().map(|&(ty, n, bytes)| vec![ty.to_owned(), n.to_string(), table::bytes(bytes)]);
    text += &format!("\n{}\n", table::plain(&["type", "tensors", "size"], rows));
    if args.tensors {
        let rows = file.tensors().iter().enumerate().map(|(i, t)| {
            vec![
                printable(t.name()),
                t.ty().to_string(),
                format!("{:?}", t.dims()),
                format!("{:#x}", file.offset(i)),
                table::bytes(t.bytes().len() as u64),
            ]
        });
        text += &format!("\n{}\n", table::plain(&["tensor", "type", "dims, fastest first", "offset", "size"], rows));
    }
    if file.trailing_bytes() > 0 {
        text += &format!("\n{} bytes follow the last tensor\n", file.trailing_bytes());
    }
    Ok(text)
}

/// The same file through the gguf-rs crate, which panics on some files and mis-sizes some types: a second opinion only.
fn gguf_rs(args: &InspectArgs) -> Result<String> {
    // Our reader goes first: the other one allocates what a file declares.
    Gguf::open(&args.path)?;
    let path = args.path.to_str().ok_or_else(|| Failure::usage("gguf-rs takes UTF-8 paths only"))?.to_owned();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let read = std::panic::catch_unwind(|| gguf_rs::get_gguf_container_array_size(&path, 16).and_then(|mut c| c.decode()));
    std::panic::set_hook(hook);
    let model = match read {
        Ok(Ok(model)) => model,
        Ok(Err(e)) => return Err(Failure::invalid(format!("{}: gguf-rs cannot read it: {e} — try without --with", shown(&args.path)))),
        Err(_) => return Err(Failure::invalid(format!("{}: gguf-rs panicked on it — try without --with", shown(&args.path)))),
    };
    let tensors =
        model.tensors().iter().map(|t| json!({ "name": t.name, "type": t.kind, "dims": t.shape, "offset": t.offset, "bytes": t.size }));
    if args.json {
        let mut out = json!({
            "path": args.path.to_string_lossy(), "reader": "gguf-rs", "version": model.get_version(), "architecture": model.model_family(),
            "parameters": model.model_parameters(), "metadata": model.metadata(),
        });
        if args.tensors {
            out["tensors"] = tensors.collect();
        }
        return Ok(format!("{out}\n"));
    }
    let mut text = format!(
        "{}: GGUF {}, architecture {}, {} tensors, {} parameters (read by gguf-rs)\n\n",
        shown(&args.path),
        model.get_version(),
        printable(&model.model_family()),
        model.num_tensor(),
        model.model_parameters()
    );
    for (key, value) in model.metadata() {
        text += &format!("{:<44} {}\n", printable(key), printable(&value.to_string()));
    }
    if args.tensors {
        let rows =
            model.tensors().iter().map(|t| vec![printable(&t.name), t.kind.to_string(), format!("{:?}", t.shape), t.size.to_string()]);
        text += &format!("\n{}\n", table::plain(&["tensor", "type number", "dims", "bytes"], rows));
    }
    Ok(text)
}

fn checkpoint(args: &InspectArgs) -> Result<String> {
    let holds = sphinx_convert::inspect_checkpoint(Path::new(&args.path))?;
    if args.json {
        let mut out = serde_json::to_value(&holds)?;
        if !args.tensors
            && let Some(o) = out.as_object_mut()
        {
            o.remove("tensors");
        }
        return Ok(format!("{out}\n"));
    }
    let mut text = format!(
        "{}: checkpoint, type {}{}, {} tensors, {:.1} M parameters in all shards, {}\n",
        shown(&args.path),
        printable(holds.llama_type.as_deref().unwrap_or("unknown (no meta.json)")),
        if holds.supported { "" } else { " (not converted by this version)" },
        holds.tensors.len(),
        holds.elements as f64 / 1e6,
        table::bytes(holds.bytes)
    );
    match (&holds.card, &holds.problem) {
        (Some(found), _) => text += &format!("\n{}\n", card::text(&serde_json::to_value(found)?)),
        (None, Some(problem)) => text += &format!("no card: {}\n", printable(problem)),
        (None, None) => (),
    }
    for (key, value) in &holds.config {
        text += &format!("{:<32} {}\n", printable(key), printable(&value.to_string()));
    }
    if args.tensors {
        let rows = holds.tensors.iter().map(|t| {
            let shapes: Vec<String> = t.shapes.iter().map(|s| format!("{s:?}")).collect();
            vec![printable(&t.name), t.dtype.clone().unwrap_or_else(|| "?".into()), shapes.join(" ")]
        });
        text += &format!("\n{}\n", table::plain(&["tensor", "dtype", "shape in every shard"], rows));
    }
    for note in &holds.notes {
        text += &format!("note: {}\n", printable(note));
    }
    Ok(text)
}
