//! The named shapes of every benchmark, and shapes given by their sizes.

use da_moe::Activation;
use std::str::FromStr;

/// How many experts tokens get.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Experts {
    /// Every token the same number.
    Fixed(usize),
    /// Varying with importance, this many on average.
    Mean(f64),
}

/// Sizes of one benchmark.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ShapeArg {
    pub(crate) name: String,
    pub(crate) tokens: usize,
    pub(crate) hidden: usize,
    pub(crate) width: usize,
    pub(crate) experts: usize,
    pub(crate) usual: Experts,
    pub(crate) activation: Activation,
}

type Row = (&'static str, [usize; 4], Experts, Activation);

/// `[T, D, F, E]` of each name, with the experts per token that it is run with unless told.
const NAMED: [Row; 9] = [
    ("c-small", [256, 128, 256, 16], Experts::Mean(2.0), Activation::Swiglu),
    ("c-mid", [1024, 512, 1024, 8], Experts::Mean(2.0), Activation::Swiglu),
    ("c-fine", [4096, 256, 512, 32], Experts::Mean(2.0), Activation::Swiglu),
    ("switch-base", [4096, 768, 3072, 8], Experts::Mean(2.0), Activation::Relu),
    ("marin", [8192, 2048, 3072, 8], Experts::Fixed(2), Activation::Swiglu),
    ("olmoe", [32768, 2048, 1024, 64], Experts::Mean(4.0), Activation::Swiglu),
    ("qwen3-30b", [32768, 2048, 768, 128], Experts::Mean(4.0), Activation::Swiglu),
    ("fine-256", [16384, 4096, 1024, 256], Experts::Mean(3.0), Activation::Swiglu),
    ("decode", [64, 2048, 768, 128], Experts::Mean(4.0), Activation::Swiglu),
];

impl FromStr for ShapeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((name, sizes, usual, activation)) = NAMED.iter().find(|(name, ..)| *name == text) {
            return Ok(Self::sized((*name).into(), *sizes, *usual, *activation));
        }
        let sizes: Option<Vec<usize>> = text.split(',').map(|size| size.trim().parse().ok()).collect();
        match sizes.as_deref() {
            Some(&[tokens, hidden, width, experts]) if ![tokens, hidden, width, experts].contains(&0) => {
                let usual = Experts::Mean(experts.min(2) as f64);
                Ok(Self::sized(text.into(), [tokens, hidden, width, experts], usual, Activation::Swiglu))
            }
            _ => {
                let names: Vec<_> = NAMED.iter().map(|(name, ..)| *name).collect();
                Err(format!("`{text}` is neither four positive sizes T,D,F,E nor one of {}", names.join(", ")))
            }
        }
    }
}

impl ShapeArg {
    fn sized(
        name: String,
        [tokens, hidden, width, experts]: [usize; 4],
        usual: Experts,
        activation: Activation,
    ) -> Self {
        Self { name, tokens, hidden, width, experts, usual, activation }
    }
}

/// Useful operations of one routed row forward: a multiplication and an addition for each weight. Backward takes twice
/// as many.
pub(crate) fn row_operations(activation: Activation, hidden: usize, width: usize) -> f64 {
    2.0 * hidden as f64 * (activation.rows_in(width) + width) as f64
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

    #[test]
    fn operations_per_row() {
        assert_eq!(row_operations(Activation::Swiglu, 10, 100), 6.0 * 1000.0);
        assert_eq!(row_operations(Activation::Relu, 10, 100), 4.0 * 1000.0);
    }
}
