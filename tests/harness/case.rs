//! One random layer call, described by a few numbers that shrink well; the tensors follow from them.

use da_moe::{
    Activation, AttentionSource, DType, Drop, ExpertsPerToken, Heads, ImportanceConfig, ImportancePart, Keep,
    LayerConfig, Losses, Normalize, NormalizeWeights, NullExpert, Policy, RouterConfig, Scoring, Source, Threshold,
};
use proptest::prelude::*;

/// How attention is handed over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Attend {
    /// Queries and keys; the log-sum-exp is the backend's to find.
    QueryKey,
    /// Queries, keys and their log-sum-exp.
    WithLse,
    /// The matrix.
    Probabilities,
}

/// Everything about a call except the numbers in its tensors, which follow from `seed`.
#[derive(Clone, Debug)]
pub struct Case {
    pub config: LayerConfig,
    pub dtype: DType,
    pub seed: u64,
    /// Tokens of each sequence.
    pub lengths: Vec<usize>,
    /// One token in so many is masked; 0 for no mask.
    pub masked_every: usize,
    pub attend: Attend,
    /// Query heads, key heads, head width.
    pub heads: [usize; 3],
    pub biases: bool,
    pub router_bias: bool,
    pub router_f32: bool,
    /// Rows of `x` and `dy` are this many elements further apart than they are long.
    pub padding: usize,
    /// Added to the router weight of expert 0, so that it attracts (nearly) every token.
    pub skew: f32,
    /// Logits reach ±200, where scores have no f32, and biases forbid or force candidates.
    pub far: bool,
    /// A finished routing is handed in: 0 none, 1 padded, 2 compressed.
    pub routing: u8,
    pub keep: Keep,
    pub training: bool,
}

impl Case {
    /// A small case with everything at its plainest, to be varied by field.
    pub fn plain(config: LayerConfig) -> Self {
        Self {
            config,
            dtype: DType::F32,
            seed: 1,
            lengths: vec![9, 0, 5],
            masked_every: 0,
            attend: Attend::QueryKey,
            heads: [2, 1, 4],
            biases: false,
            router_bias: false,
            router_f32: false,
            padding: 0,
            skew: 0.0,
            far: false,
            routing: 0,
            keep: Keep::Hidden,
            training: false,
        }
    }

    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Scale of the attention that the log-sum-exp is of, if not `1/sqrt(dh)`.
    pub fn scale(&self) -> Option<f64> {
        scales(&self.config.importance.source).first().copied().flatten()
    }
}

/// A small valid layer.
pub fn small_config() -> LayerConfig {
    LayerConfig::da_moe(12, 10, 6, 4)
}

pub fn attention_source(measure: AttentionSource) -> Source {
    Source::Attention { measure, heads: Heads::Mean, scale: None }
}

/// Scales of a source's attention, part by part.
fn scales(source: &Source) -> Vec<Option<f64>> {
    match source {
        Source::Attention { scale, .. } => vec![*scale],
        Source::Mix(parts) => parts.iter().flat_map(|part| scales(&part.source)).collect(),
        _ => Vec::new(),
    }
}

fn simple_source() -> impl Strategy<Value = Source> {
    let attention = (prop::sample::select(AttentionSource::ALL.to_vec()), any::<bool>(), any::<bool>()).prop_map(
        |(measure, max, scaled)| Source::Attention {
            measure,
            heads: if max { Heads::Max } else { Heads::Mean },
            scale: scaled.then_some(0.7),
        },
    );
    prop_oneof![3 => attention, 1 => Just(Source::External), 1 => Just(Source::TokenFrequency), 1 => Just(Source::RouterEntropy)]
}

fn normalize() -> impl Strategy<Value = Normalize> {
    prop::sample::select(vec![
        Normalize::None,
        Normalize::Max,
        Normalize::MinMax,
        Normalize::Rank,
        Normalize::Affine { a: 1.5, b: -0.25 },
    ])
}

fn source() -> impl Strategy<Value = Source> {
    let part = (simple_source(), normalize(), 0.25f64..2.0).prop_map(|(source, normalize, weight)| ImportancePart {
        weight,
        source,
        normalize,
    });
    prop_oneof![4 => simple_source(), 1 => prop::collection::vec(part, 1..4).prop_map(Source::Mix)]
}

fn importance() -> impl Strategy<Value = ImportanceConfig> {
    let rule = prop_oneof![5 => normalize(), 1 => Just(Normalize::Running { momentum: 0.9 })];
    (source(), rule, any::<bool>()).prop_map(|(source, normalize, causal)| ImportanceConfig {
        source,
        normalize,
        causal,
        // The leak rule has tests of its own; here every combination is computed.
        allow_future: true,
    })
}

fn policy(candidates: usize) -> impl Strategy<Value = Policy> {
    prop_oneof![
        (0..=candidates).prop_map(|k| Policy::Fixed { k }),
        prop::option::of(0.5f64..9.0).prop_map(|scale| Policy::Proportional { scale }),
        Just(Policy::Thresholds { thresholds: vec![0.1, 0.3, 0.7] }),
        (0.0f64..5.0).prop_map(|mean_k| Policy::Budget { mean_k }),
        (0.0f64..5.0).prop_map(|mean_k| Policy::BudgetRunning { mean_k, momentum: 0.5 }),
        (0.05f64..=1.0).prop_map(|p| Policy::TopP { p }),
        (0.0f64..0.6).prop_map(|c| Policy::ScoreThreshold { threshold: Threshold::All(c) }),
        prop::collection::vec(0.0f64..0.6, candidates)
            .prop_map(|c| Policy::ScoreThreshold { threshold: Threshold::Each(c) }),
        Just(Policy::Given),
    ]
}

/// Policy and interval that a router with `reachable` of `candidates` experts can satisfy.
fn experts_per_token(candidates: usize, reachable: usize) -> impl Strategy<Value = ExpertsPerToken> {
    (policy(reachable), 0..=reachable, 0..=reachable).prop_map(move |(policy, a, b)| {
        let policy = match policy {
            // One threshold for each candidate, however many are reachable.
            Policy::ScoreThreshold { threshold: Threshold::Each(mut c) } => {
                c.resize(candidates, 0.2);
                Policy::ScoreThreshold { threshold: Threshold::Each(c) }
            }
            // A mean that every interval holds.
            Policy::Budget { mean_k } => Policy::Budget { mean_k: mean_k.clamp(a.min(b) as f64, a.max(b) as f64) },
            Policy::BudgetRunning { mean_k, momentum } => {
                Policy::BudgetRunning { mean_k: mean_k.clamp(a.min(b) as f64, a.max(b) as f64), momentum }
            }
            other => other,
        };
        ExpertsPerToken::between(policy, a.min(b), a.max(b))
    })
}

prop_compose! {
    fn router(groups: usize, chosen: usize)(
        scoring in prop::sample::select(vec![Scoring::Softmax, Scoring::Sigmoid, Scoring::Relu]),
        normalize in prop::sample::select(vec![
            NormalizeWeights::None, NormalizeWeights::Selected, NormalizeWeights::Candidates,
        ]),
        scaling in prop::sample::select(vec![1.0, 2.5]),
        capacity_factor in prop::option::of(prop::sample::select(vec![0.0, 0.5, 1.0, 1.25])),
        by_weight in any::<bool>(),
    ) -> RouterConfig {
        RouterConfig {
            scoring,
            normalize,
            routed_scaling: scaling,
            capacity_factor,
            drop: if by_weight { Drop::Weight } else { Drop::Token },
            n_group: groups,
            topk_group: chosen,
        }
    }
}

/// Any valid configuration of small size.
pub fn config() -> impl Strategy<Value = LayerConfig> {
    // Experts, null experts, groups and chosen groups that go together.
    let shape = prop_oneof![
        4 => (1usize..9, 0usize..4).prop_map(|(e, z)| (e, z, 1, 1)),
        1 => Just((6, 2, 4, 2)),
        1 => Just((6, 0, 3, 2)),
        1 => Just((4, 0, 4, 1)),
    ];
    shape.prop_flat_map(|(e, z, groups, chosen)| {
        let reachable = (e + z) / groups * chosen;
        // Half of them as Hopper's products want rows of 16 bits.
        let width = || prop_oneof![1usize..20, prop::sample::select(vec![8usize, 16])];
        let sizes = (width(), width(), prop_oneof![2 => Just(0usize), 1 => 1usize..9]);
        let kinds = (
            prop::sample::select(vec![NullExpert::Zero, NullExpert::Copy, NullExpert::Constant]),
            prop::sample::select(Activation::ALL.to_vec()),
        );
        let losses = prop::sample::select(vec![(0.0, 0.0), (0.5, 0.0), (0.0, 0.25), (0.3, 0.1)]);
        (sizes, kinds, importance(), experts_per_token(e + z, reachable), router(groups, chosen), losses).prop_map(
            move |(
                (d, f, shared),
                (null_expert, hidden_act),
                importance,
                experts_per_token,
                router,
                (balance, z_loss),
            )| {
                LayerConfig {
                    hidden_size: d,
                    num_experts: e,
                    num_null_experts: z,
                    null_expert,
                    moe_intermediate_size: f,
                    shared_intermediate_size: shared,
                    hidden_act,
                    importance,
                    experts_per_token,
                    router,
                    losses: Losses { balance, z: z_loss },
                }
            },
        )
    })
}

prop_compose! {
    /// Any valid call of small size.
    pub fn case()(
        config in config(),
        dtype in prop::sample::select(vec![DType::F32, DType::F32, DType::Bf16, DType::F16]),
        seed in any::<u64>(),
        lengths in prop::collection::vec(prop_oneof![3 => 0usize..9, 1 => 9usize..40], 0..5),
        masked_every in prop::sample::select(vec![0, 0, 1, 2, 5]),
        attend in prop::sample::select(vec![Attend::QueryKey, Attend::WithLse, Attend::Probabilities]),
        heads in prop::sample::select(vec![[1, 1, 1], [2, 1, 4], [4, 2, 8], [3, 3, 5]]),
        flags in any::<(bool, bool, bool, bool)>(),
        padding in prop::sample::select(vec![0, 0, 3]),
        skew in prop::sample::select(vec![0.0, 0.0, 20.0]),
        far in prop::sample::select(vec![false, false, false, true]),
        routing in prop::sample::select(vec![0, 0, 0, 0, 1, 2]),
        keep in prop::sample::select(vec![Keep::Hidden, Keep::Recompute]),
    ) -> Case {
        let (biases, router_bias, router_f32, training) = flags;
        // A log-sum-exp is of one scale.
        let alike = scales(&config.importance.source).windows(2).all(|pair| pair[0] == pair[1]);
        let attend = if attend == Attend::WithLse && !alike { Attend::QueryKey } else { attend };
        Case {
            config, dtype, seed, lengths, masked_every, attend, heads, biases, router_bias, router_f32, padding, skew,
            far, routing, keep, training,
        }
    }
}
