//! What quantising cost: errors measured while rows go by.

/// Errors of a stream of numbers against what they should have been. Sums are kept in `f64`.
///
/// ```
/// let mut quality = sphinx_quant::quality::Quality::default();
/// quality.add(&[1.0, 2.0], &[1.0, 1.5]);
/// assert_eq!(quality.max_abs_error(), 0.5);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quality {
    count: u64,
    error: f64,
    want: f64,
    got: f64,
    product: f64,
    max_abs: f32,
}

impl Quality {
    /// Takes in a piece: `want` the reference, `got` what came out.
    ///
    /// # Panics
    /// When the two differ in length.
    pub fn add(&mut self, want: &[f32], got: &[f32]) {
        assert_eq!(want.len(), got.len(), "pieces of equal length");
        self.count += want.len() as u64;
        for (want, got) in want.chunks(8).zip(got.chunks(8)) {
            for (&a, &b) in want.iter().zip(got) {
                let error = (b - a).abs();
                // A NaN, once in, stays: it must not hide behind a later, smaller error.
                self.max_abs = if error > self.max_abs || error.is_nan() { error } else { self.max_abs };
                let (a, b) = (f64::from(a), f64::from(b));
                self.error += (b - a) * (b - a);
                self.want += a * a;
                self.got += b * b;
                self.product += a * b;
            }
        }
    }

    /// Takes in what another has seen.
    pub fn merge(&mut self, other: &Quality) {
        self.count += other.count;
        self.error += other.error;
        self.want += other.want;
        self.got += other.got;
        self.product += other.product;
        let larger = other.max_abs > self.max_abs || other.max_abs.is_nan();
        self.max_abs = if larger { other.max_abs } else { self.max_abs };
    }

    /// Numbers seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Root of the mean squared error; 0 before anything was seen.
    pub fn rmse(&self) -> f64 {
        (self.error / self.count.max(1) as f64).sqrt()
    }

    /// [`rmse`](Self::rmse) over the root mean square of the reference; 0 when nothing differs, infinite when the
    /// reference is all zero and something does.
    pub fn relative_rmse(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { (self.error / self.want).sqrt() }
    }

    /// Cosine of the angle between the two; 1 when both are all zero, 0 when one is.
    pub fn cosine(&self) -> f64 {
        if self.want == 0.0 && self.got == 0.0 {
            1.0
        } else if self.want == 0.0 || self.got == 0.0 {
            0.0
        } else {
            self.product / (self.want.sqrt() * self.got.sqrt())
        }
    }

    /// The largest difference; NaN once one was NaN.
    pub fn max_abs_error(&self) -> f32 {
        self.max_abs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_add_up() {
        let want: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
        let got: Vec<f32> = want.iter().enumerate().map(|(i, x)| x + 0.01 * (i % 3) as f32).collect();
        let mut whole = Quality::default();
        whole.add(&want, &got);
        let (mut first, mut second) = (Quality::default(), Quality::default());
        first.add(&want[..37], &got[..37]);
        second.add(&want[37..], &got[37..]);
        first.merge(&second);
        assert_eq!(first.count(), 100);
        assert!((first.rmse() - whole.rmse()).abs() < 1e-12);
        let expected = ((33.0 * 1e-4 + 33.0 * 4e-4) / 100.0f64).sqrt();
        assert!((whole.rmse() - expected).abs() < 1e-7, "{} {expected}", whole.rmse());
        assert!((whole.max_abs_error() - 0.02).abs() < 1e-6);
        assert!(whole.cosine() > 0.999 && whole.cosine() < 1.0);
    }

    #[test]
    fn edges() {
        let mut q = Quality::default();
        assert_eq!((q.rmse(), q.relative_rmse(), q.cosine(), q.max_abs_error()), (0.0, 0.0, 1.0, 0.0));
        q.add(&[0.0], &[1.0]);
        assert_eq!((q.relative_rmse(), q.cosine()), (f64::INFINITY, 0.0));
        q.add(&[0.0, 0.0], &[f32::NAN, 5.0]);
        assert!(q.max_abs_error().is_nan() && q.rmse().is_nan());
    }
}
