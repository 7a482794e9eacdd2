//! Files that are wrong: refused with one line that says where, never a panic.

mod gguf_support;

use gguf_support::*;
use sphinx_quant::ErrorKind;
use sphinx_quant::gguf::Gguf;

/// Opens `bytes`, which must be refused with a line that holds `wanted`.
#[track_caller]
fn refused(bytes: Vec<u8>, wanted: &str) {
    let e = match Gguf::from_bytes("model.gguf", bytes) {
        Ok(g) => panic!("accepted, wanted: {wanted}; {g:?}"),
        Err(e) => e,
    };
    let line = e.to_string();
    assert_eq!(e.kind(), ErrorKind::Invalid, "{line}");
    assert!(line.contains(wanted), "wanted: {wanted}\nfound: {line}");
    assert!(line.starts_with("model.gguf: ") && line.contains(" — "), "{line}");
    assert!(!line.chars().any(char::is_control) && line.len() < 900, "{line:?}");
}

#[track_caller]
fn accepted(bytes: Vec<u8>) -> Gguf {
    Gguf::from_bytes("model.gguf", bytes).unwrap()
}

#[test]
fn the_hand_made_file_is_right() {
    let g = accepted(Hand::new().bytes());
    assert_eq!((g.arch(), g.alignment(), g.tensors().len(), g.trailing_bytes()), ("llama", 32, 1, 0));
}

// Item 1.
#[test]
fn too_short() {
    refused(vec![], "the file is empty");
    for n in [1, 3, 4, 23] {
        refused(Hand::new().bytes()[..n].to_vec(), "too short");
    }
    let header_only = [&b"GGUF"[..], &3u32.to_le_bytes(), &[0; 16]].concat();
    refused(header_only, "key \"general.architecture\" is missing");
    refused(Hand::new().tensors(&[]).data(0).bytes(), "no tensors");
}

// Item 2.
#[test]
fn what_it_looks_like() {
    let with = |head: &[u8]| [head, &[7; 60][..]].concat();
    let mut big_endian = Hand { version: 3u32.swap_bytes(), ..Hand::new() }.bytes();
    refused(big_endian.clone(), "big-endian GGUF file (version 3)");
    big_endian[..4].copy_from_slice(b"FUGG");
    refused(big_endian, "big-endian");
    refused(with(b"gguf"), "lower-case");
    refused([&5u64.to_le_bytes()[..], b"{\"a\":1}      "].concat(), "safetensors");
    refused(with(b"PK\x03\x04"), "zip archive, perhaps a .pth");
    refused(with(b"\x80\x02}q"), "pickle");
    refused(b"\n <!DOCTYPE html><html>".to_vec(), "HTML page");
    refused(b"<HTML><body>404".to_vec(), "HTML page");
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(), "git-lfs pointer");
    refused(with(b"tjgg"), "before GGUF");
    refused(with(b"\x1f\x8b"), "compressed");
    refused(b"{\"error\": \"not found\"}".to_vec(), "JSON");
    refused(with(b"ELF"), "no GGUF file");
    refused(vec![0; 100], "no GGUF file");
}

// Item 3.
#[test]
fn versions() {
    for v in [0, 1, 2, 4, u32::MAX] {
        refused(Hand { version: v, ..Hand::new() }.bytes(), &format!("GGUF version {v}; supported is version 3 only"));
    }
}

// Item 4.
#[test]
fn counts() {
    for n in [u64::MAX, 1 << 32, 65_537] {
        refused(Hand { tensor_count: Some(n), ..Hand::new() }.bytes(), &format!("{n} tensors"));
        refused(Hand { key_count: Some(n), ..Hand::new() }.bytes(), &format!("{n} metadata keys"));
    }
    refused(Hand { tensor_count: Some(65_536), ..Hand::new() }.bytes(), "a tensor has no name");
    refused(Hand { key_count: Some(65_536), ..Hand::new() }.bytes(), "a metadata key");
    refused(Hand { tensor_count: Some(2), ..Hand::new() }.bytes(), "a tensor has no name");
}

// Item 5.
#[test]
fn bad_keys() {
    let with = |k: Vec<u8>| Hand::new().key(k).bytes();
    for n in [u64::MAX, 1 << 63, 1025] {
        refused(with([&n.to_le_bytes()[..], b"abc"].concat()), "a metadata key is");
    }
    refused(with(1000u64.to_le_bytes().to_vec()), "it ends inside a metadata key");
    refused(with(key("", U32, [0; 4])), "a metadata key is empty");
    refused(with(key(b"a\xffb", U32, [0; 4])), "not UTF-8");
    refused(with(key("a\0b", U32, [0; 4])), "a metadata key has control characters: \"a\\u{0}b\"");
    refused(with(key("a\x1b[2Jb", U32, [0; 4])), "control characters");
    for v in [0u8, 1] {
        refused(Hand::new().key(key("a", U8, [0])).key(key("a", U8, [v])).bytes(), "key \"a\" appears twice");
    }
    let mut many = Hand::new();
    many.keys.extend((0..10_000).map(|i| key(format!("k{i}"), U32, [1; 4])));
    assert_eq!(accepted(many.bytes()).metadata().len(), 10_001);
    many.keys.push(key("k77", U32, [1; 4]));
    refused(many.bytes(), "key \"k77\" appears twice");
}

// Item 6.
#[test]
fn bad_values() {
    let with = |ty: u32, payload: Vec<u8>| Hand::new().key(key("a.b", ty, payload)).bytes();
    for ty in [13, 255, u32::MAX] {
        refused(with(ty, vec![0; 64]), &format!("the value of \"a.b\" is of type {ty}, unknown"));
        refused(with(ARRAY, array(ty, 1, [0; 64])), &format!("the value of \"a.b\" is an array of type {ty}, unknown"));
    }
    let mut nested = array(U8, 1, [0]);
    for depth in 1..=65 {
        nested = array(ARRAY, 1, nested);
        if [1, 2, 65].contains(&depth) {
            refused(with(ARRAY, nested.clone()), "array of arrays");
        }
    }
    for ty in [U8, U32, BOOL, STR, U64] {
        for n in [u64::MAX, u64::MAX / 8 + 1, 1 << 61] {
            refused(with(ARRAY, array(ty, n, [0; 8])), &format!("\"a.b\" has {n} elements"));
        }
        let n = 16 << 20;
        refused(with(ARRAY, array(ty, n, [0; 8])), if ty == STR { "strings" } else { "it ends inside an array" });
    }
    for n in [u64::MAX, 1 << 40, 16 << 20] {
        let wanted = if n > 16 << 20 { "bytes long" } else { "it ends inside the value of \"a.b\"" };
        refused(with(STR, n.to_le_bytes().to_vec()), wanted);
    }
    refused(with(STR, string(b"\xc3\x28")), "the value of \"a.b\" is not UTF-8");
    refused(with(ARRAY, array(STR, 1, string(b"\xc3\x28"))), "not UTF-8");
}

// Item 7.
#[test]
fn bools_and_alignment() {
    for b in [2u8, 255] {
        refused(Hand::new().key(key("a", BOOL, [b])).bytes(), "neither 0 nor 1");
        refused(Hand::new().key(key("a", ARRAY, array(BOOL, 2, [1, b]))).bytes(), "neither 0 nor 1");
    }
    for a in [0u32, 3, 13, 1 << 17, 1 << 31, u32::MAX] {
        refused(Hand::new().key(key("general.alignment", U32, a.to_le_bytes())).bytes(), &format!("general.alignment is {a};"));
    }
    refused(Hand::new().key(key("general.alignment", I32, 32i32.to_le_bytes())).bytes(), "of type i32; it must be u32");
    refused(Hand::new().key(key("general.alignment", U64, 32u64.to_le_bytes())).bytes(), "of type u64; it must be u32");
    for shift in 2..=16 {
        let a = 1usize << shift;
        assert_eq!(accepted(Hand::new().alignment(a).bytes()).data_offset() % a as u64, 0);
    }
    // 1 and 2 are legal, and useless unless the data happen to lie where numbers can be read.
    let mut odd = Hand::new().alignment(1);
    while !odd.bytes().len().is_multiple_of(4) {
        odd.keys.push(key(format!("k{:03}", odd.keys.len()), U8, [0]));
    }
    accepted(odd.bytes());
    while odd.bytes().len().is_multiple_of(4) {
        odd.keys.push(key(format!("k{:03}", odd.keys.len()), U8, [0]));
    }
    refused(odd.bytes(), "no multiple of 4");
}

// Item 8.
#[test]
fn tensor_names() {
    let with = |name: &[u8]| Hand::new().tensors(&[tensor(name, &[8], 0, 0)]).bytes();
    refused(with(b""), "a tensor has no name");
    accepted(with(&[b'x'; 255]));
    for n in [256, 1 << 20] {
        refused(with(&vec![b'x'; n]), "a tensor name is");
    }
    refused(with(b"a\nb"), "control characters: tensor \"a\\nb\"");
    refused(with(b"a\x1b[31mb"), "control characters: tensor \"a\\u{1b}[31mb\"");
    refused(with(b"a\xc2\x9bb"), "control characters");
    refused(with(b"../../etc/passwd"), "looks like a path");
    refused(with(b"..\\x"), "looks like a path");
    refused(with(b"/etc"), "looks like a path");
    refused(with(b"\xff\xfe"), "a tensor name is not UTF-8");
    let twice = [tensor("t", &[8], 0, 0), tensor("u", &[8], 0, 32), tensor("t", &[8], 0, 64)];
    refused(Hand::new().tensors(&twice).data(96).bytes(), "the tensor appears twice: tensor \"t\"");
}

// Item 9.
#[test]
fn shapes() {
    let with = |dims: &[u64], ty: u32| Hand::new().tensors(&[tensor("t", dims, ty, 0)]).data(1024).bytes();
    refused(with(&[], 0), "it has 0 dimensions; 1 to 4 are read: tensor \"t\"");
    refused(with(&[1; 5], 0), "it has 5 dimensions");
    let mut many = Hand::new();
    let name = string("t").len();
    many.tensors[0][name..name + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    refused(many.bytes(), "it has 4294967295 dimensions");
    for i in 0..4 {
        let mut dims = [1; 4];
        dims[i] = 0;
        refused(with(&dims, 0), "has a zero");
        dims[i] = -4i64 as u64;
        refused(with(&dims, 0), "is too large");
    }
    refused(with(&[(1 << 42) + 1, 1 << 26], 0), "is too large");
    refused(with(&[1 << 32, 1 << 31], 0), "is too large"); // 2^63
    refused(with(&[(1 << 32) - 1, 1 << 31], 0), "is too large"); // below 2^63 elements, more than 2^64 bytes
    refused(with(&[i64::MAX as u64], 2), "no multiple of Q4_0's block of 32");
    refused(with(&[1 << 62], 8), "past the end of the file");
    refused(with(&[1 << 62, 4, 4, 4], 8), "is too large");
    for (ty, cols) in [(2, 31), (8, 33), (12, 255), (14, 288), (10, 1)] {
        refused(with(&[cols, 4], ty), &format!("rows of {cols} elements are no multiple of"));
    }
}

// Item 10.
#[test]
fn types() {
    let with = |ty: u32| Hand::new().tensors(&[tensor("t", &[256], ty, 0)]).data(1024).bytes();
    for ty in [4, 5, 31, 32, 33, 36, 37, 38, 41, 255, u32::MAX] {
        refused(with(ty), &format!("type {ty} unknown to this version"));
    }
    for (ty, name) in
        [(9, "Q8_1"), (15, "Q8_K"), (16, "IQ2_XXS"), (20, "IQ4_NL"), (24, "I8"), (26, "I32"), (28, "F64"), (34, "TQ1_0"), (39, "MXFP4")]
    {
        refused(with(ty), &format!("type {name} is not computed by this version: tensor \"t\""));
    }
}

// Item 11.
#[test]
fn offsets() {
    let one = |offset: u64| Hand::new().tensors(&[tensor("t", &[8], 0, offset)]).data(64).bytes();
    refused(one(4), "its data offset 4 is no multiple of the alignment 32: tensor \"t\"");
    for o in [u64::MAX, u64::MAX - 31, 1 << 63, 64] {
        refused(one(o), "past the end of the file");
    }
    refused(one(32), "a hole of 32 bytes between the header and its data");
    let two = |a: u64, b: u64| Hand::new().tensors(&[tensor("t", &[9], 0, a), tensor("u", &[8], 0, b)]);
    accepted(two(0, 64).data(96).bytes());
    let g = accepted(two(32, 0).data(32 + 36).bytes());
    assert_eq!(g.find("u").unwrap().bytes()[0], 0);
    assert_eq!(g.find("t").unwrap().bytes()[0], 32);
    refused(two(0, 0).data(96).bytes(), "overlaps that of \"t\": tensor \"u\"");
    refused(two(0, 32).data(96).bytes(), "overlaps that of \"t\": tensor \"u\"");
    refused(two(0, 96).data(128).bytes(), "a hole of 32 bytes between \"t\" and its data: tensor \"u\"");
    refused(two(0, 64).data(95).bytes(), "past the end of the file");
    refused(two(0, 64).data(35).bytes(), "is the download complete?: tensor".split(':').next().unwrap());
    // Another alignment than the one the offsets were made for.
    refused(two(0, 64).alignment(256).data(512).bytes(), "no multiple of the alignment 256");
}

// Items 12 and 13.
#[test]
fn every_truncation() {
    let foreign = Hand::new().tensors(&[tensor("t", &[9], 0, 0), tensor("u", &[3, 5], 0, 64)]).data(64 + 60).bytes();
    accepted(foreign.clone());
    for file in [foreign, written(small("llama", 32)), written(small("sphinx-vision", 64))] {
        accepted(file.clone());
        for n in 0..file.len() {
            let e = Gguf::from_bytes("model.gguf", file[..n].to_vec()).expect_err("truncated");
            assert_eq!(e.kind(), ErrorKind::Invalid);
            assert!(n == 0 || e.to_string().contains("download complete?"), "{n}: {e}");
        }
    }
}

#[test]
fn truncated_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let file = written(small("llama", 32));
    for n in (0..file.len()).step_by(29).chain([file.len() - 1]) {
        std::fs::write(&path, &file[..n]).unwrap();
        assert_eq!(Gguf::open(&path).unwrap_err().kind(), ErrorKind::Invalid, "{n}");
    }
}

#[test]
fn trailing_bytes_are_counted() {
    for n in [0, 1, 31, 32, 100_000] {
        for mut file in [Hand::new().bytes(), written(small("llama", 32))] {
            file.resize(file.len() + n, b'x');
            assert_eq!(accepted(file).trailing_bytes(), n as u64);
        }
    }
}

// Item 14.
#[test]
fn every_flipped_bit_of_ours() {
    for plan in [small("llama", 32), small("sphinx-vision", 32), small("internlm2", 64)] {
        let file = written(plan);
        let good = accepted(file.clone());
        let head = good.data_offset() as usize;
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut bad = file.clone();
                bad[at] ^= 1 << bit;
                let opened = Gguf::from_bytes("model.gguf", bad);
                if at < head {
                    assert_eq!(opened.expect_err("a damaged header").kind(), ErrorKind::Invalid, "byte {at} bit {bit}");
                    continue;
                }
                let g = opened.unwrap();
                let inside = |i: usize| (good.offset(i) as usize..good.offset(i) as usize + good.tensors()[i].bytes().len()).contains(&at);
                for i in 0..3 {
                    let found = g.check_tensor(i);
                    assert_eq!(found.is_err(), inside(i), "byte {at}");
                    if let Err(e) = found {
                        assert!(e.to_string().contains(&format!("tensor \"{}\"", good.tensors()[i].name())), "{e}");
                    }
                }
                assert_eq!(g.check_padding().is_err(), !(0..3).any(inside), "byte {at}");
            }
        }
    }
}

#[test]
fn every_flipped_bit_of_others() {
    let mut hand = Hand::new().key(key("s", ARRAY, array(STR, 2, [string("ab"), string("")].concat())));
    hand = hand.key(key("f", BOOL, [1])).tensors(&[tensor("t", &[32, 2], 8, 0), tensor("u", &[8], 0, 96)]).data(128);
    let file = hand.bytes();
    accepted(file.clone());
    let mut loads = 0;
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut bad = file.clone();
            bad[at] ^= 1 << bit;
            if let Ok(g) = Gguf::from_bytes("model.gguf", bad) {
                loads += 1;
                for (i, t) in g.tensors().iter().enumerate() {
                    assert_eq!(t.bytes().len(), t.rows() * t.ty().row_bytes(t.cols()).unwrap());
                    g.check_tensor(i).unwrap();
                    let _ = g.non_finite(i);
                }
                let _ = g.check_padding();
            }
        }
    }
    assert!(loads > 128 * 8);
}

#[test]
fn checksum_keys_alone() {
    let digest = |k: &str| key(k, U64, [0; 8]);
    let list = |k: &str| key(k, ARRAY, array(U64, 1, [0; 8]));
    refused(Hand::new().key(list("sphinx.checksum.tensors")).bytes(), "tensor checksums and no header digest");
    refused(Hand::new().key(list("sphinx-vision.checksum.tensors")).bytes(), "tensor checksums and no header digest");
    refused(Hand::new().key(digest("sphinx.checksum.header")).bytes(), "the header is damaged");
    refused(Hand::new().key(key("sphinx.checksum.header", U32, [0; 4])).bytes(), "not a u64");
    let both = Hand::new().key(digest("sphinx.checksum.header")).key(digest("sphinx-vision.checksum.header"));
    refused(both.bytes(), "two header digests");
}

// Item 15, in so far as it is known here.
#[test]
fn split_models() {
    refused(Hand::new().key(key("split.count", 2, 3u16.to_le_bytes())).bytes(), "one of 3 parts");
    accepted(Hand::new().key(key("split.count", 2, 1u16.to_le_bytes())).bytes());
    refused(Hand::new().key(key("split.count", 4, 3u32.to_le_bytes())).bytes(), "key \"split.count\" is of type u32, expected u16");
}

#[test]
fn architecture() {
    let with = |keys: Vec<Vec<u8>>| Hand { keys, ..Hand::new() }.bytes();
    refused(with(vec![]), "key \"general.architecture\" is missing");
    refused(with(vec![key("general.architecture", U32, [0; 4])]), "general.architecture is of type u32; it must be str");
    refused(with(vec![key("general.architecture", STR, string(""))]), "general.architecture is empty");
}

#[test]
fn metadata_of_the_wrong_type() {
    let hand = Hand::new().key(key("llama.block_count", U64, 2u64.to_le_bytes())).key(key("n", ARRAY, array(I32, 2, [255; 8])));
    let g = accepted(hand.bytes());
    let line = |e: sphinx_quant::QuantError| e.to_string();
    assert!(line(g.u32("llama.block_count").unwrap_err()).contains("key \"llama.block_count\" is of type u64, expected u32 at offset 0x"));
    assert!(line(g.opt_u32("llama.block_count").unwrap_err()).contains("expected u32"));
    assert!(line(g.u32(&g.arch_key("missing")).unwrap_err()).contains("key \"llama.missing\" is missing"));
    assert_eq!(g.opt_u32("missing").unwrap(), None);
    assert!(line(g.u32_array("n").unwrap_err()).contains("is of type i32 array, expected array of non-negative integers"));
    assert!(line(g.str("n").unwrap_err()).contains("expected str"));
    assert!(line(g.tensor("x\x1by").unwrap_err()).contains("the tensor is missing: tensor \"x\\u{1b}y\""));
}

#[test]
fn wrong_kinds_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert_eq!(Gguf::open(&at("missing.gguf")).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(Gguf::open(folder.path()).unwrap_err().kind(), ErrorKind::Io);
    std::fs::write(at("m.gguf.partial"), written(small("llama", 32))).unwrap();
    assert!(Gguf::open(&at("m.gguf.partial")).unwrap_err().to_string().contains("unfinished"));
    std::fs::write(at("empty.gguf"), b"").unwrap();
    assert!(Gguf::open(&at("empty.gguf")).unwrap_err().to_string().contains("empty"));
    #[cfg(unix)]
    {
        let made = std::process::Command::new("mkfifo").arg(at("fifo.gguf")).status().unwrap();
        assert!(made.success());
        assert_eq!(Gguf::open(&at("fifo.gguf")).unwrap_err().kind(), ErrorKind::Io);
    }
    // A name that would break the line.
    std::fs::write(at("a\nb.gguf"), b"x").unwrap();
    assert!(!Gguf::open(&at("a\nb.gguf")).unwrap_err().to_string().contains('\n'));
}

/// What fuzzing starts from and what it found: every file opens or is refused, and what opens can be read.
#[test]
fn the_fuzz_corpus() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/gguf_read");
    let (mut opened, mut refused) = (0, 0);
    for file in std::fs::read_dir(folder).unwrap() {
        match Gguf::from_bytes("seed", std::fs::read(file.unwrap().path()).unwrap()) {
            Ok(g) => {
                opened += 1;
                for i in 0..g.tensors().len() {
                    let _ = (g.check_tensor(i), g.non_finite(i), g.check_padding());
                }
            }
            Err(e) => {
                refused += 1;
                assert_eq!(e.kind(), ErrorKind::Invalid);
            }
        }
    }
    assert!(opened >= 3 && refused >= 3, "{opened} opened, {refused} refused");
}
