//! The promises of `sphinx_quant::block`: the bits of the Python package `gguf`, errors no worse than ggml's own
//! search, and no panic on anything. What is compared with was recorded by `fixtures/blocks.py`.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sphinx_quant::GgmlType::{self, *};
use sphinx_quant::block;
use sphinx_quant::quality::Quality;

const LEGACY: [GgmlType; 5] = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0];
const K: [GgmlType; 5] = [Q2_K, Q3_K, Q4_K, Q5_K, Q6_K];
const ROWS: [&str; 4] = ["gauss", "small", "student", "outliers"];

#[derive(serde::Deserialize)]
struct Index {
    arrays: BTreeMap<String, Place>,
    ggml_rmse: BTreeMap<String, f64>,
}

#[derive(serde::Deserialize)]
struct Place {
    offset: usize,
    bytes: usize,
}

fn index() -> Index {
    serde_json::from_str(include_str!("fixtures/blocks.json")).expect("the index of the fixture")
}

impl Index {
    fn bytes(&self, name: &str) -> &'static [u8] {
        let place = self.arrays.get(name).unwrap_or_else(|| panic!("fixture has {name}"));
        &include_bytes!("fixtures/blocks.bin")[place.offset..place.offset + place.bytes]
    }

    fn numbers(&self, name: &str) -> Vec<f32> {
        self.bytes(name).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }
}

fn quantize(ty: GgmlType, row: &[f32], weights: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0xa5; ty.row_bytes(row.len()).expect("whole blocks")];
    block::quantize(ty, row, weights, &mut out);
    out
}

fn dequantize(ty: GgmlType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; bytes.len() / ty.block_bytes() * ty.block_len()];
    block::dequantize(ty, bytes, &mut out);
    out
}

fn round_trip(ty: GgmlType, row: &[f32], weights: Option<&[f32]>) -> Vec<f32> {
    dequantize(ty, &quantize(ty, row, weights))
}

/// Root of the weighted mean squared error.
fn rmse(want: &[f32], got: &[f32], weights: &[f32]) -> f64 {
    let sum: f64 = want.iter().zip(got).zip(weights).map(|((a, b), w)| f64::from(*w) * (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    (sum / want.len() as f64).sqrt()
}

#[test]
fn reads_the_same_bits_as_gguf_py() {
    let fixture = index();
    for ty in GgmlType::ALL.into_iter().filter(|&ty| ty != F32) {
        let want = fixture.numbers(&format!("elements/{ty}"));
        let got = dequantize(ty, fixture.bytes(&format!("blocks/{ty}")));
        assert_eq!(want.len(), got.len());
        for (i, (want, got)) in want.iter().zip(&got).enumerate() {
            // A NaN's sign and payload are the machine's affair.
            let same = want.to_bits() == got.to_bits() || (want.is_nan() && got.is_nan());
            assert!(same, "{ty}: element {i} is {got:?} ({:#010x}), not {want:?} ({:#010x})", got.to_bits(), want.to_bits());
        }
    }
}

#[test]
fn writes_the_same_bytes_as_gguf_py() {
    let fixture = index();
    let mut compared = 0;
    for name in ROWS.into_iter().chain(["specials"]) {
        let row = fixture.numbers(&format!("input/{name}"));
        for ty in LEGACY.into_iter().chain([F16, BF16]) {
            let key = format!("quantized/{name}/{ty}");
            if !fixture.arrays.contains_key(&key) {
                continue;
            }
            let (want, got) = (fixture.bytes(&key), quantize(ty, &row, None));
            assert_eq!(want.len(), got.len());
            let size = ty.block_bytes();
            for (b, (want, got)) in want.chunks(size).zip(got.chunks(size)).enumerate() {
                let from = b * ty.block_len();
                assert_eq!(want, got, "{ty}, {name}: block {b} of {:?}", &row[from..from + ty.block_len()]);
            }
            compared += got.len();
        }
    }
    assert!(compared > 100_000, "only {compared} bytes compared");
}

#[test]
fn k_formats_err_no_more_than_ggml() {
    let fixture = index();
    for ty in K {
        for name in ROWS {
            let row = fixture.numbers(&format!("input/{name}"));
            let mut quality = Quality::default();
            quality.add(&row, &round_trip(ty, &row, None));
            let theirs = fixture.ggml_rmse[&format!("{ty}/{name}")];
            assert!(quality.rmse() <= 1.01 * theirs, "{ty}, {name}: {:.4} of ggml's error", quality.rmse() / theirs);
        }
    }
}

#[test]
fn k_formats_err_no_more_than_ggml_with_its_importance_matrix() {
    let fixture = index();
    let weights = fixture.numbers("weights");
    for ty in K {
        for name in ROWS {
            let row = fixture.numbers(&format!("input/{name}"));
            let weights: Vec<f32> = weights.iter().copied().cycle().take(row.len()).collect();
            let ours = rmse(&row, &round_trip(ty, &row, Some(&weights)), &weights);
            let theirs = fixture.ggml_rmse[&format!("{ty}/{name}/weighted")];
            assert!(ours <= 1.01 * theirs, "{ty}, {name}: {:.4} of ggml's error", ours / theirs);
        }
    }
}

#[test]
fn weights_lower_the_weighted_error() {
    let fixture = index();
    let weights = fixture.numbers("weights");
    for ty in LEGACY.into_iter().chain(K) {
        for name in ROWS {
            let row = fixture.numbers(&format!("input/{name}"));
            let weights: Vec<f32> = weights.iter().copied().cycle().take(row.len()).collect();
            let with = rmse(&row, &round_trip(ty, &row, Some(&weights)), &weights);
            let without = rmse(&row, &round_trip(ty, &row, None), &weights);
            assert!(with < 0.99 * without, "{ty}, {name}: weighted error {with} with weights, {without} without");
        }
    }
}

#[test]
fn pieces_and_addresses_do_not_matter() {
    let fixture = index();
    let row = fixture.numbers("input/student");
    let row = &row[..1024];
    let weights: Vec<f32> = row.iter().map(|x| x.abs() + 0.1).rev().collect();
    for ty in GgmlType::ALL {
        for weights in [None, Some(&weights[..])] {
            let whole = quantize(ty, row, weights);
            let mut pieces = Vec::new();
            for at in (0..1024).step_by(256) {
                pieces.extend(quantize(ty, &row[at..at + 256], weights.map(|w| &w[at..at + 256])));
            }
            assert!(whole == pieces, "{ty} in pieces");
            let mut moved = vec![0; whole.len() + 1];
            moved[1..].copy_from_slice(&whole);
            assert!(dequantize(ty, &whole) == dequantize(ty, &moved[1..]), "{ty} at an odd address");
        }
    }
    // A row of the 32-element formats need not be a multiple of the eight blocks that are searched at a time.
    for ty in LEGACY {
        let short = quantize(ty, &row[..96], Some(&weights[..96]));
        assert!(quantize(ty, &row[..256], Some(&weights[..256])).starts_with(&short), "{ty}");
    }
}

#[test]
fn what_a_format_can_hold_survives() {
    let fixture = index();
    for ty in GgmlType::ALL {
        let zeros = round_trip(ty, &[0.0; 512], None);
        assert!(zeros.iter().all(|&x| x == 0.0), "{ty}: zeros");
    }
    // Elements that are already on a grid of equal steps come back exactly, apart from the rounding of `d·q − m`.
    for (ty, levels) in [(Q2_K, 4), (Q3_K, 7), (Q4_K, 16), (Q5_K, 32), (Q6_K, 63)] {
        let row: Vec<f32> = (0..512).map(|i| ((i * 7 % levels) as f32 - (levels / 2) as f32) * 0.25).collect();
        let mut quality = Quality::default();
        quality.add(&row, &round_trip(ty, &row, None));
        // Scale times 63 (or 15, 32, 128) is a rounded half: eleven bits.
        assert!(quality.relative_rmse() < 0.002, "{ty}: {}", quality.relative_rmse());
    }
    // More bits, less error.
    let row = fixture.numbers("input/gauss");
    let errors = [Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0, F16].map(|ty| {
        let mut quality = Quality::default();
        quality.add(&row, &round_trip(ty, &row, None));
        quality.rmse()
    });
    assert!(errors.is_sorted_by(|a, b| a > b), "{errors:?}");
}

#[test]
fn what_is_no_number_is_nothing_to_the_search() {
    let fixture = index();
    let mut row = fixture.numbers("input/gauss")[..256].to_vec();
    let mut weights = vec![1.0; 256];
    (row[3], row[100], weights[60], weights[61], weights[200]) = (f32::NAN, -f32::NAN, f32::NAN, -1.0, f32::INFINITY);
    let (mut clean, mut sane) = (row.clone(), weights.clone());
    (clean[3], clean[100], sane[60], sane[61], sane[200]) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for ty in K {
        assert!(quantize(ty, &row, None) == quantize(ty, &clean, None), "{ty}");
    }
    for ty in LEGACY.into_iter().chain(K) {
        assert!(quantize(ty, &row, Some(&weights)) == quantize(ty, &clean, Some(&sane)), "{ty} with weights");
        // Weights that say nothing say the same as equal ones.
        assert!(quantize(ty, &clean, Some(&[0.0; 256])) == quantize(ty, &clean, Some(&[7.0; 256])), "{ty} with no weight");
    }
    row[3] = f32::INFINITY;
    clean[3] = (1u32 << 30) as f32;
    for ty in K {
        assert!(quantize(ty, &row, None) == quantize(ty, &clean, None), "{ty} with infinity");
    }
}

#[test]
#[should_panic(expected = "elements of Q4_K")]
fn a_short_output_is_the_callers_mistake() {
    block::quantize(Q4_K, &[0.0; 256], None, &mut [0; 143]);
}

/// Largest and root mean square error, over the block's largest magnitude, that a format may leave on [`row`]s: a
/// third more than the worst of 60 000 of them for the searched formats.
fn bounds(ty: GgmlType) -> (f32, f64) {
    match ty {
        F32 => (0.0, 0.0),
        F16 => (0.000_49, 0.000_3),
        BF16 => (0.003_91, 0.002_3),
        Q8_0 => (0.023, 0.004),
        Q5_0 => (0.095, 0.066),
        Q5_1 => (0.082, 0.042),
        Q4_0 => (0.21, 0.13),
        Q4_1 => (0.175, 0.086),
        Q6_K => (0.036, 0.008_3),
        Q5_K => (0.09, 0.019),
        Q4_K => (0.165, 0.038),
        Q3_K => (0.385, 0.073),
        Q2_K => (0.66, 0.141),
    }
}

/// A row of 256 of one of several shapes, with magnitudes of 2⁻⁶ to 2¹³, where half-precision scales have all their bits.
fn row() -> impl Strategy<Value = Vec<f32>> {
    let shape = prop_oneof![
        prop::collection::vec(-1.0f32..1.0, 256),
        prop::collection::vec((-1.0f32..1.0).prop_map(|x| x * x * x * x * x), 256),
        prop::collection::vec(0.5f32..1.0, 256),
        prop::collection::vec(prop_oneof![9 => Just(0.0f32), 1 => -1.0f32..1.0], 256),
        prop::collection::vec(prop_oneof![Just(-1.0f32), Just(0.0), Just(1.0)], 256),
    ];
    (shape, 0..14i32, prop::collection::vec(-6..1i32, 16))
        .prop_map(|(row, all, part)| row.iter().enumerate().map(|(i, x)| x * 2.0f32.powi(all + part[i / 16])).collect())
}

/// 256 numbers of any bits.
fn any_bits() -> impl Strategy<Value = Vec<f32>> {
    let bits = prop_oneof![
        4 => any::<u32>(),
        1 => prop::sample::select(vec![0u32, 1 << 31, 1, 0x007f_ffff, 0x7f7f_ffff, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0xffff_ffff]),
        2 => any::<f32>().prop_map(|x| (x.clamp(-1e3, 1e3)).to_bits()),
    ];
    prop::collection::vec(bits.prop_map(f32::from_bits), 256)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn errors_stay_in_bounds(row in row(), weighted in any::<bool>()) {
        let ones = vec![1.0; 256];
        for ty in GgmlType::ALL {
            let got = round_trip(ty, &row, weighted.then_some(&ones[..]));
            for (want, got) in row.chunks(ty.block_len().max(32)).zip(got.chunks(ty.block_len().max(32))) {
                let most = want.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                let mut quality = Quality::default();
                quality.add(want, got);
                let (largest, mean) = bounds(ty);
                prop_assert!(quality.max_abs_error() <= largest * most + 1e-6, "{ty}: off by {} of {most}", quality.max_abs_error());
                prop_assert!(quality.rmse() <= mean * f64::from(most) + 1e-6, "{ty}: off by {} of {most} on average", quality.rmse());
            }
        }
    }

    #[test]
    fn any_numbers_can_be_quantised(row in any_bits(), weights in any_bits(), weighted in any::<bool>()) {
        for ty in GgmlType::ALL {
            let got = round_trip(ty, &row, weighted.then_some(&weights[..]));
            if K.contains(&ty) || (weighted && LEGACY.contains(&ty)) {
                prop_assert!(got.iter().all(|x| x.is_finite()), "{ty} made infinity or NaN");
            }
        }
    }

    #[test]
    fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 210)) {
        for ty in GgmlType::ALL {
            let blocks = bytes.len() / ty.block_bytes();
            let got = dequantize(ty, &bytes[..blocks * ty.block_bytes()]);
            prop_assert_eq!(got.len(), blocks * ty.block_len());
        }
    }
}
