//! What is written is read back, and a file gets its name only when it is whole.

mod gguf_support;

use std::path::Path;
use std::time::{Duration, Instant};

use gguf_support::*;
use proptest::prelude::*;
use sphinx_quant::gguf::{Array, Gguf, Half, Plan, Value, Writer};
use sphinx_quant::{ErrorKind, GgmlType};

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<Vec<u8>>().prop_map(Value::from),
        any::<Vec<i8>>().prop_map(Value::from),
        any::<Vec<u16>>().prop_map(Value::from),
        any::<Vec<i16>>().prop_map(Value::from),
        any::<Vec<u32>>().prop_map(Value::from),
        any::<Vec<i32>>().prop_map(Value::from),
        any::<Vec<f32>>().prop_map(Value::from),
        any::<Vec<bool>>().prop_map(Value::from),
        any::<Vec<String>>().prop_map(Value::from),
        any::<Vec<u64>>().prop_map(Value::from),
        any::<Vec<i64>>().prop_map(Value::from),
        any::<Vec<f64>>().prop_map(Value::from),
    ]
}

fn tensors() -> impl Strategy<Value = Vec<(GgmlType, Vec<usize>)>> {
    let dims = (1..3usize, proptest::collection::vec(1..4usize, 0..3));
    proptest::collection::vec((0..GgmlType::ALL.len(), dims), 1..6).prop_map(|all| {
        all.into_iter()
            .map(|(ty, (blocks, rest))| {
                let ty = GgmlType::ALL[ty];
                (ty, [vec![blocks * ty.block_len()], rest].concat())
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn write_then_read(
        values in proptest::collection::vec(value(), 0..12),
        tensors in tensors(),
        vision in any::<bool>(),
        shift in 2..13u32,
        piece in 1..300usize,
        seed in any::<u8>(),
    ) {
        let arch = if vision { "sphinx-vision" } else { "llama" };
        let mut metadata: Vec<(String, Value)> = values.into_iter().enumerate().map(|(i, v)| (format!("key.{i}"), v)).collect();
        metadata.insert(metadata.len() / 2, ("general.architecture".into(), arch.into()));
        let plan = Plan {
            metadata: metadata.clone(),
            tensors: tensors.iter().enumerate().map(|(i, (ty, dims))| planned(&format!("blk.{i}.x"), *ty, dims)).collect(),
            alignment: 1 << shift,
        };
        let sizes: Vec<usize> = plan.tensors.iter().map(|t| t.bytes().unwrap() as usize).collect();
        let data: Vec<u8> = (0..sizes.iter().sum::<usize>()).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let size = plan.file_bytes().unwrap();
        let mut w = Writer::create(&path, plan.clone()).unwrap();
        for c in data.chunks(piece) {
            w.write(c).unwrap();
        }
        let sums = w.checksums();
        w.finish().unwrap().commit().unwrap();

        let g = Gguf::open(&path).unwrap();
        prop_assert_eq!((g.file_bytes(), g.trailing_bytes(), g.alignment()), (size, 0, 1 << shift));
        prop_assert_eq!((g.arch(), g.half()), (arch, Half::of(arch)));
        let extra = if shift == 5 { 0 } else { 1 };
        prop_assert_eq!(g.metadata().len(), metadata.len() + 2 + extra);
        prop_assert_eq!(&g.metadata()[1..1 + metadata.len()], &metadata[..]);
        for (k, v) in &metadata {
            prop_assert_eq!(g.get(k), Some(v));
        }
        let mut at = 0;
        for (i, (t, p)) in g.tensors().iter().zip(&plan.tensors).enumerate() {
            prop_assert_eq!((t.name(), t.ty(), t.dims()), (p.name.as_str(), p.ty, p.dims.as_slice()));
            prop_assert_eq!(t.bytes(), &data[at..at + sizes[i]]);
            prop_assert_eq!(g.checksum(i), Some(sums[i]));
            prop_assert_eq!(g.tensor_index(&p.name), Some(i));
            g.check_tensor(i).unwrap();
            g.release(t);
            prop_assert_eq!(t.bytes(), &data[at..at + sizes[i]]);
            at += sizes[i];
        }
        g.check_padding().unwrap();
        let names = std::fs::read_dir(folder.path()).unwrap().count();
        prop_assert_eq!(names, 1);
    }

    #[test]
    fn any_bytes_are_refused_or_read(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), gguf in any::<bool>()) {
        if gguf {
            let head = [&b"GGUF"[..], &3u32.to_le_bytes(), &1u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
            bytes.splice(0..0, head);
        }
        if let Err(e) = Gguf::from_bytes("m", bytes) {
            prop_assert_eq!(e.kind(), ErrorKind::Invalid);
        }
    }
}

fn create(path: &Path) -> Writer {
    Writer::create(path, small("llama", 32)).unwrap()
}

const DATA: usize = 24 + 3 * 34 + 8;

#[test]
fn nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let partial = folder.path().join("m.gguf.partial");
    let there = || std::fs::read_dir(folder.path()).unwrap().count();

    drop(create(&path));
    assert_eq!(there(), 0);

    let mut w = create(&path);
    w.write(&[0; DATA - 1]).unwrap();
    assert!(partial.exists() && !path.exists());
    assert_eq!(w.finish().err().unwrap().kind(), ErrorKind::Internal);
    assert_eq!(there(), 0);

    std::fs::write(&path, "old").unwrap();
    let mut w = create(&path);
    w.write(&[0; DATA]).unwrap();
    assert_eq!(w.write(&[0]).unwrap_err().kind(), ErrorKind::Internal);
    let finished = w.finish().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    drop(finished);
    assert_eq!(there(), 1);

    let mut w = create(&path);
    w.write(&[0; DATA]).unwrap();
    w.finish().unwrap().commit().unwrap();
    assert_eq!(there(), 1);
    Gguf::open(&path).unwrap();
}

#[test]
fn a_partial_that_is_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let partial = folder.path().join("m.gguf.partial");
    // Stale: replaced.
    std::fs::write(&partial, vec![1; 100_000]).unwrap();
    let w = create(&path);
    // Being written: left alone.
    let e = Writer::create(&path, small("llama", 32)).err().unwrap();
    assert!(e.kind() == ErrorKind::Io && e.to_string().contains("another process is writing"), "{e}");
    assert!(partial.exists());
    drop(w);
    assert!(!partial.exists());
    // A link: not followed.
    #[cfg(unix)]
    {
        let victim = folder.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &partial).unwrap();
        assert_eq!(Writer::create(&path, small("llama", 32)).err().unwrap().kind(), ErrorKind::Io);
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert!(partial.exists());
    }
    assert_eq!(Writer::create(folder.path(), small("llama", 32)).err().unwrap().kind(), ErrorKind::Io);
    let missing = folder.path().join("none/m.gguf");
    assert_eq!(Writer::create(&missing, small("llama", 32)).err().unwrap().kind(), ErrorKind::Io);
}

/// The disk is full in the middle of a tensor: an I/O error, and nothing is left. A limit on the size of files stands
/// for the disk; it is set for a second run of this test alone.
#[cfg(unix)]
#[test]
fn a_full_disk() {
    if std::env::var_os("SPHINX_TEST_FULL_DISK").is_none() {
        let run = "trap '' XFSZ; ulimit -f 4096; exec \"$0\" --exact a_full_disk --test-threads 1";
        let me = std::env::current_exe().unwrap();
        let out = std::process::Command::new("sh").args(["-c", run]).arg(me).env("SPHINX_TEST_FULL_DISK", "1").output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&out.stderr));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let plan = Plan { tensors: vec![planned("big", GgmlType::F32, &[4 << 20])], ..small("llama", 32) };
    let mut w = Writer::create(&path, plan).unwrap();
    let e = (0..16).find_map(|_| w.write(&[0; 1 << 20]).err()).expect("the limit");
    assert_eq!(e.kind(), ErrorKind::Io, "{e}");
    assert!(e.to_string().contains("m.gguf: "), "{e}");
    drop(w);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn strings_known_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let mut w = create(&path);
    w.write(&[0; DATA]).unwrap();
    w.set_str("sphinx.pair_id", "0123456789abcdef0123456789abcdef").unwrap();
    assert!(w.set_str("sphinx.pair_id", "short").is_err());
    assert!(w.set_str("other", "x").is_err());
    w.finish().unwrap().commit().unwrap();
    assert_eq!(Gguf::open(&path).unwrap().str("sphinx.pair_id").unwrap(), "0123456789abcdef0123456789abcdef");
}

#[test]
fn plans_that_no_file_can_hold() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let change = |f: &dyn Fn(&mut Plan)| {
        let mut p = small("llama", 32);
        f(&mut p);
        let size = p.file_bytes().err();
        let e = Writer::create(&path, p).err().unwrap();
        assert_eq!(size.unwrap().to_string(), e.to_string());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        e
    };
    let internal = |f: &dyn Fn(&mut Plan)| assert_eq!(change(f).kind(), ErrorKind::Internal);
    internal(&|p| p.metadata.clear());
    internal(&|p| p.metadata.push(("flag".into(), 1u32.into())));
    internal(&|p| p.metadata.push(("a\nb".into(), 1u32.into())));
    internal(&|p| p.tensors.clear());
    internal(&|p| p.tensors.push(planned("a", GgmlType::F32, &[1])));
    internal(&|p| p.tensors.push(planned("", GgmlType::F32, &[1])));
    internal(&|p| p.tensors.push(planned("d", GgmlType::F32, &[])));
    internal(&|p| p.tensors.push(planned("d", GgmlType::F32, &[0])));
    internal(&|p| p.tensors.push(planned("d", GgmlType::F32, &[1; 5])));
    internal(&|p| p.tensors.push(planned("d", GgmlType::F32, &[usize::MAX / 4, 9])));
    internal(&|p| p.alignment = 48);
    internal(&|p| p.alignment = 2);
    assert_eq!(change(&|p| p.tensors.push(planned("d", GgmlType::Q4_K, &[255]))).kind(), ErrorKind::Usage);
}

/// What a copied file carries over is replaced, not repeated.
#[test]
fn metadata_of_another_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let first = Gguf::from_bytes("first", written(small("llama", 64))).unwrap();
    let mut plan = small("llama", 32);
    plan.metadata = first.metadata().to_vec();
    let mut w = Writer::create(&path, plan).unwrap();
    w.write(&[3; DATA]).unwrap();
    w.finish().unwrap().commit().unwrap();
    let second = Gguf::open(&path).unwrap();
    assert_eq!(second.alignment(), 32);
    assert_eq!(second.get("general.alignment"), None);
    assert_eq!(second.metadata().len() + 1, first.metadata().len());
    (0..3).for_each(|i| second.check_tensor(i).unwrap());
    assert_ne!(first.checksum(0), second.checksum(0));
}

#[test]
fn numbers_that_are_not_finite() {
    let f16 = |bits: u16| bits.to_le_bytes();
    for ty in GgmlType::ALL {
        let cols = 3 * ty.block_len();
        let zero = vec![0u8; ty.row_bytes(cols).unwrap()];
        let places: &[usize] = if ty.is_float() { &[0] } else { ty.scale_offsets() };
        let open = |data: &[u8]| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("m.gguf");
            let plan = Plan { tensors: vec![planned("t", ty, &[cols])], ..small("llama", 32) };
            let mut w = Writer::create(&path, plan).unwrap();
            w.write(data).unwrap();
            w.finish().unwrap().commit().unwrap();
            Gguf::open(&path).unwrap().non_finite(0)
        };
        assert_eq!(open(&zero), None, "{ty}");
        for &at in places {
            for block in 0..3 {
                let (bits, at) = match ty {
                    GgmlType::F32 => (0x7f80, at + 2),
                    GgmlType::BF16 => (0xff80, at),
                    _ => ([0x7c00, 0xfc00, 0x7e01][block], at),
                };
                let mut bad = zero.clone();
                let at = block * ty.block_bytes() + at;
                bad[at..at + 2].copy_from_slice(&f16(bits));
                assert_eq!(open(&bad), Some(block), "{ty}");
                bad[at..at + 2].copy_from_slice(&f16(0x7bff - (1 << 7)));
                if ty != GgmlType::BF16 {
                    assert_eq!(open(&bad), None, "{ty}");
                }
            }
        }
    }
}

/// Every quantised byte that is no scale may take any value.
#[test]
fn only_scales_are_looked_at() {
    for ty in GgmlType::ALL.into_iter().filter(|t| !t.is_float()) {
        let mut block = vec![0xff; ty.block_bytes()];
        ty.scale_offsets().iter().for_each(|&at| block[at..at + 2].fill(0));
        assert_eq!(ty.first_non_finite(&block), None, "{ty}");
    }
}

#[test]
fn the_header_of_a_real_vocabulary_is_quick() {
    let mut plan = small("llama", 32);
    let pieces: Vec<String> = (0..32_000).map(|i| format!("▁piece{i}")).collect();
    plan.metadata.push(("pieces".into(), pieces.into()));
    plan.metadata.push(("scores".into(), Value::Array(Array::F32(vec![-1.5; 32_000]))));
    plan.metadata.push(("types".into(), Value::Array(Array::I32(vec![1; 32_000]))));
    let file = written(plan);
    // The fastest of some: a busy machine is not what is measured.
    let open = |_| {
        let bytes = file.clone();
        let start = Instant::now();
        let g = Gguf::from_bytes("m", bytes).unwrap();
        assert_eq!(g.str_array("pieces").unwrap().len(), 32_000);
        start.elapsed()
    };
    let best = (0..10).map(open).min().unwrap();
    eprintln!("a header of {} bytes opens in {best:?}", file.len());
    assert!(best < Duration::from_millis(100), "{best:?}");
}

#[test]
fn every_expert_has_a_checksum_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("moe.gguf");
    let mut plan = small("llama", 32);
    plan.tensors = vec![
        planned("blk.0.ffn_up_exps.weight", GgmlType::Q8_0, &[64, 3, 5]),
        planned("output_norm.weight", GgmlType::F32, &[7]),
        planned("blk.1.ffn_down_exps.2.weight", GgmlType::F16, &[32, 2, 3]),
    ];
    let bytes: u64 = plan.tensors.iter().map(|t| t.bytes().unwrap()).sum();
    let mut w = Writer::create(&path, plan).unwrap();
    // In pieces that begin and end anywhere.
    let data: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8).collect();
    data.chunks(37).for_each(|piece| w.write(piece).unwrap());
    w.finish().unwrap().commit().unwrap();
    let file = Gguf::open(&path).unwrap();
    for (index, experts) in [(0, 5), (2, 3)] {
        let stack = &file.tensors()[index];
        let rows = stack.rows() / experts;
        for e in 0..experts {
            let expert = stack.part(e * rows..(e + 1) * rows).unwrap();
            assert_eq!(file.part_checksum(&expert), Some(xxhash_rust::xxh3::xxh3_64(expert.bytes())), "{index} {e}");
        }
        assert_eq!(file.part_checksum(stack), file.checksum(index));
        // What is no expert has none.
        assert_eq!(file.part_checksum(&stack.part(0..rows - 1).unwrap()), None);
        assert_eq!(file.part_checksum(&stack.part(1..rows + 1).unwrap()), None);
    }
    assert_eq!(file.part_checksum(&file.tensors()[1]), file.checksum(1));

    // A list of another length is damage.
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(16).position(|w| w == b"checksum.experts").unwrap() + 16;
    assert_eq!(bytes[at + 8..at + 16], 8u64.to_le_bytes());
    bytes[at + 8] = 7;
    assert!(Gguf::from_bytes("damaged", bytes).is_err());
}
