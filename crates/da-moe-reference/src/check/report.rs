//! Figures and mismatches, and the comparisons that make them.

use super::bounds::round;
use da_moe_core::DType;
use std::fmt;

/// How far a tensor is from the oracle.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The tensor.
    pub name: &'static str,
    /// `‖out − oracle‖ / ‖oracle‖` over the positions where the oracle is finite.
    pub error: f64,
    /// The largest error allowed.
    pub bound: f64,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    /// The tensor.
    pub tensor: &'static str,
    /// Row and column, or index.
    pub position: Vec<usize>,
    /// What the outcome has there.
    pub found: String,
    /// What it should have.
    pub expected: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}: found {}, expected {}", self.tensor, self.position, self.found, self.expected)
    }
}

/// What a comparison allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerance<'a> {
    /// On the relative error.
    pub bound: f64,
    /// What the error is relative to at least: the size of what cancelled.
    pub floor: f64,
    /// The type that the outcome is stored in.
    pub dtype: DType,
    /// Per element, an absolute error that does not count.
    pub slack: Option<&'a [f64]>,
    /// Whether the outcome may be non-finite where the oracle is finite: sums over tokens when an input is non-finite.
    pub may_overflow: bool,
}

impl Tolerance<'_> {
    pub(super) fn new(bound: f64, dtype: DType) -> Self {
        Self { bound, floor: 0.0, dtype, slack: None, may_overflow: false }
    }
}

/// Collects the results of all comparisons.
#[derive(Debug, Default)]
pub(super) struct Report {
    figures: Vec<Figure>,
    mismatches: Vec<Mismatch>,
}

impl Report {
    pub(super) fn is_clean(&self) -> bool {
        self.mismatches.is_empty()
    }

    pub(super) fn finish(self) -> Result<Vec<Figure>, Vec<Mismatch>> {
        if self.mismatches.is_empty() { Ok(self.figures) } else { Err(self.mismatches) }
    }

    pub(super) fn mismatch(
        &mut self,
        tensor: &'static str,
        position: &[usize],
        found: impl ToString,
        expected: impl ToString,
    ) {
        let (found, expected) = (found.to_string(), expected.to_string());
        self.mismatches.push(Mismatch { tensor, position: position.to_vec(), found, expected });
    }

    /// Refuses a tensor of the wrong length; says whether it was right.
    pub(super) fn length(&mut self, tensor: &'static str, found: usize, expected: usize) -> bool {
        if found != expected {
            self.mismatch(tensor, &[], format!("{found} elements"), format!("{expected} elements"));
        }
        found == expected
    }

    /// Exact equality, NaN equal to NaN; names the first difference.
    pub(super) fn equal<T>(&mut self, tensor: &'static str, width: usize, found: &[T], expected: &[T])
    where
        T: PartialOrd + ToString + Copy,
    {
        if !self.length(tensor, found.len(), expected.len()) {
            return;
        }
        let is_nan = |value: &T| value.partial_cmp(value).is_none();
        let differs = |(a, b): (&T, &T)| a != b && !(is_nan(a) && is_nan(b));
        if let Some(at) = found.iter().zip(expected).position(differs) {
            self.mismatch(tensor, &position(at, width), found[at], expected[at]);
        }
    }

    /// Closeness in the norm; a non-finite oracle asks for a non-finite outcome at the same position.
    pub(super) fn close(
        &mut self,
        name: &'static str,
        width: usize,
        found: &[f64],
        expected: &[f64],
        tolerance: Tolerance<'_>,
    ) {
        if !self.length(name, found.len(), expected.len()) {
            return;
        }
        let (mut error, mut size, mut worst) = (0.0, 0.0, (0, 0.0));
        for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            if !expected.is_finite() && found.is_finite() {
                return self.mismatch(name, &position(at, width), found, format!("{expected}, not a finite number"));
            }
            // The oracle's value may be too large for the type, and then the outcome is infinite or the largest number.
            if !expected.is_finite() || !round(tolerance.dtype, expected).is_finite() {
                continue;
            }
            if !found.is_finite() {
                if tolerance.may_overflow {
                    continue;
                }
                return self.mismatch(name, &position(at, width), found, expected);
            }
            let slack = tolerance.slack.map_or(0.0, |slack| slack[at]);
            let difference = ((found - expected).abs() - slack).max(0.0);
            error += difference * difference;
            size += expected * expected;
            if difference > worst.1 {
                worst = (at, difference);
            }
        }
        let floor = tolerance.floor.max(least(tolerance.dtype, tolerance.bound) * (found.len() as f64).sqrt());
        let relative = if error == 0.0 { 0.0 } else { error.sqrt() / size.sqrt().max(floor) };
        self.figures.push(Figure { name, error: relative, bound: tolerance.bound });
        if relative > tolerance.bound {
            let expected = format!(
                "{} (relative error of the tensor {relative:.1e}, allowed {:.1e})",
                expected[worst.0], tolerance.bound
            );
            self.mismatch(name, &position(worst.0, width), found[worst.0], expected);
        }
    }
}

/// The absolute floor per element: only near zero equals zero. f16 numbers are 6e-8 apart at zero, which may cost half.
fn least(dtype: DType, bound: f64) -> f64 {
    if dtype == DType::F16 { 3e-8 / bound } else { 1e-9 }
}

fn position(at: usize, width: usize) -> Vec<usize> {
    if width > 1 { vec![at / width, at % width] } else { vec![at] }
}
