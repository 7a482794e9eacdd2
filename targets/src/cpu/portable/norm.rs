//! Norms of one row. Statistics are summed in f64, the variance in a second pass over differences from the mean.

/// Lanes of partial sums, so that the loops vectorise; added one after another at the end.
const LANES: usize = 8;

/// `Σ f(x[i])` in f64.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0f64; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += f(f64::from(chunk[i]));
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane += f(f64::from(v));
    }
    lanes.iter().sum()
}

/// `out = x · weight / sqrt(mean(x²) + eps)`.
#[inline(always)]
pub fn rms(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = sum(x, |v| v * v) / x.len() as f64;
    let inverse = (1.0 / (mean + f64::from(eps)).sqrt()) as f32;
    for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * inverse * w;
    }
}

/// `out = (x − mean) / sqrt(var + eps) · weight + bias`, the variance being the biased one.
#[inline(always)]
pub fn layer(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let n = x.len() as f64;
    let mean = sum(x, |v| v) / n;
    let variance = sum(x, |v| (v - mean) * (v - mean)) / n;
    let inverse = (1.0 / (variance + f64::from(eps)).sqrt()) as f32;
    let mean = mean as f32;
    for (((out, &x), &w), &b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = (x - mean) * inverse * w + b;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values around 1e-3, where an eps of 1e-5 or 1e-6 in the wrong place (or missing) shows.
    fn small(n: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let x = (0..n).map(|i| ((i * 7919 % 101) as f32 - 50.0) * 4e-5 + 3e-4).collect();
        let w = (0..n).map(|i| 0.5 + (i % 7) as f32 * 0.25).collect();
        let b = (0..n).map(|i| (i % 5) as f32 * 0.1 - 0.2).collect();
        (x, w, b)
    }

    #[test]
    fn rms_against_f64() {
        for n in [1, 7, 8, 9, 384, 2048] {
            for eps in [1e-5f32, 1e-6, 1e-12] {
                let (x, w, _) = small(n);
                let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n as f64;
                let mut out = vec![f32::NAN; n];
                rms(&x, &w, eps, &mut out);
                for i in 0..n {
                    let want = f64::from(x[i]) / (mean + f64::from(eps)).sqrt() * f64::from(w[i]);
                    assert!((f64::from(out[i]) - want).abs() <= 3e-7 * want.abs(), "n {n} eps {eps} at {i}: {} {want}", out[i]);
                    let outside = f64::from(x[i]) / (mean.sqrt() + f64::from(eps)) * f64::from(w[i]);
                    let matters = eps > 1e-11 && want.abs() > 1e-3;
                    assert!(!matters || (f64::from(out[i]) - outside).abs() > 1e-2 * want.abs(), "the place of eps shows");
                }
            }
        }
    }

    #[test]
    fn layer_against_f64() {
        for n in [2, 7, 9, 1536] {
            for eps in [1e-5f32, 1e-6] {
                let (x, w, b) = small(n);
                let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
                let var = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
                let mut out = vec![f32::NAN; n];
                layer(&x, &w, &b, eps, &mut out);
                for i in 0..n {
                    let normal = (f64::from(x[i]) - mean) / (var + f64::from(eps)).sqrt() * f64::from(w[i]);
                    let want = normal + f64::from(b[i]);
                    assert!((f64::from(out[i]) - want).abs() <= 1e-6 * (normal.abs() + want.abs()) + 1e-7, "n {n} at {i}");
                }
            }
        }
    }

    #[test]
    fn a_large_mean_does_not_drown_the_variance() {
        let x: Vec<f32> = (0..1000).map(|i| 1000.0 + (i % 2) as f32 * 0.0625).collect();
        let (w, b, mut out) = (vec![1.0; 1000], vec![0.0; 1000], vec![0.0; 1000]);
        layer(&x, &w, &b, 1e-6, &mut out);
        assert!((out[0] + 1.0).abs() < 1e-2 && (out[1] - 1.0).abs() < 1e-2, "{} {}", out[0], out[1]);
    }
}
