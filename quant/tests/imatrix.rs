//! Importance matrices: written and read back, as llama.cpp writes them, and wrong in every way.

mod gguf_support;

use std::path::PathBuf;

use gguf_support::*;
use sphinx_quant::ErrorKind;
use sphinx_quant::gguf::Gguf;
use sphinx_quant::imatrix::Imatrix;

/// A file as llama.cpp writes it: no architecture, one dimension where the second is 1.
fn stock(tensors: &[Vec<u8>], data: &[f32]) -> Vec<u8> {
    let keys = vec![
        key("general.type", STR, string("imatrix")),
        key("imatrix.datasets", ARRAY, array(STR, 1, string("wiki.txt"))),
        key("imatrix.chunk_count", U32, 3u32.to_le_bytes()),
        key("imatrix.chunk_size", U32, 512u32.to_le_bytes()),
    ];
    let bytes = 4 * data.len();
    let mut file = Hand { keys, data: bytes, ..Hand::new() }.tensors(tensors).bytes();
    let at = file.len() - bytes.next_multiple_of(32);
    data.iter().enumerate().for_each(|(i, x)| file[at + 4 * i..][..4].copy_from_slice(&x.to_le_bytes()));
    file
}

/// `output.weight` of eight columns, and a stack of two experts of eight.
fn right() -> (Vec<Vec<u8>>, Vec<f32>) {
    let tensors = vec![
        tensor("output.weight.in_sum2", &[8], 0, 0),
        tensor("output.weight.counts", &[1], 0, 32),
        tensor("blk.0.ffn_up_exps.weight.in_sum2", &[8, 2], 0, 64),
        tensor("blk.0.ffn_up_exps.weight.counts", &[1, 2], 0, 128),
        tensor("output.weight.in_sum", &[8], 0, 160),
    ];
    let mut data = vec![0.0; 48];
    (0..8).for_each(|i| data[i] = i as f32);
    data[8] = 4.0;
    (0..16).for_each(|i| data[16 + i] = 2.0 * i as f32);
    data[32..34].copy_from_slice(&[2.0, 0.0]);
    (tensors, data)
}

fn read(bytes: &[u8]) -> Result<Imatrix, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    Imatrix::read(&path).map_err(|e| {
        let line = e.to_string();
        assert_eq!(e.kind(), ErrorKind::Invalid, "{line}");
        assert!(line.contains("m.gguf: ") && line.contains(" — ") && !line.contains('\n'), "{line}");
        line
    })
}

#[test]
fn stock_files_are_read() {
    let (tensors, data) = right();
    let m = read(&stock(&tensors, &data)).unwrap();
    assert_eq!(m.names().collect::<Vec<_>>(), ["blk.0.ffn_up_exps.weight", "output.weight"]);
    assert_eq!((m.len(), m.chunks, m.chunk_size, &m.datasets[..]), (2, 3, 512, &["wiki.txt".to_owned()][..]));
    let quarter: Vec<f32> = (0..8).map(|i| i as f32 / 4.0).collect();
    assert_eq!(m.weights("output.weight", 0, 8).unwrap(), Some(quarter));
    let first: Vec<f32> = (0..8).map(|i| i as f32).collect();
    assert_eq!(m.weights("blk.0.ffn_up_exps.weight", 0, 8).unwrap(), Some(first.clone()));
    // The second was never chosen: what the first saw.
    assert_eq!(m.weights("blk.0.ffn_up_exps.weight", 1, 8).unwrap(), Some(first));
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let mut m = Imatrix::new();
    m.add("v.dino.0.qkv.weight", 1, 0, &[0.5, 0.25, 3.0], 2);
    m.add("blk.0.ffn_up_exps.weight", 3, 1, &[1.0, 2.0], 1);
    m.add("blk.0.ffn_up_exps.weight", 3, 1, &[1.0, 2.0], 1);
    (m.chunks, m.chunk_size, m.datasets) = (9, 64, vec!["a.jsonl".into(), "b.jsonl".into()]);
    m.write(&path).unwrap();
    let back = Imatrix::read(&path).unwrap();
    for (name, expert, cols) in [("v.dino.0.qkv.weight", 0, 3), ("blk.0.ffn_up_exps.weight", 1, 2), ("blk.0.ffn_up_exps.weight", 2, 2)] {
        assert_eq!(back.weights(name, expert, cols).unwrap(), m.weights(name, expert, cols).unwrap(), "{name}");
    }
    assert_eq!((back.chunks, back.chunk_size, &back.datasets), (9, 64, &m.datasets));
    // Again over it, and the same bytes: names in order, whatever the order of adding.
    let bytes = std::fs::read(&path).unwrap();
    back.write(&path).unwrap();
    assert!(std::fs::read(&path).unwrap() == bytes);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!((gguf.arch(), gguf.tensors()[0].dims()), ("imatrix", &[2, 3][..]));
    // A byte of the sums changed: the checksum tells.
    let at = gguf.offset(0) as usize;
    let mut damaged = bytes;
    damaged[at] ^= 1;
    assert!(read(&damaged).unwrap_err().contains("damaged"));
}

#[test]
fn nothing_and_endless_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let e = Imatrix::new().write(&path).unwrap_err().to_string();
    assert!(e.contains("m.gguf") && e.contains("no activation"), "{e}");
    let mut m = Imatrix::new();
    m.add("a", 1, 0, &[f64::INFINITY], 1);
    let e = m.write(&path).unwrap_err().to_string();
    assert!(e.contains("\"a.in_sum2\"") && e.contains("not finite"), "{e}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!(Imatrix::read(&path).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(Imatrix::read(folder.path()).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn hostile_files() {
    let (tensors, data) = right();
    let with = |n: usize, t: Vec<u8>| {
        let mut all = tensors.clone();
        all[n] = t;
        read(&stock(&all, &data)).unwrap_err()
    };
    assert!(with(1, tensor("output.weight.x", &[1], 0, 32)).contains("sums without counts"));
    assert!(with(0, tensor("output.weight.x", &[8], 0, 0)).contains("counts without sums"));
    assert!(with(1, tensor("output.weight.counts", &[2], 0, 32)).contains("2 counts belong to 1 sums"));
    assert!(with(0, tensor("output.weight.in_sum2", &[8], 1, 0)).contains("F16, expected F32"));
    assert!(with(0, tensor("output.weight.in_sum2", &[1 << 40], 0, 0)).contains("output.weight.in_sum2"));
    for (at, bad) in [(3, f32::NAN), (3, -1.0), (8, f32::INFINITY), (33, -2.0)] {
        let mut data = data.clone();
        data[at] = bad;
        assert!(read(&stock(&tensors, &data)).unwrap_err().contains("none can be negative or endless"), "{at} {bad}");
    }
    assert!(read(&stock(&tensors[4..], &data[..8])).is_err());
    assert!(read(&stock(&[tensor("x", &[8], 0, 0)], &data[..8])).unwrap_err().contains("no sums"));
    assert!(read(&5i32.to_le_bytes()).unwrap_err().contains("older .dat files"));
    assert!(read(&[]).unwrap_err().contains("no importance matrix"));
    assert!(read(&Hand::new().bytes()).unwrap_err().contains("architecture llama"));
    let whole = stock(&tensors, &data);
    for cut in 0..whole.len() {
        // Any piece of it is refused or, past the last tensor, the same.
        assert!(read(&whole[..cut]).map_or(true, |m| m.len() == 2), "{cut}");
    }
    // A large file is not even opened as one.
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("large.gguf");
    std::fs::write(&path, &whole).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(2 << 30).unwrap();
    assert!(Imatrix::read(&path).unwrap_err().to_string().contains("too many for an importance matrix"));
}
