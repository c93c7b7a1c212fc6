//! The shapes that the speed goals are stated for, and a few small ones that take the same way.

use super::Result;
use da_moe::{Activation, ExpertsPerToken, LayerConfig, Normalize, Policy, Source};
use std::time::Duration;

/// Experts for a token.
#[derive(Clone, Copy, Debug)]
pub(super) enum Experts {
    Fixed(usize),
    /// So many at most, and the mean.
    Mean(usize, f64),
}

use Experts::{Fixed, Mean};

#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    /// T, D, F, E.
    pub(super) sizes: [usize; 4],
    pub(super) experts: Experts,
    pub(super) activation: Activation,
}

const fn shape(name: &'static str, sizes: [usize; 4], experts: Experts) -> Shape {
    Shape { name, sizes, experts, activation: Activation::Swiglu }
}

const fn relu(name: &'static str, sizes: [usize; 4], experts: Experts) -> Shape {
    Shape { activation: Activation::Relu, ..shape(name, sizes, experts) }
}

impl Shape {
    /// Whether the same tensors serve: half of `w_in` is the gate's where there is one.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.sizes, self.activation) == (other.sizes, other.activation)
    }

    pub(super) fn config(&self) -> LayerConfig {
        let [_, d, f, e] = self.sizes;
        let mut config = LayerConfig { hidden_act: self.activation, ..LayerConfig::da_moe(d, f, e, e.min(8)) };
        config.experts_per_token = match self.experts {
            Fixed(k) => {
                // A fixed number asks for no importance.
                (config.importance.source, config.importance.normalize) = (Source::External, Normalize::None);
                ExpertsPerToken::new(Policy::Fixed { k })
            }
            Mean(most, mean_k) => ExpertsPerToken::between(Policy::Budget { mean_k }, 1, most),
        };
        config
    }
}

/// What is measured, and how thoroughly.
pub(super) struct Plan {
    /// The first is measured once more at the end.
    pub(super) shapes: &'static [Shape],
    /// Forward of one of them with other means, for the time that a row takes.
    pub(super) sweep: (Shape, &'static [f64]),
    /// Importance is from queries and keys of so many heads, so wide.
    pub(super) heads: [usize; 2],
    /// Tokens of a sequence.
    pub(super) sequence: usize,
    /// Bytes that are larger than any cache.
    pub(super) flush: usize,
    /// Bytes that are copied to see what memory can do.
    pub(super) copy: usize,
    pub(super) warm_up: usize,
    pub(super) repeats: usize,
    /// How long the device is kept busy first: its clock takes that long to rise.
    pub(super) busy: Duration,
}

impl Plan {
    /// By what `DA_MOE_BENCH` asks for: everything, or `tiny`.
    pub(super) fn asked(asked: Option<&str>) -> Result<&'static Self> {
        match asked {
            None | Some("") => Ok(&FULL),
            Some("tiny") => Ok(&TINY),
            Some(other) => Err(format!("DA_MOE_BENCH is `{other}`; choose tiny, or leave it unset").into()),
        }
    }
}

static FULL: Plan = Plan {
    shapes: &[
        shape("marin", [8192, 2048, 3072, 8], Fixed(2)),
        shape("qwen3-30b", [32768, 2048, 768, 128], Fixed(8)),
        shape("qwen3-30b", [32768, 2048, 768, 128], Mean(8, 4.0)),
        shape("olmoe", [32768, 2048, 1024, 64], Fixed(8)),
        shape("olmoe", [32768, 2048, 1024, 64], Mean(8, 4.0)),
        shape("fine-256", [16384, 4096, 1024, 256], Fixed(4)),
        shape("fine-256", [16384, 4096, 1024, 256], Mean(8, 3.0)),
        shape("decode", [64, 2048, 768, 128], Fixed(8)),
        shape("decode", [64, 2048, 768, 128], Mean(8, 4.0)),
        relu("switch-base", [4096, 768, 3072, 8], Fixed(1)),
        relu("switch-base", [4096, 768, 3072, 8], Mean(4, 2.0)),
        // Two dense products: what these kernels reach where nothing is ragged.
        relu("one-expert", [8192, 4096, 8192, 1], Fixed(1)),
    ],
    sweep: (shape("fine-256", [16384, 4096, 1024, 256], Mean(8, 8.0)), &[1.0, 2.0, 3.0, 4.0, 6.0, 8.0]),
    heads: [16, 128],
    sequence: 4096,
    flush: 256 << 20,
    copy: 512 << 20,
    warm_up: 3,
    repeats: 20,
    busy: Duration::from_secs(1),
};

/// As much of everything as a device without a clock runs in a minute.
static TINY: Plan = Plan {
    shapes: &[
        shape("tiny", [64, 64, 32, 4], Fixed(2)),
        shape("tiny", [64, 64, 32, 4], Mean(4, 2.0)),
        relu("tiny-relu", [64, 64, 32, 4], Mean(4, 2.0)),
        shape("tiny-one", [64, 64, 32, 1], Fixed(1)),
    ],
    sweep: (shape("tiny", [64, 64, 32, 4], Mean(4, 4.0)), &[1.0, 4.0]),
    heads: [2, 64],
    sequence: 32,
    flush: 1 << 20,
    copy: 1 << 20,
    warm_up: 0,
    repeats: 1,
    busy: Duration::ZERO,
};

#[test]
fn shapes_that_are_alike_follow_one_another() {
    for plan in [&FULL, &TINY] {
        let mut kinds: Vec<&Shape> = Vec::new();
        for shapes in plan.shapes.chunk_by(Shape::is_like) {
            assert!(kinds.iter().all(|kind| !kind.is_like(&shapes[0])), "{} is drawn twice", shapes[0].name);
            kinds.push(&shapes[0]);
        }
        assert!(plan.shapes.iter().any(|shape| shape.is_like(&plan.sweep.0)));
    }
    assert!(!shape("a", [1; 4], Fixed(1)).is_like(&relu("a", [1; 4], Fixed(1))));
    assert!(Plan::asked(Some("small")).is_err_and(|error| error.to_string().contains("`small`")));
}
