//! The named shapes of every benchmark: what a figure is a figure of.

use crate::Activation;

/// Sizes of one benchmark.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// How reports call it.
    pub name: &'static str,
    /// `T`.
    pub tokens: usize,
    /// `D`.
    pub hidden: usize,
    /// `F`.
    pub width: usize,
    /// `E`.
    pub experts: usize,
    /// Experts per token: on average where `varies`, else of every token.
    pub mean_k: usize,
    /// Whether tokens get different numbers of experts.
    pub varies: bool,
    /// Activation of the experts.
    pub activation: Activation,
}

const fn shape(name: &'static str, [t, d, f, e]: [usize; 4], mean_k: usize, activation: Activation) -> Shape {
    Shape { name, tokens: t, hidden: d, width: f, experts: e, mean_k, varies: true, activation }
}

impl Shape {
    /// Every named shape: the first four fit a CPU, the others stand for models on a GPU.
    pub const ALL: [Shape; 9] = [
        shape("c-small", [256, 128, 256, 16], 2, Activation::Swiglu),
        shape("c-mid", [1024, 512, 1024, 8], 2, Activation::Swiglu),
        shape("c-fine", [4096, 256, 512, 32], 2, Activation::Swiglu),
        shape("switch-base", [4096, 768, 3072, 8], 2, Activation::Relu),
        Shape { varies: false, ..shape("marin", [8192, 2048, 3072, 8], 2, Activation::Swiglu) },
        shape("olmoe", [32768, 2048, 1024, 64], 4, Activation::Swiglu),
        shape("qwen3-30b", [32768, 2048, 768, 128], 4, Activation::Swiglu),
        shape("fine-256", [16384, 4096, 1024, 256], 3, Activation::Swiglu),
        shape("decode", [64, 2048, 768, 128], 4, Activation::Swiglu),
    ];

    /// The shape of this name.
    pub fn named(name: &str) -> Option<Shape> {
        Self::ALL.into_iter().find(|shape| shape.name == name)
    }
}
