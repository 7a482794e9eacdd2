//! What is promised about reading checkpoints: the numbers torch reads, from any layout and shard; and for files that are broken or
//! hostile one error that names the file and the tensor, with nothing carried out and little memory used.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use sphinx_convert::checkpoint::{Checkpoint, Dtype, Rule, pickle};
use sphinx_convert::error::{ConvertError, Result};
use sphinx_quant::ErrorKind;

#[path = "checkpoint/forge.rs"]
mod forge;
use forge::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints")
}

/// Fixture names say how they are merged.
fn rule_of(name: &str) -> Rule {
    match name.rsplit('.').next() {
        Some("dim0") => Rule::Dim0,
        Some("dim1") => Rule::Dim1,
        Some("expert") => Rule::Expert { experts: 4 },
        Some("owner") => Rule::Owner,
        _ => Rule::Same,
    }
}

/// A whole tensor, so many rows at a time.
fn read(checkpoint: &Checkpoint, name: &str, rule: Rule, step: usize) -> Result<(Vec<usize>, Vec<f32>)> {
    let merged = checkpoint.merged(name, rule)?;
    let mut out = vec![f32::NAN; merged.rows() * merged.cols()];
    let mut row = 0;
    while row < merged.rows() {
        let end = (row + step).min(merged.rows());
        merged.read_rows(row..end, &mut out[row * merged.cols()..end * merged.cols()])?;
        row = end;
    }
    Ok((merged.shape().to_vec(), out))
}

/// What torch read, recorded beside the fixtures.
fn recorded() -> Vec<(String, Vec<usize>, Vec<u32>)> {
    let bytes = std::fs::read(fixtures().join("expected.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, view)| {
            let bits = view.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
            (name.to_owned(), view.shape().to_vec(), bits)
        })
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn every_fixture_reads_as_torch_read_it() {
    let mut seen = 0;
    for (key, shape, wanted) in recorded() {
        let (case, name) = key.split_once('/').unwrap();
        let checkpoint = Checkpoint::open(&[fixtures().join(case)]).unwrap();
        for step in [1, 2, 1000] {
            let (found, values) = read(&checkpoint, name, rule_of(name), step).unwrap();
            assert_eq!((&found, bits(&values)), (&shape, wanted.clone()), "{key}, {step} rows at a time");
        }
        seen += 1;
    }
    assert!(seen > 35, "{seen}");
}

#[test]
fn rows_may_be_read_in_any_order_from_many_threads() {
    let checkpoint = Checkpoint::open(&[fixtures().join("two")]).unwrap();
    for name in ["llma.wq.dim0", "llma.wo.dim1", "llma.w1.expert"] {
        let (_, whole) = read(&checkpoint, name, rule_of(name), 1000).unwrap();
        let merged = checkpoint.merged(name, rule_of(name)).unwrap();
        let cols = merged.cols();
        std::thread::scope(|s| {
            for (row, wanted) in whole.chunks(cols).enumerate().rev() {
                let merged = &merged;
                s.spawn(move || {
                    let mut out = vec![0.0; cols];
                    merged.read_rows(row..row + 1, &mut out).unwrap();
                    assert_eq!(out, wanted);
                });
            }
        });
    }
}

#[test]
fn settings_and_notes() {
    let types = Checkpoint::open(&[fixtures().join("types")]).unwrap();
    assert_eq!(types.llama_type(), Some("llama_ens_light"));
    assert_eq!(types.config()["dim"], 8);
    assert_eq!(types.tokenizer_model(), None);
    assert_eq!(types.folder(), fixtures().join("types"));
    assert_eq!(types.merged("f16.same", Rule::Same).unwrap().dtype(), Dtype::F16);
    assert_eq!(types.merged("f16.same", Rule::Dim0).unwrap().stored_bytes(), 70);
    let names: Vec<&str> = types.names().collect();
    assert!(names.is_sorted() && names.contains(&"doubled") && !names.contains(&"position_ids"), "{names:?}");
    let notes = types.notes().join("\n");
    assert!(notes.contains("not converted: position_ids, mask, unsigned"), "{notes}");
    assert!(notes.contains("not tensors, ignored: step, note"), "{notes}");
    types.unchanged().unwrap();

    // A later directory wins, key by key and tensor by tensor.
    let both = Checkpoint::open(&[fixtures().join("two"), fixtures().join("later")]).unwrap();
    assert_eq!(both.llama_type(), Some("mixtral_sparse_ens5"));
    assert_eq!((both.config()["dim"].as_u64(), both.config()["norm_eps"].as_f64()), (Some(16), Some(1e-6)));
    assert_eq!(both.merged("llma.norm.same", Rule::Same).unwrap().dtype(), Dtype::F32);
    assert_eq!(both.shapes("llma.wq.dim0").unwrap(), [[4, 6], [4, 6]]);
    assert_eq!(both.shapes("llma.experts.3.w1.owner").unwrap(), [[3, 4]]);
    assert_eq!(both.shapes("nothing"), None);

    // Single files.
    let alone = Checkpoint::open(&[fixtures().join("later/consolidated.00-of-01.model.pth")]).unwrap();
    assert_eq!(alone.names().count(), 2);
    let shard = fixtures().join("two/consolidated.01-of-02.model.pth");
    refused(Checkpoint::open(std::slice::from_ref(&shard)), "is one shard of several");
    assert_eq!(Checkpoint::inspect(&shard).unwrap().shapes("llma.wq.dim0").unwrap(), [[4, 6]]);
    let part = fixtures().join("parts/model-00001-of-00002.safetensors");
    refused(Checkpoint::open(std::slice::from_ref(&part)), "is one shard of several");
    assert_eq!(Checkpoint::inspect(&part).unwrap().names().collect::<Vec<_>>(), ["model.a.same"]);
}

#[test]
fn what_is_not_a_matrix_of_floats_is_said() {
    let types = Checkpoint::open(&[fixtures().join("types")]).unwrap();
    refused(types.merged("doubled", Rule::Same), "tensor \"doubled\"");
    refused(types.merged("doubled", Rule::Same), "type F64; F32, F16 and BF16 are read");
    refused(types.merged("eighth", Rule::Same), "type F8");
    refused(types.merged("nothing", Rule::Same), "has no such tensor");
    refused(types.merged("scalar.same", Rule::Dim0), "cannot be joined along dimension 0");
    refused(types.merged("special_f32.same", Rule::Dim1), "cannot be joined along dimension 1");
    refused(types.merged("f32.same", Rule::Expert { experts: 3 }), "no multiple of 3 experts");
    refused(types.merged("f32.same", Rule::Expert { experts: 0 }), "no multiple of 0 experts");
    refused(Checkpoint::open(&[fixtures().join("legacy.pth")]), "legacy (non-zip) torch file");
    refused(Checkpoint::open(&[fixtures().join("script.pth")]), "TorchScript archive");
}

/// All tensors of the shared cases, if they are there.
#[test]
fn shared_cases_read_completely() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/goldens");
    for case in ["light", "light5"] {
        let folder = shared.join(case).join("checkpoint");
        if !folder.is_dir() {
            eprintln!("skipped: {} is not there", folder.display());
            continue;
        }
        let checkpoint = Checkpoint::open(&[folder]).unwrap();
        assert!(checkpoint.names().count() > 100);
        for name in checkpoint.names() {
            let (_, values) = read(&checkpoint, name, Rule::Same, 7).unwrap();
            assert!(values.iter().all(|v| v.is_finite()), "{name}");
        }
        checkpoint.unchanged().unwrap();
    }
}

/// The message of a refusal, which must contain `wanted`, be one line and of the right kind.
#[track_caller]
fn refused<T>(result: Result<T>, wanted: &str) -> String {
    let error = result.err().unwrap_or_else(|| panic!("accepted; wanted {wanted:?}"));
    let message = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{message}");
    assert!(message.contains(wanted), "{message:?} does not say {wanted:?}");
    assert!(message.contains(" — ") && !message.chars().any(char::is_control) && message.len() < 1500, "{message:?}");
    message
}

/// Opens bytes as a `.pth` file and reads all there is.
fn open_all(bytes: &[u8]) -> Result<Vec<(String, Vec<u32>)>> {
    let checkpoint = Checkpoint::from_pth_bytes(Path::new("x.pth"), bytes.to_vec())?;
    checkpoint.names().map(|n| Ok((n.to_owned(), bits(&read(&checkpoint, n, Rule::Same, 3)?.1)))).collect()
}

#[test]
fn forged_files_are_read_when_they_are_right() {
    let data: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let stream = state(&plain(4, &[2, 2], &[1, 2]));
    let wanted = vec![("llma.w".to_owned(), bits(&[1.0, 3.0, 2.0, 4.0]))];
    assert_eq!(open_all(&pth(&stream, &data)).unwrap(), wanted);
    let items = vec![described("a/data.pkl", &stream), described("a/data/0", &data), described("a/empty", b"")];
    let mut archive = Archive::of(items);
    assert_eq!(open_all(&archive.bytes()).unwrap(), wanted);
    archive.end64 = Some(|n, size, at| (n, size, at));
    assert_eq!(open_all(&archive.bytes()).unwrap(), wanted);
    archive.full32 = true;
    assert_eq!(open_all(&archive.bytes()).unwrap(), wanted);
    // Sizes only in zip64 fields.
    let full = &mut archive.items[1];
    full.extra = [&[1u8, 0, 16, 0][..], &(data.len() as u64).to_le_bytes(), &(data.len() as u64).to_le_bytes()].concat();
    (full.size, full.stored) = (u32::MAX, u32::MAX);
    full.descriptor = [
        &0x0807_4b50u32.to_le_bytes()[..],
        &full.crc.to_le_bytes(),
        &(data.len() as u64).to_le_bytes(),
        &(data.len() as u64).to_le_bytes(),
    ]
    .concat();
    assert_eq!(open_all(&archive.bytes()).unwrap(), wanted);
}

#[test]
fn hostile_pickles_are_refused() {
    let os = global("os", "system");
    let call = |g: Vec<u8>| stream(&[&g, &tuple(&[text("touch /tmp/owned")]), b"R."]);
    let deep = |op: &[u8], n: usize| stream(&[&op.repeat(n), b"."]);
    let doubling = stream(&[b"]q\x00", &b"h\x00\x86q\x00".repeat(60), b"."]);
    let w = plain(4, &[4], &[1]);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("os.system", call(os.clone()), "os.system is not allowed"),
        ("builtins.eval", call(global("builtins", "eval")), "builtins.eval is not allowed"),
        ("py2 builtins", call(global("__builtin__", "eval")), "__builtin__.eval is not allowed"),
        ("torch.load itself", call(global("torch", "load")), "torch.load is not allowed"),
        ("look-alike", call(global("torch._utils", "_rebuild_tensor_v2.__globals__")), "is not allowed"),
        ("stack global", stream(&[&text("os"), &text("system"), b"\x93)R."]), "os.system is not allowed"),
        ("computed name", stream(&[&text("os"), b"]\x93)R."]), "computes the name"),
        ("inst", stream(&[b"(ios\nsystem\n."]), "os.system is not allowed"),
        ("obj", stream(&[b"(", &global("subprocess", "Popen"), b"o."]), "subprocess.Popen is not allowed"),
        ("obj of an allowed class", stream(&[b"(", &global("collections", "OrderedDict"), b"o."]), "instruction OBJ"),
        ("newobj", stream(&[&global("collections", "OrderedDict"), b")\x81."]), "instruction NEWOBJ"),
        ("ext1", stream(&[b"\x82\x01."]), "instruction EXT1"),
        ("ext2", stream(&[b"\x83\x01\x00."]), "instruction EXT2"),
        ("ext4", stream(&[b"\x84\x01\x00\x00\x00."]), "instruction EXT4"),
        ("build on a tensor", stream(&[b"}", &text("w"), &w, b"}bs."]), "BUILD"),
        ("build with a list", stream(&[b"}]b."]), "BUILD"),
        ("call of a call", stream(&[&global("collections", "OrderedDict"), b")R)R."]), "calls something that is no function"),
        ("call of a storage class", stream(&[&global("torch", "FloatStorage"), b")R."]), "arguments that it does not take"),
        ("ordered dict of pairs", stream(&[&global("collections", "OrderedDict"), b"]\x85R."]), "arguments that it does not take"),
        ("call without a tuple", stream(&[&global("collections", "OrderedDict"), b"]R."]), "without a tuple"),
        ("bad before a broken tail", stream(&[&os, b"\xff\xff"]), "os.system is not allowed"),
        ("bad after a good state", stream(&[b"}", &text("w"), &w, b"s", &os, b"0."]), "os.system is not allowed"),
        ("quantised", call(global("torch._utils", "_rebuild_qtensor")), "_rebuild_qtensor is not allowed"),
        ("sparse", call(global("torch._utils", "_rebuild_sparse_tensor")), "_rebuild_sparse_tensor is not allowed"),
        ("name with controls", call(global("\x1b[2J", "x")), "[2J.x is not allowed"),
        ("endless name", stream(&[b"c", &[b'a'; 5000]]), "name without an end"),
        ("doubling", doubling, "holds no dictionary"),
        ("a million marks", deep(b"(", 1_000_000), "nests more than 1000 deep"),
        ("a million lists", stream(&[b"]", &b"]".repeat(1_000_000), &b"a".repeat(1_000_000), b"."]), "stacks more than"),
        ("lists inside lists", stream(&[b"]q\x00", &b"0]h\x00aq\x00".repeat(2), b"."]), "instruction POP"),
        ("tuples inside tuples", stream(&[b")", &b"\x85".repeat(9_999_000), b"."]), "far more objects"),
        ("ten million lists", stream(&[b"](", &b"]e(".repeat(3_000_000), b"t."]), "far more objects"),
        ("too many instructions", stream(&[b"]", &b"(e".repeat(5_100_000), b"."]), "far more objects"),
        ("text of 4 GB", stream(&[b"X\xff\xff\xff\xffabc"]), "ends inside an instruction"),
        ("text of 10 GB", stream(&[b"\x8d\x00\x00\x00\x54\x02\x00\x00\x00abc"]), "ends inside an instruction"),
        ("text of 2^63", stream(&[b"\x8d\x00\x00\x00\x00\x00\x00\x00\x80abc"]), "ends inside an instruction"),
        ("text not UTF-8", stream(&[b"X\x02\x00\x00\x00\xff\xfe."]), "not UTF-8"),
        ("long4", stream(&[b"\x8b\xff\xff\xff\x7f."]), "instruction LONG4"),
        ("long1 of 9 bytes", stream(&[b"\x8a\x09\x01\x02\x03\x04\x05\x06\x07\x08\x09."]), "more than 64 bits"),
        ("bytes of 2^63", stream(&[b"\x8e\x00\x00\x00\x00\x00\x00\x00\x80."]), "instruction BINBYTES8"),
        ("frame too long", b"\x80\x04\x95\xff\x00\x00\x00\x00\x00\x00\x00}.".to_vec(), "frame of 255 bytes"),
        ("frame of 2^64-1", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff}.".to_vec(), "which does not fit"),
        ("frame cuts", b"\x80\x04\x95\x02\x00\x00\x00\x00\x00\x00\x00}X\x01\x00\x00\x00a.".to_vec(), "frame ends inside"),
        ("frame in frame", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x95\x01\x00\x00\x00\x00\x00\x00\x00}.".to_vec(), "does not fit"),
        ("no stop", stream(&[b"}"]), "ends without STOP"),
        ("nothing at all", b"".to_vec(), "does not begin with a protocol"),
        ("only a protocol", b"\x80\x02".to_vec(), "ends without STOP"),
        ("stop on nothing", stream(&[b"."]), "empty stack"),
        ("underflow", stream(&[b"\x86."]), "empty stack"),
        ("underflow below a mark", stream(&[b"N(\x85."]), "empty stack"),
        ("mark never set", stream(&[b"}u."]), "never set"),
        ("mark left open", stream(&[b"}(."]), "leaves a mark open"),
        ("values left", stream(&[b"}}."]), "leaves values"),
        ("bytes behind", stream(&[b"}.}"]), "1 bytes follow the end"),
        ("memo missing", stream(&[b"h\x07."]), "recalls value 7"),
        ("memo missing, long", stream(&[b"j\xff\xff\xff\xff."]), "recalls value 4294967295"),
        ("protocol 0", b"(dp0\n.".to_vec(), "does not begin with a protocol"),
        ("protocol 1", b"\x80\x01}.".to_vec(), "protocol 1"),
        ("protocol 6", b"\x80\x06}.".to_vec(), "protocol 6"),
        ("protocol twice", stream(&[b"\x80\x02}."]), "instruction PROTO"),
        ("no such instruction", stream(&[b"\xfe."]), "0xfe"),
        ("odd pairs", stream(&[b"}(Nu."]), "key without a value"),
        ("append to a dictionary", stream(&[b"}Na."]), "no list"),
        ("key in a list", stream(&[b"]NNs."]), "no dictionary"),
        ("persistent id of another kind", stream(&[&tuple(&[text("module")]), b"Q."]), "unknown way"),
        ("persistent id of no storage", stream(&[&storage("torch.Size", "0", 4), b"."]), "no storage class"),
        ("root is a list", stream(&[b"]."]), "no dictionary"),
        ("empty state", stream(&[b"}."]), "no tensors"),
        ("key is a number", stream(&[b"}K\x01", &w, b"s."]), "key that is not text"),
        ("model twice", stream(&[b"}", &text("model"), b"}s", &text("model"), b"}s."]), "twice"),
        ("tensor twice", stream(&[b"}", &text("w"), &w, b"s", &text("w"), &w, b"s."]), "comes twice"),
        ("name with a line feed", stream(&[b"}", &text("a\nb"), &w, b"s."]), "no proper name"),
        ("name of 300 bytes", stream(&[b"}", &text(&"n".repeat(300)), &w, b"s."]), "no proper name"),
        ("empty name", stream(&[b"}", &text(""), &w, b"s."]), "no proper name"),
    ];
    for (name, bytes, wanted) in cases {
        let message = refused(open_all(&pth(&bytes, &[0; 16])), wanted);
        assert!(message.starts_with("x.pth: "), "{name}: {message}");
        if wanted.contains("not allowed") {
            assert!(message.contains("nothing was executed"), "{name}: {message}");
        }
    }
    assert!(!Path::new("/tmp/owned").exists());
}

#[test]
fn nesting_and_cycles_neither_overflow_nor_grow() {
    // Lists and tuples, each in the next, and a list that holds itself: rows of a table.
    let nested = stream(&[b"]q\x00", &b"]h\x00a\x86q\x00".repeat(100_000), b"."]);
    assert_eq!(pickle::unpickle(&nested).unwrap().lists.len(), 100_001);
    let chain = stream(&[b")", &b"\x85".repeat(1_000_000), b"."]);
    assert_eq!(pickle::unpickle(&chain).unwrap().tuples.len(), 1_000_001);
    let cycle = stream(&[b"]q\x00h\x00a."]);
    assert_eq!(pickle::unpickle(&cycle).unwrap().lists, [[pickle::Value::List(0)]]);
    let long = vec![0u8; pickle::MAX_STREAM_BYTES + 1];
    assert!(pickle::unpickle(&long).unwrap_err().what.contains("at most 67108864 are read"));
}

#[test]
fn impossible_tensors_are_named() {
    let float = |n| storage("torch.FloatStorage", "0", n);
    let huge = i64::MAX;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (tensor(float(4), -1, &[2], &[1]), "impossible layout"),
        (tensor(float(4), 0, &[-2], &[1]), "impossible layout"),
        (tensor(float(4), 3, &[2], &[-1]), "impossible layout"),
        (tensor(float(4), 0, &[2, 2], &[1]), "impossible layout"),
        (tensor(float(4), 0, &[huge, huge], &[huge, huge]), "impossible layout"),
        (tensor(float(4), huge, &[2], &[1]), "reaches element"),
        (tensor(float(4), 0, &[2], &[huge]), "reaches element"),
        (tensor(float(4), 3, &[2], &[1]), "reaches element 5 of a storage of 4 elements"),
        (tensor(float(4), 4, &[], &[]), "reaches element 5"),
        (tensor(float(4), 5, &[0], &[1]), "reaches element 5"),
        (tensor(float(4), 0, &[1_000_000_000_000], &[0]), "is expanded"),
        (tensor(float(4), 0, &[2, 2, 2], &[1, 1, 1]), "is expanded"),
        (tensor(float(4), 0, &[1; 9], &[1; 9]), "9 dimensions"),
        (tensor(float(5), 0, &[4], &[1]), "should hold 5 elements of 4 bytes, its entry 16 bytes"),
        (tensor(float(-4), 0, &[4], &[1]), "should hold -4 elements"),
        (tensor(float(huge), 0, &[4], &[1]), "should hold"),
        (tensor(storage("torch.HalfStorage", "0", 4), 0, &[4], &[1]), "of 2 bytes"),
        (tensor(storage("torch.FloatStorage", "1", 4), 0, &[4], &[1]), "data/1, is missing"),
        (tensor(storage("torch.FloatStorage", "../../x", 4), 0, &[4], &[1]), "data/../../x, is missing"),
        (tensor(storage("torch.storage.UntypedStorage", "0", 16), 0, &[4], &[1]), "one element type"),
    ];
    for (made, wanted) in cases {
        let message = refused(open_all(&pth(&state(&made), &[0; 16])), wanted);
        assert!(message.contains("tensor \"llma.w\""), "{message}");
    }
    // Refused before a name is known.
    for (made, wanted) in [
        (tensor(int(1), 0, &[4], &[1]), "something that is no storage"),
        (tensor(storage("torch.QInt8Storage", "0", 4), 0, &[4], &[1]), "torch.QInt8Storage is not allowed"),
        (tensor(float(4), 0, &[1; 65], &[1; 65]), "65 dimensions"),
    ] {
        refused(open_all(&pth(&state(&made), &[0; 16])), wanted);
    }
    // A device tag means nothing; complex and 64-bit tensors are refused when asked for.
    let complex = tensor(storage("torch.ComplexFloatStorage", "0", 2), 0, &[2], &[1]);
    refused(open_all(&pth(&state(&complex), &[0; 16])), "type Complex64");
}

#[test]
fn hostile_archives_are_refused() {
    let stream = state(&plain(4, &[4], &[1]));
    let data = [0u8; 16];
    let good = Archive::of(vec![item("a/data.pkl", &stream), item("a/data/0", &data)]);
    open_all(&good.bytes()).unwrap();
    let with = |change: fn(&mut Archive)| {
        let mut archive = good.clone();
        change(&mut archive);
        archive.bytes()
    };
    let torch = Archive::of(vec![described("a/data.pkl", &stream), described("a/data/0", &data)]);
    let with_torch = |change: fn(&mut Archive)| {
        let mut archive = torch.clone();
        change(&mut archive);
        archive.bytes()
    };
    let zip64 = |n: u64| [&[1u8, 0, 8, 0][..], &n.to_le_bytes()].concat();
    let mut two_ends = good.bytes();
    let end = two_ends[two_ends.len() - 22..].to_vec();
    two_ends.extend(&end);
    let mut two_archives = good.bytes();
    two_archives.extend(good.bytes());
    let mut zip64_lie = good.clone();
    zip64_lie.items[1].extra = zip64(4);
    let mut zip64_missing = good.clone();
    zip64_missing.items[1].size = u32::MAX;
    let mut inside = good.clone();
    let mut hidden = item("a/b", b"x");
    hidden.ghost = true;
    hidden.header = Some(40);
    inside.items.push(hidden);
    let mut astray = good.clone();
    astray.items[1].header = Some(30 + 10 + stream.len() as u32 + 1);
    let mut same = good.clone();
    let mut again = same.items[1].clone();
    (again.name, again.local_name, again.ghost) = ("a/data/1".into(), "a/data/0".into(), true);
    again.header = Some(30 + 10 + stream.len() as u32);
    same.items.push(again);

    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("no end record", good.bytes()[..good.bytes().len() - 22].to_vec(), "download is probably incomplete"),
        ("two end records", two_ends, "several end records"),
        ("two archives", two_archives, "before its archive"),
        ("end record lost its last byte", good.bytes()[..good.bytes().len() - 1].to_vec(), "zip end record"),
        ("comment", with(|a| a.comment = b"hello".to_vec()), "comment or other bytes behind"),
        ("comment of 64 KB", with(|a| a.comment = vec![b' '; 65535]), "comment or other bytes behind"),
        ("trailing bytes", with(|a| a.after = vec![0; 100]), "comment or other bytes behind"),
        ("prepended, offsets off", with(|a| a.before = b"#!/bin/sh".to_vec()), "is no zip archive"),
        (
            "prepended, offsets right",
            with(|a| (a.before, a.shift) = (b"PK\x03\x04junk".to_vec(), 8)),
            "8 bytes stand before its first zip entry",
        ),
        ("between directory and end", with(|a| a.between = vec![0; 7]), "between its zip directory and end record"),
        ("split", with(|a| a.disk = 1), "split zip archive"),
        ("entry on another disk", with(|a| a.items[0].disk = 1), "split archive"),
        ("too few entries declared", with(|a| a.entries = Some(1)), "declares 1 zip entries but lists more"),
        ("too many entries declared", with(|a| a.entries = Some(3)), "declares 3 zip entries but lists 2"),
        ("zip64 without record", with(|a| a.full32 = true), "needs a zip64 end record"),
        ("zip64 count lies", with(|a| a.end64 = Some(|n, s, at| (n + 1, s, at))), "contradict each other"),
        ("zip64 offset lies", with(|a| a.end64 = Some(|n, s, at| (n, s, at - 1))), "contradict each other"),
        (
            "zip64 offset of 2^64-1",
            with(|a| {
                a.full32 = true;
                a.end64 = Some(|n, s, _| (n, s, u64::MAX));
            }),
            "bytes before its archive or between",
        ),
        (
            "a billion entries",
            with(|a| {
                a.full32 = true;
                a.end64 = Some(|_, s, at| (1_000_000_000, s, at));
            }),
            "at most 200000 are read",
        ),
        ("needless zip64 field", zip64_lie.bytes(), "zip64 field that contradicts"),
        ("missing zip64 field", zip64_missing.bytes(), "zip64 field that contradicts"),
        ("local name differs", with(|a| a.items[1].local_name = "a/data/1".into()), "its name in the local header"),
        ("local size differs", with(|a| a.items[1].local_size = 12), "its size in the local header"),
        ("local checksum differs", with(|a| a.items[1].local_crc ^= 1), "its checksum in the local header"),
        ("local method differs", with(|a| a.items[1].local_method = 8), "its method in the local header"),
        ("local flags differ", with(|a| a.items[1].local_flags = 8), "its flags in the local header"),
        ("offset into nothing", astray.bytes(), "no local header"),
        ("offset into another", with(|a| a.items[1].header = Some(7)), "overlaps the entry before it"),
        ("offset behind the file", with(|a| a.items[1].header = Some(1 << 30)), "reaches into the zip directory"),
        ("size beyond the file", with(|a| (a.items[1].size, a.items[1].stored) = (1 << 30, 1 << 30)), "its size in the local header"),
        (
            "sizes beyond the file",
            with(|a| (a.items[1].size, a.items[1].stored, a.items[1].local_size) = (1 << 30, 1 << 30, 1 << 30)),
            "reaches into the zip directory",
        ),
        ("entry inside another", inside.bytes(), "overlaps the entry before it"),
        ("two names for one entry", same.bytes(), "overlaps the entry before it"),
        ("name twice", with(|a| a.items.push(item("a/data/0", b""))), "two zip entries named a/data/0"),
        ("name twice in other case", with(|a| a.items.push(item("A/DATA/0", b""))), "two zip entries named A/DATA/0"),
        ("compressed", with(|a| (a.items[1].method, a.items[1].local_method) = (8, 8)), "is compressed (method 8)"),
        ("compressed in size", with(|a| a.items[1].stored = 3), "takes 3 bytes for 16"),
        ("encrypted", with(|a| (a.items[1].flags, a.items[1].local_flags) = (1, 1)), "is encrypted"),
        ("strong encryption", with(|a| (a.items[1].flags, a.items[1].local_flags) = (0x41, 0x41)), "is encrypted"),
        ("hidden headers", with(|a| (a.items[1].flags, a.items[1].local_flags) = (0x2000, 0x2000)), "unusual (flags 0x2000)"),
        ("absolute name", with(|a| a.items.push(item("/etc/passwd", b""))), "unsafe name"),
        ("name that climbs", with(|a| a.items.push(item("a/../../x", b""))), "unsafe name"),
        ("name for windows", with(|a| a.items.push(item("..\\x", b""))), "unsafe name"),
        ("name with controls", with(|a| a.items.push(item("a/\x1b[2J", b""))), "unsafe name"),
        ("empty name", with(|a| a.items.push(item("", b""))), "unsafe name"),
        ("long name", with(|a| a.items.push(item(&"n".repeat(2000), b""))), "unsafe name"),
        ("descriptor lies", with_torch(|a| a.items[1].descriptor[8] ^= 1), "data descriptor"),
        ("descriptor checksum lies", with_torch(|a| a.items[1].descriptor[4] ^= 1), "data descriptor"),
        ("descriptor missing", with_torch(|a| a.items[0].descriptor.clear()), "data descriptor"),
        ("descriptor and a lying header", with_torch(|a| a.items[1].local_size = 12), "its size in the local header"),
        ("no data.pkl", with(|a| drop(a.items.remove(0))), "without data.pkl"),
        ("two data.pkl", with(|a| a.items.push(item("b/data.pkl", b""))), "more than one data.pkl"),
        ("TorchScript", with(|a| a.items.push(item("a/constants.pkl", b""))), "TorchScript"),
        ("TorchScript code", with(|a| a.items.push(item("a/code/__torch__.py", b""))), "TorchScript"),
        ("big-endian", with(|a| a.items.push(item("a/byteorder", b"big"))), "big-endian byte order"),
        (
            "checksum of the description",
            with(|a| (a.items[0].crc, a.items[0].local_crc) = (1, 1)),
            "a/data.pkl does not match its checksum",
        ),
        ("empty archive", with(|a| a.items.clear()), "without data.pkl"),
        ("empty file", vec![], "is empty"),
        ("one byte", vec![b'P'], "is no zip archive"),
        ("a web page", b"<!DOCTYPE html><html>".to_vec(), "looks like a web page"),
        ("a pointer", b"version https://git-lfs.github.com/spec/v1\noid".to_vec(), "git-lfs pointer"),
        ("GGUF", b"GGUF\x03\x00\x00\x00".to_vec(), "GGUF file"),
        ("tar", [&[b'x'; 257][..], b"ustar\0", &[0; 300]].concat(), "tar archive"),
        ("a pickle", b"\x80\x04}.".to_vec(), "legacy (non-zip) torch file"),
        ("safetensors", b"\x02\0\0\0\0\0\0\0{}".to_vec(), "looks like a safetensors file"),
    ];
    for (name, bytes, wanted) in cases {
        let message = refused(open_all(&bytes), wanted);
        assert!(message.starts_with("x.pth: "), "{name}: {message}");
    }
}

#[test]
fn a_wrong_checksum_names_the_tensor() {
    let stream = state(&plain(4, &[2], &[2]));
    for damage in 0..16 {
        let mut archive = Archive::of(vec![item("a/data.pkl", &stream), item("a/data/0", &[7; 16])]);
        archive.items[1].data[damage] ^= 0x10;
        let message = refused(open_all(&archive.bytes()), "tensor \"llma.w\"");
        assert!(message.contains("does not match its checksum"), "{message}");
    }
}

/// Cut anywhere or with any bit flipped, a file is refused or reads as before.
#[test]
fn truncated_and_flipped_files_are_noticed_or_harmless() {
    let bytes = std::fs::read(fixtures().join("later/consolidated.00-of-01.model.pth")).unwrap();
    let wanted = open_all(&bytes).unwrap();
    for length in 0..bytes.len() {
        let error = open_all(&bytes[..length]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{length}: {error}");
        if length > 4 {
            assert!(error.to_string().contains("incomplete"), "{length}: {error}");
        }
    }
    let mut refusals = 0;
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            match open_all(&flipped) {
                Ok(found) => assert_eq!(found, wanted, "bit {bit} of byte {at}"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
                    refusals += 1;
                }
            }
        }
    }
    assert!(refusals > bytes.len() * 8 / 3, "{refusals}");
}

fn copy(from: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(fixtures().join(from)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn open(folder: &Path) -> Result<Checkpoint> {
    Checkpoint::open(&[folder.to_owned()])
}

#[test]
fn shards_that_do_not_belong_together_are_refused() {
    const FIRST: &str = "consolidated.00-of-02.model.pth";
    const SECOND: &str = "consolidated.01-of-02.model.pth";
    let scratch = tempfile::tempdir().unwrap();
    let case = |name: &str, change: &dyn Fn(&Path)| {
        let folder = scratch.path().join(name);
        copy("two", &folder);
        change(&folder);
        folder
    };
    let one_of = |bytes: &[u8]| -> Vec<u8> { bytes.to_vec() };
    let shard = |names: &[(&str, i64)]| {
        let items: Vec<Vec<u8>> = names.iter().map(|(n, rows)| [text(n), plain(4, &[*rows], &[1])].concat()).collect();
        pth(&stream(&[b"}(", &items.concat(), b"u."]), &[0; 16])
    };

    let folder = case("missing", &|f| std::fs::remove_file(f.join(FIRST)).unwrap());
    refused(open(&folder), "holds consolidated.01-of-02.model.pth, but consolidated.00-of-02.model.pth is missing");
    let folder = case("mixed counts", &|f| drop(std::fs::copy(f.join(FIRST), f.join("consolidated.00-of-03.model.pth"))));
    refused(open(&folder), "does not belong");
    let folder = case("odd number", &|f| drop(std::fs::rename(f.join(SECOND), f.join("consolidated.02-of-02.model.pth"))));
    refused(open(&folder), "consolidated.02-of-02.model.pth, which does not belong to 2");
    let folder = case("two formats", &|f| drop(std::fs::copy(f.join(FIRST), f.join("consolidated.00.pth"))));
    refused(open(&folder), "files of two formats");
    let folder = case("with safetensors", &|f| std::fs::write(f.join("model.safetensors"), b"").unwrap());
    refused(open(&folder), "files of two formats");
    let folder = case("delta", &|f| {
        std::fs::remove_file(f.join(FIRST)).unwrap();
        std::fs::rename(f.join(SECOND), f.join("consolidated.00-of-01.model-diff.pth")).unwrap();
    });
    refused(open(&folder), "delta (model-diff), which is not supported");
    let folder = case("linked", &|f| {
        std::fs::remove_file(f.join(SECOND)).unwrap();
        std::fs::hard_link(f.join(FIRST), f.join(SECOND)).unwrap();
    });
    let message = refused(open(&folder), "is the same file as consolidated.00-of-02.model.pth");
    assert!(message.contains(SECOND), "{message}");
    let folder = case("cut", &|f| std::fs::write(f.join(SECOND), &std::fs::read(f.join(SECOND)).unwrap()[..2000]).unwrap());
    let message = refused(open(&folder), "download is probably incomplete");
    assert!(message.contains(SECOND), "{message}");
    let folder = case("other keys", &|f| {
        std::fs::write(f.join(FIRST), shard(&[("a", 4), ("b", 4)])).unwrap();
        std::fs::write(f.join(SECOND), shard(&[("a", 4)])).unwrap();
    });
    let message = refused(open(&folder), "tensor \"b\"");
    assert!(message.contains(FIRST) && message.contains(SECOND), "{message}");
    let folder = case("other shapes", &|f| {
        std::fs::write(f.join(FIRST), shard(&[("a", 4)])).unwrap();
        std::fs::write(f.join(SECOND), shard(&[("a", 3)])).unwrap();
    });
    let opened = open(&folder).unwrap();
    for rule in [Rule::Same, Rule::Dim0] {
        let message = refused(opened.merged("a", rule), "F32 of shape [4] in consolidated.00-of-02.model.pth, F32 of shape [3] here");
        assert!(message.contains(SECOND) && message.contains("tensor \"a\""), "{message}");
    }
    refused(opened.merged("a", Rule::Owner), "it should be in one shard");
    let folder = case("owner asked of all", &|_| {});
    refused(open(&folder).unwrap().merged("llma.experts.0.w1.owner", Rule::Same), "lacks a tensor that");

    // Replicas that differ, and a copy of a shard, are notes.
    let folder = case("replicas", &|f| {
        std::fs::write(f.join(FIRST), one_of(&pth(&state(&plain(4, &[4], &[1])), &[0; 16]))).unwrap();
        std::fs::write(f.join(SECOND), one_of(&pth(&state(&plain(4, &[4], &[1])), &[1; 16]))).unwrap();
    });
    let merged = open(&folder).unwrap().merged("llma.w", Rule::Same).unwrap();
    assert!(merged.note().unwrap().contains("differs between consolidated.00-of-02.model.pth and"), "{:?}", merged.note());
    assert_eq!(open(&folder).unwrap().merged("llma.w", Rule::Dim0).unwrap().note(), None);
    let folder = case("copied", &|f| {
        let bytes = pth(&state(&plain(4, &[4], &[1])), &[0; 16]);
        std::fs::write(f.join(FIRST), &bytes).unwrap();
        std::fs::write(f.join(SECOND), &bytes).unwrap();
    });
    let opened = open(&folder).unwrap();
    assert!(opened.notes().iter().any(|n| n.contains("hold the same data")), "{:?}", opened.notes());
    assert_eq!(opened.merged("llma.w", Rule::Same).unwrap().note(), None);
}

#[test]
fn folders_and_odd_files() {
    let scratch = tempfile::tempdir().unwrap();
    let missing = scratch.path().join("nowhere");
    assert_eq!(open(&missing).err().unwrap().kind(), ErrorKind::Io);
    refused(open(scratch.path()), "holds no checkpoint files");
    assert!(matches!(Checkpoint::open(&[]), Err(ConvertError::Usage(_))));
    for name in ["with space", "ünïcode", "-dash", &"x".repeat(250)] {
        let folder = scratch.path().join(name);
        copy("types", &folder);
        assert_eq!(open(&folder).unwrap().llama_type(), Some("llama_ens_light"));
    }
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::ffi::OsStrExt;
        let folder = scratch.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
        copy("types", &folder);
        std::fs::write(folder.join(std::ffi::OsStr::from_bytes(b"consolidated.\xff.pth")), b"").unwrap();
        open(&folder).unwrap();
    }
    #[cfg(unix)]
    {
        // Nothing is opened that could block or loop.
        let folder = scratch.path().join("pipe");
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("consolidated.00-of-01.model.pth");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        refused(open(&folder), "is not a regular file");
        refused(Checkpoint::open(std::slice::from_ref(&path)), "is not a regular file");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        refused(open(&folder), "is not a regular file");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        refused(open(&folder), "loop of symbolic links");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        refused(open(&folder), "is not a regular file");
    }
}

#[test]
fn settings_are_checked() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("case");
    copy("types", &folder);
    let config = |text: &str| std::fs::write(folder.join("config.json"), text).unwrap();
    for (text, wanted) in [
        ("[1]", "not an object"),
        ("", "not valid JSON"),
        ("{\"dim\": 1, \"dim\": 1}", "key \"dim\" comes twice"),
        ("{\"moe\": {\"a\": 1, \"a\": 2}}", "key \"a\" comes twice"),
        ("{\"dim\": 1e999}", "not valid JSON"),
        ("{\"dim\": NaN}", "not valid JSON"),
        ("{} {}", "not valid JSON"),
        (&("{\"a\":".to_owned() + &"[".repeat(100_000)), "not valid JSON"),
        (&format!("{{\"a\": \"{}\"}}", "x".repeat(1 << 20)), "at most 1048576 are read"),
    ] {
        config(text);
        let message = refused(open(&folder), wanted);
        assert!(message.contains("config.json"), "{message}");
    }
    config("{\"rope_theta\": 1e6, \"n_kv_heads\": null}");
    assert_eq!(open(&folder).unwrap().config()["rope_theta"], 1e6);
    std::fs::remove_file(folder.join("config.json")).unwrap();
    assert!(open(&folder).unwrap().config().is_empty());
    std::fs::write(folder.join("meta.json"), "{\"llama_type\": 7}").unwrap();
    refused(open(&folder), "llama_type that is not text");
    std::fs::write(folder.join("meta.json"), "{}").unwrap();
    assert_eq!(open(&folder).unwrap().llama_type(), None);
    #[cfg(unix)]
    {
        std::fs::remove_file(folder.join("meta.json")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", folder.join("meta.json")).unwrap();
        refused(open(&folder), "is not a regular file");
    }
}

#[test]
fn hostile_safetensors_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("model.safetensors");
    let file = |header: &str, data: usize| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat();
    let one = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!("{{\"w\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}}}")
    };
    let two = |a: (u64, u64), b: (u64, u64)| {
        let t = |(from, to): (u64, u64)| format!("{{\"dtype\":\"F32\",\"shape\":[{}],\"data_offsets\":[{from},{to}]}}", (to - from) / 4);
        format!("{{\"__metadata__\":{{\"format\":\"pt\"}},\"a\":{},\"b\":{}}}", t(a), t(b))
    };
    std::fs::write(&path, file(&two((8, 16), (0, 8)), 16)).unwrap();
    assert_eq!(open(scratch.path()).unwrap().names().collect::<Vec<_>>(), ["a", "b"]);
    let many = (0..70_000).map(|i| format!("\"t{i}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}")).collect::<Vec<_>>();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", vec![], "too short"),
        ("header of length 0", file("", 0), "does not begin with {"),
        ("header of 2^63", [&(1u64 << 63).to_le_bytes()[..], b"{}"].concat(), "declares a header"),
        ("header of 2^64-1", [&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "declares a header"),
        ("header beyond the file", [&3u64.to_le_bytes()[..], b"{}"].concat(), "declares a header of 3 bytes but is 10"),
        ("not an object", file("[]", 0), "does not begin with {"),
        ("not UTF-8", [&4u64.to_le_bytes()[..], b"{\"\xff\""].concat(), "broken header"),
        ("not JSON", file("{\"a\"}", 0), "broken header"),
        ("deep", file(&("{\"a\":".to_owned() + &"[".repeat(100_000)), 0), "broken header"),
        ("twice", file(&two((0, 8), (8, 16)).replace("\"b\"", "\"a\""), 16), "\"a\\\" comes twice"),
        ("hole", file(&two((0, 8), (12, 20)), 20), "leave a hole"),
        ("overlap", file(&two((0, 8), (4, 12)), 12), "overlap"),
        ("inside", file(&two((0, 16), (4, 8)), 16), "overlap"),
        ("starts late", file(&one("F32", "[1]", 4, 8), 8), "leave a hole"),
        ("bytes behind", file(&two((0, 8), (8, 16)), 17), "its tensors end at byte"),
        ("cut", file(&two((0, 8), (8, 16)), 15), "has data at bytes 8..16 of 15"),
        ("backwards", file(&one("F32", "[0]", 4, 0), 4), "has data at bytes 4..0"),
        ("wrong size", file(&one("F32", "[3]", 0, 16), 16), "states F32 of shape [3] but 16 bytes"),
        ("overflow", file(&one("F32", "[9223372036854775807,9]", 0, 16), 16), "but 16 bytes"),
        ("offset 2^64-1", file(&one("F32", "[4]", 0, u64::MAX), 16), "has data at bytes"),
        ("negative", file(&one("F32", "[-1]", 0, 4), 4), "broken header"),
        ("fraction", file(&one("F32", "[1.5]", 0, 4), 4), "broken header"),
        ("unknown type", file(&one("Q4_0", "[8]", 0, 4), 4), "broken header"),
        ("metadata", file("{\"__metadata__\":{\"a\":1}}", 0), "broken header"),
        ("bad name", file(&one("F32", "[1]", 0, 4).replace("\"w\"", "\"a\\u001b\""), 4), "no proper name"),
        ("70,000 tensors", file(&format!("{{{}}}", many.join(",")), 0), "more than 65536 tensors"),
    ];
    for (name, bytes, wanted) in cases {
        std::fs::write(&path, bytes).unwrap();
        let message = refused(open(scratch.path()), "");
        assert!(message.contains(wanted) || message.contains(&wanted.replace("\\\"", "\"")), "{name}: {message}");
        assert!(message.contains("model.safetensors"), "{name}: {message}");
    }
    std::fs::write(&path, file(&one("F64", "[1]", 0, 8), 8)).unwrap();
    refused(open(scratch.path()).unwrap().merged("w", Rule::Same), "type F64");
    std::fs::write(&path, file(&one("I64", "[1]", 0, 8), 8)).unwrap();
    assert_eq!(open(scratch.path()).unwrap().names().count(), 0);
}

#[test]
fn an_index_leads_nowhere_else() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("parts");
    copy("parts", &folder);
    let index = folder.join("model.safetensors.index.json");
    let good = std::fs::read_to_string(&index).unwrap();
    let second = "model-00002-of-00002.safetensors";
    let outside = scratch.path().join(second);
    std::fs::copy(folder.join(second), &outside).unwrap();
    for target in ["../model-00002-of-00002.safetensors", outside.to_str().unwrap(), "model.safetensors.index.json", "/dev/zero", "..", ""]
    {
        std::fs::write(&index, good.replace(second, target)).unwrap();
        refused(open(&folder), "not the plain name of a .safetensors file");
    }
    std::fs::write(&index, good.replace(second, "gone.safetensors")).unwrap();
    refused(open(&folder), "gone.safetensors, which is missing");
    std::fs::write(&index, good.replace("model.b.same", "model.c.same")).unwrap();
    refused(open(&folder), "tensor \"model.c.same\"");
    std::fs::write(&index, "{\"weight_map\": []}").unwrap();
    refused(open(&folder), "no object \"weight_map\"");
    std::fs::write(&index, "{\"weight_map\": {}}").unwrap();
    refused(open(&folder), "lists no tensors");
    #[cfg(unix)]
    {
        std::fs::write(&index, good.replace(second, "pipe.safetensors")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(folder.join("pipe.safetensors")).status().unwrap().success());
        refused(open(&folder), "is not a regular file");
        std::fs::write(&index, good.replace(second, "loop.safetensors")).unwrap();
        std::os::unix::fs::symlink("loop.safetensors", folder.join("loop.safetensors")).unwrap();
        refused(open(&folder), "loop of symbolic links");
    }
    // Without an index the numbers must be complete, and no tensor may come twice.
    std::fs::remove_file(&index).unwrap();
    open(&folder).unwrap();
    std::fs::copy(folder.join("model-00001-of-00002.safetensors"), folder.join(second)).unwrap();
    refused(open(&folder), "has a tensor that model-00001-of-00002.safetensors has too");
    std::fs::remove_file(folder.join(second)).unwrap();
    refused(open(&folder), "model-00002-of-00002.safetensors");
}

/// A file of `torch.save` with vectors of two numbers each under these names.
fn bin(tensors: &[(&str, [f32; 2])]) -> Vec<u8> {
    let mut body = vec![b"}".to_vec()];
    for (i, (name, _)) in tensors.iter().enumerate() {
        let whole = storage("torch.FloatStorage", "0", 2 * tensors.len() as i64);
        body.extend([text(name), tensor(whole, 2 * i as i64, &[2], &[1]), b"s".to_vec()]);
    }
    body.push(b".".to_vec());
    let data: Vec<u8> = tensors.iter().flat_map(|(_, v)| v).flat_map(|x| x.to_le_bytes()).collect();
    pth(&stream(&[&body.concat()]), &data)
}

const BIN: [&str; 2] = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
const BIN_INDEX: &str = "pytorch_model.bin.index.json";

/// Two parts and their index.
fn bin_parts(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join(BIN[0]), bin(&[("model.a", [1.0, 2.0]), ("model.b", [3.0, 4.0])])).unwrap();
    std::fs::write(folder.join(BIN[1]), bin(&[("lm_head", [5.0, 6.0])])).unwrap();
    let index = format!(
        r#"{{"metadata": {{"total_size": 24}}, "weight_map": {{"model.a": "{0}", "model.b": "{0}", "lm_head": "{1}"}}}}"#,
        BIN[0], BIN[1]
    );
    std::fs::write(folder.join(BIN_INDEX), index).unwrap();
}

#[test]
fn torch_parts_and_their_index_are_one_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("hub");
    bin_parts(&folder);
    for (name, data) in [("training_args.bin", "x"), ("optimizer.pt", "x"), ("config.json", r#"{"model_type": "llama"}"#)] {
        std::fs::write(folder.join(name), data).unwrap();
    }
    let all =
        |c: &Checkpoint| -> Vec<(String, Vec<f32>)> { c.names().map(|n| (n.to_owned(), read(c, n, Rule::Same, 1).unwrap().1)).collect() };
    let want = vec![("lm_head".to_owned(), vec![5.0, 6.0]), ("model.a".to_owned(), vec![1.0, 2.0]), ("model.b".to_owned(), vec![3.0, 4.0])];
    let opened = open(&folder).unwrap();
    assert_eq!((all(&opened), opened.notes()), (want.clone(), &[][..]));
    std::fs::remove_file(folder.join(BIN_INDEX)).unwrap();
    assert_eq!(all(&open(&folder).unwrap()), want);
    let alone = scratch.path().join("alone");
    std::fs::create_dir(&alone).unwrap();
    std::fs::copy(folder.join(BIN[0]), alone.join("pytorch_model.bin")).unwrap();
    assert_eq!(all(&open(&alone).unwrap()), want[1..]);
    assert_eq!(all(&open(&alone.join("pytorch_model.bin")).unwrap()), want[1..]);

    refused(open(&folder.join(BIN[0])), "is one shard of several");
    std::fs::write(folder.join("pytorch_model.bin"), bin(&[("z", [0.0; 2])])).unwrap();
    refused(open(&folder), "holds pytorch_model.bin and numbered parts of another");
    std::fs::remove_file(folder.join("pytorch_model.bin")).unwrap();
    std::fs::write(folder.join(BIN[1]), b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.").unwrap();
    let message = refused(open(&folder), "is a legacy (non-zip) torch file");
    assert!(message.contains(BIN[1]) && message.contains("re-save"), "{message}");
    std::fs::remove_file(folder.join(BIN[1])).unwrap();
    refused(open(&folder), "holds 1 of 2 bin parts; see pytorch_model-00002-of-00002.bin");
}

#[test]
fn of_the_same_weights_in_two_formats_safetensors_are_taken() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("both");
    copy("parts", &folder);
    bin_parts(&folder);
    let opened = open(&folder).unwrap();
    assert!(opened.names().any(|n| n == "model.b.same") && !opened.names().any(|n| n == "lm_head"));
    assert!(opened.notes().iter().any(|n| n.contains("*.safetensors is taken")), "{:?}", opened.notes());
    std::fs::write(folder.join("consolidated.00.pth"), bin(&[("x", [0.0; 2])])).unwrap();
    refused(open(&folder), "holds files of two formats");
}

#[test]
fn an_index_is_checked_against_the_files() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("hub");
    bin_parts(&folder);
    let index = folder.join(BIN_INDEX);
    let good = std::fs::read_to_string(&index).unwrap();
    let says = |text: String, wanted: &str| {
        std::fs::write(&index, text).unwrap();
        let message = refused(open(&folder), wanted);
        assert!(message.contains("hub"), "{message}");
        message
    };
    let swapped = good.replace(&format!(r#""lm_head": "{}""#, BIN[1]), &format!(r#""lm_head": "{}""#, BIN[0]));
    // Nothing points to the second part any more.
    says(swapped.clone(), "holds pytorch_model-00002-of-00002.bin, which its index does not mention");
    let swapped = swapped.replace(&format!(r#""model.b": "{}""#, BIN[0]), &format!(r#""model.b": "{}""#, BIN[1]));
    let message = says(swapped, &format!("has a tensor that is in {}", BIN[1]));
    assert!(message.contains("lm_head") && message.contains(BIN_INDEX), "{message}");
    says(good.replace("lm_head", "lm_foot"), "has a tensor that it lacks");
    let deep = format!("{{\"weight_map\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for (text, wanted) in [
        (good.replace(BIN[1], "../pytorch_model.bin"), "not the plain name of a .bin file"),
        (good.replace(BIN[1], "/etc/passwd"), "not the plain name of a .bin file"),
        (good.replace(BIN[1], "model.safetensors"), "not the plain name of a .bin file"),
        (good.replace(BIN[1], r#"a\u0000.bin"#), "not the plain name of a .bin file"),
        (good.replace(BIN[1], BIN_INDEX), "not the plain name of a .bin file"),
        (good.replace(&format!("\"{}\"", BIN[1]), "7"), "not the plain name of a .bin file"),
        (good.replace(&format!("\"{}\"", BIN[1]), "{\"file\": []}"), "not the plain name of a .bin file"),
        (good.replace(BIN[1], &format!("{}.bin", "x".repeat(300))), "not the plain name of a .bin file"),
        (good.replace(BIN[1], "pytorch_model-00003-of-00002.bin"), "which is missing"),
        (good.replace("model.b", "model.a"), "comes twice"),
        (good[..good.len() - 3].to_owned(), "is not valid JSON"),
        ("[1]".into(), "not an object"),
        (r#"{"weight_map": null}"#.into(), "no object \"weight_map\""),
        (deep, "is not valid JSON"),
        (" ".repeat((16 << 20) + 1), "at most 16777216 are read"),
    ] {
        says(text, wanted);
    }
    // A tensor that is in no list is converted or named as any other, and said.
    std::fs::write(&index, good.replace(&format!(r#""model.b": "{}", "#, BIN[0]), "")).unwrap();
    let opened = open(&folder).unwrap();
    assert!(opened.names().any(|n| n == "model.b") && opened.notes().iter().any(|n| n.contains("does not list: model.b")));
}

#[test]
fn a_visual_half_needs_neither_settings_nor_a_vocabulary() {
    let scratch = tempfile::tempdir().unwrap();
    let tensors = bin(&[("llma.start_img", [1.0, 2.0]), ("llma.dinov2_vitg14.cls_token", [3.0, 4.0])]);
    for name in ["visual.pth", "consolidated.00-of-01.model.pth", "visual.bin"] {
        let path = scratch.path().join(name);
        std::fs::write(&path, &tensors).unwrap();
        let opened = open(&path).unwrap();
        assert_eq!((opened.names().count(), opened.config().len(), opened.llama_type()), (2, 0, None), "{name}");
    }
    assert_eq!(open(scratch.path()).unwrap().shapes("llma.start_img").unwrap(), [[2]]);
}

#[test]
fn a_file_that_changed_is_noticed() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("case");
    copy("later", &folder);
    let path = folder.join("consolidated.00-of-01.model.pth");
    let bytes = std::fs::read(&path).unwrap();
    let opened = open(&folder).unwrap();
    opened.unchanged().unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(opened.unchanged().unwrap_err().kind(), ErrorKind::Io);
    std::fs::write(&path, &bytes[..10]).unwrap();
    let error = read(&opened, "llma.norm.same", Rule::Same, 1).unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("became shorter"), "{error}");

    // Replaced by another file of the same length and time.
    std::fs::write(&path, &bytes).unwrap();
    let opened = open(&folder).unwrap();
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    let other = folder.join("other");
    std::fs::write(&other, &bytes).unwrap();
    std::fs::File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
    opened.unchanged().unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert!(opened.unchanged().unwrap_err().to_string().contains("changed while it was being read"));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(opened.unchanged().unwrap_err().kind(), ErrorKind::Io);
}

/// Bytes a state is made of, so that random streams get further than the first instruction.
fn fragment() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => any::<u8>().prop_map(|b| vec![b]),
        6 => prop::sample::select(&b"(}])tuaesbRQNq\x85\x86\x87\x88\x89\x94."[..]).prop_map(|b| vec![b]),
        2 => (0u8..4).prop_map(|i| vec![b'q', i]),
        2 => (0u8..4).prop_map(|i| vec![b'h', i]),
        2 => any::<i64>().prop_map(int),
        2 => "[a-z]{0,8}".prop_map(|s| text(&s)),
        1 => prop::collection::vec(-3i64..9, 0..4).prop_map(|v| ints(&v)),
        1 => (-1i64..9, any::<bool>()).prop_map(|(n, half)| storage(if half { "torch.HalfStorage" } else { "torch.FloatStorage" }, "0", n)),
        1 => (-1i64..5, prop::collection::vec(0i64..4, 0..3), prop::collection::vec(0i64..4, 0..3))
            .prop_map(|(o, d, s)| tensor(storage("torch.FloatStorage", "0", 4), o, &d, &s)),
        1 => Just(global("torch._utils", "_rebuild_parameter")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_pickles_do_not_panic(parts in prop::collection::vec(fragment(), 0..60), closing in any::<bool>()) {
        let mut body = parts.concat();
        if closing {
            body = [&b"}"[..], &text("w"), &body, b"s."].concat();
        }
        let _ = open_all(&pth(&stream(&[&body]), &[0; 16]));
    }

    #[test]
    fn random_layouts_are_read_or_refused(
        offset in -2i64..20,
        dims in prop::collection::vec((-1i64..6, -1i64..12), 0..4),
    ) {
        let (shape, stride): (Vec<i64>, Vec<i64>) = dims.into_iter().unzip();
        let data: Vec<u8> = (0..16u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        let made = tensor(storage("torch.FloatStorage", "0", 16), offset, &shape, &stride);
        match open_all(&pth(&state(&made), &data)) {
            Ok(found) => {
                let first = found[0].1.first().map(|&b| f32::from_bits(b));
                prop_assert!(first.is_none_or(|v| v == offset as f32));
            }
            Err(e) => prop_assert!(e.to_string().contains("tensor \"llma.w\""), "{}", e),
        }
    }

    #[test]
    fn random_archives_do_not_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        shorten in any::<bool>(),
    ) {
        let stream = state(&plain(4, &[4], &[1]));
        let mut archive = Archive::of(vec![described("a/data.pkl", &stream), described("a/data/0", &[5; 16])]);
        archive.end64 = Some(|n, s, at| (n, s, at));
        let mut bytes = archive.bytes();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if shorten {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(found) = open_all(&bytes) {
            prop_assert_eq!(&found[0].1, &vec![f32::from_le_bytes([5; 4]).to_bits(); 4]);
        }
    }

    #[test]
    fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = open_all(&bytes);
        let _ = open_all(&[&b"PK\x03\x04"[..], &bytes].concat());
        let _ = pickle::unpickle(&bytes);
    }
}

/// What fuzzing starts from, and what it once found.
#[test]
fn fuzzing_seeds_are_read() {
    let corpus = |target: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(!files.is_empty());
        files.into_iter().map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&p).unwrap()))
    };
    let storage: Vec<u8> = (0..64).collect();
    for (name, stream) in corpus("pickle") {
        let found = open_all(&pth(&stream, &storage)).map(|found| found.len()).unwrap_or(0);
        let wanted = match name.as_str() {
            "plain" | "framed" => 1,
            "wrapped" | "typed" => 2,
            _ => 0,
        };
        assert_eq!(found, wanted, "{name}: {:?}", open_all(&pth(&stream, &storage)));
    }
    for (name, bytes) in corpus("pth_zip") {
        let read = open_all(&bytes);
        assert_eq!(read.is_ok(), ["plain", "wide", "described"].contains(&name.as_str()), "{name}: {read:?}");
    }
    for (name, bytes) in corpus("sentencepiece") {
        let read = sphinx_convert::tokenizer::parse_sentencepiece(&bytes);
        assert_eq!(read.is_ok(), name == "bpe", "{name}");
    }
}
