//! Means with their errors, and differences in pairs.

/// A sample's mean and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Of the sample.
    pub mean: f64,
    /// Sample standard deviation; 0 for one value.
    pub deviation: f64,
    /// Of the mean: `deviation / sqrt(n)`.
    pub error: f64,
    /// Values.
    pub count: usize,
}

impl Estimate {
    /// Of these values; `None` for none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        if count == 0 {
            return None;
        }
        let n = count as f64;
        let mean = values.iter().sum::<f64>() / n;
        let square: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = if count > 1 { (square / (n - 1.0)).sqrt() } else { 0.0 };
        Some(Self { mean, deviation, error: deviation / n.sqrt(), count })
    }

    /// The 95% interval of the mean (Student's t); `None` for one value.
    pub fn interval(&self) -> Option<[f64; 2]> {
        let half = student(self.count.checked_sub(1)?)? * self.error;
        Some([self.mean - half, self.mean + half])
    }

    /// Whether the interval leaves out 0.
    pub fn is_clear(&self) -> bool {
        self.interval().is_some_and(|[low, high]| low > 0.0 || high < 0.0)
    }
}

/// The 97.5% quantile of Student's distribution; `None` without a degree of freedom.
fn student(freedom: usize) -> Option<f64> {
    const QUANTILES: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
        2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
    ];
    let index = freedom.checked_sub(1)?;
    Some(QUANTILES.get(index).copied().unwrap_or(1.96))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_five_values() {
        let estimate = Estimate::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!((estimate.mean, estimate.count), (3.0, 5));
        assert!((estimate.deviation - 2.5f64.sqrt()).abs() < 1e-12);
        let [low, high] = estimate.interval().unwrap();
        assert!((high - low - 2.0 * 2.776 * estimate.error).abs() < 1e-12);
        assert!(estimate.is_clear());
    }

    #[test]
    fn one_value_has_no_interval() {
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[2.0]).unwrap().interval(), None);
        assert!(!Estimate::of(&[2.0]).unwrap().is_clear());
    }

    #[test]
    fn an_interval_around_nothing_is_not_clear() {
        assert!(!Estimate::of(&[-1.0, 1.0, 0.1]).unwrap().is_clear());
    }
}
