//! The named shapes of every benchmark, and shapes given by their sizes.

use crate::Error;
use da_moe::{Activation, Shape};
use serde::Serialize;
use std::str::FromStr;

/// How many experts tokens get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Experts {
    /// Every token the same number.
    Fixed(usize),
    /// Varying with importance, this many on average.
    Mean(f64),
}

impl Experts {
    /// What the command line asks for, else the shape's usual.
    pub(crate) fn asked(k: Option<usize>, mean_k: Option<f64>, usual: Self) -> Self {
        match (k, mean_k) {
            (Some(k), _) => Experts::Fixed(k),
            (None, Some(mean)) => Experts::Mean(mean),
            (None, None) => usual,
        }
    }

    /// The most that a token gets of those available: with a mean, about twice that.
    pub(crate) fn most(self, available: usize) -> Result<usize, Error> {
        match self {
            Experts::Fixed(k) => Ok(k),
            Experts::Mean(mean) if mean >= 1.0 && mean <= available as f64 => {
                Ok(available.min((2.0 * mean).ceil() as usize))
            }
            Experts::Mean(mean) => {
                Err(Error::Usage(format!("--mean-k {mean} is not between 1 and {available} experts")))
            }
        }
    }
}

/// Sizes of one benchmark, which objects for programs have by the letters of the specification.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ShapeArg {
    #[serde(rename = "shape")]
    pub(crate) name: String,
    #[serde(rename = "T")]
    pub(crate) tokens: usize,
    #[serde(rename = "D")]
    pub(crate) hidden: usize,
    #[serde(rename = "F")]
    pub(crate) width: usize,
    #[serde(rename = "E")]
    pub(crate) experts: usize,
    #[serde(skip)]
    pub(crate) usual: Experts,
    #[serde(skip)]
    pub(crate) activation: Activation,
}

impl FromStr for ShapeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(shape) = Shape::named(text) {
            return Ok(shape.into());
        }
        let sizes: Option<Vec<usize>> = text.split(',').map(|size| size.trim().parse().ok()).collect();
        match sizes.as_deref() {
            Some(&[tokens, hidden, width, experts]) if ![tokens, hidden, width, experts].contains(&0) => {
                let usual = Experts::Mean(experts.min(2) as f64);
                let name = text.into();
                Ok(Self { name, tokens, hidden, width, experts, usual, activation: Activation::Swiglu })
            }
            _ => {
                let names = Shape::ALL.map(|shape| shape.name);
                Err(format!("`{text}` is neither four positive sizes T,D,F,E nor one of {}", names.join(", ")))
            }
        }
    }
}

impl From<Shape> for ShapeArg {
    fn from(shape: Shape) -> Self {
        let Shape { tokens, hidden, width, experts, activation, .. } = shape;
        let usual = if shape.varies { Experts::Mean(shape.mean_k as f64) } else { Experts::Fixed(shape.mean_k) };
        Self { name: shape.name.into(), tokens, hidden, width, experts, usual, activation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_by_name_and_by_size() {
        let named: ShapeArg = "c-mid".parse().unwrap();
        assert_eq!((named.tokens, named.hidden, named.width, named.experts), (1024, 512, 1024, 8));
        let sized: ShapeArg = "3, 5,7,1".parse().unwrap();
        assert_eq!((sized.tokens, sized.experts, sized.usual), (3, 1, Experts::Mean(1.0)));
        for bad in ["", "c-mide", "1,2,3", "1,2,3,0", "1,2,3,-4", "1,2,3,99999999999999999999999"] {
            assert!(bad.parse::<ShapeArg>().is_err(), "{bad}");
        }
    }
}
