//! Which launches measure and normalise importance (`kernels/importance/importance.cu`); [`attention`](super::attention) reads
//! attention.

use crate::cuda::abi;
use crate::cuda::cost::{Contents, Work};
use crate::cuda::device::workspace::{Carver, Workspace};
use crate::cuda::device::{Call, Launch, Parameters, Target};
use crate::cuda::launch::attention::{Attention, Reading};
use crate::{Error, Heads, ImportanceConfig, Normalize, Result, Source};

const THREADS: usize = 256;
const WARPS: usize = 8;
/// Tokens that a block ranks.
const RANKED: usize = 64;
/// Threads of a block that has a whole sequence.
const SEQUENCE_THREADS: u32 = 1024;

/// Device memory that importance is read from and written to. What a source does not need may be null.
#[derive(Clone, Copy, Debug)]
pub struct Tensors {
    /// T.
    pub tokens: usize,
    /// B.
    pub sequences: usize,
    /// `[B + 1]`, or null for one sequence.
    pub cu_seqlens: *const i32,
    /// `[T]`, or null.
    pub mask: *const u8,
    /// For attention sources.
    pub attention: Option<Attention>,
    /// `[T]`, for `external`.
    pub external: *const f32,
    /// `[T]`, for `token-frequency`.
    pub token_ids: *const i32,
    /// `[vocabulary]`, for `token-frequency`.
    pub token_frequency: *const f32,
    /// Entries of that table.
    pub vocabulary: usize,
    /// `[T, C]`, for `router-entropy`.
    pub logits: *const f32,
    /// Distance between its rows.
    pub logits_stride: usize,
    /// C.
    pub candidates: usize,
    /// E.
    pub experts: usize,
    /// See [`abi::StateIndex`].
    pub state: *mut f32,
    /// Whether running statistics move.
    pub training: bool,
    /// Out: `[T]`.
    pub importance: *mut f32,
}

/// Workspace: one value a head and token, a log-sum-exp each where it may have to be computed, one a token, and the sum
/// of a mix.
struct Scratch {
    values: *mut f32,
    lse: *mut f32,
    part: *mut f32,
    sum: *mut f32,
}

fn scratch(tensors: &Tensors, base: u64) -> (Scratch, usize) {
    let heads = tensors.attention.as_ref().map_or(1, Attention::heads);
    let lacking = if tensors.attention.as_ref().is_some_and(Attention::lacks_lse) { heads } else { 0 };
    carve(tensors.tokens, heads, lacking, base)
}

fn carve(tokens: usize, heads: usize, lacking: usize, base: u64) -> (Scratch, usize) {
    let mut carver = Carver::new(base);
    carver.end_header();
    let scratch = Scratch {
        values: carver.take(tokens.saturating_mul(heads)),
        lse: carver.take(tokens.saturating_mul(lacking)),
        part: carver.take(tokens),
        sum: carver.take(tokens),
    };
    (scratch, carver.used())
}

/// How large the workspace must be.
pub fn workspace(_: Target, tensors: &Tensors) -> Workspace {
    Workspace { zeroed: 0, bytes: scratch(tensors, 0).1 }
}

/// The largest that any call needs which reads so many heads of attention: one that has to compute their log-sum-exp.
pub fn largest_workspace(_: Target, tokens: usize, heads: usize) -> Workspace {
    Workspace { zeroed: 0, bytes: carve(tokens, heads.max(1), heads, 0).1 }
}

/// Where a part's values go: `out = weight · value`, or added to it.
#[derive(Clone, Copy)]
struct Destination {
    out: *mut f32,
    weight: f32,
    accumulate: i32,
}

/// Hands the launches in order to `run`, with a workspace at `base`. Two for most configurations: measure, then reduce
/// heads and normalise; one for a source that is a vector, one more for a rule that looks at a whole sequence, and one
/// more for a log-sum-exp that the caller does not have.
///
/// # Errors
/// [`Error::Missing`] for a source without its input, and whatever `run` returns.
pub fn calls(
    target: Target,
    config: &ImportanceConfig,
    tensors: &Tensors,
    base: u64,
    mut run: impl FnMut(Call) -> Result<()>,
) -> Result<()> {
    if tensors.tokens == 0 {
        return Ok(());
    }
    let (scratch, _) = scratch(tensors, base);
    let plan = Plan { target, tensors, scratch, causal: config.causal };
    let whole = Destination { out: tensors.importance, weight: 1.0, accumulate: 0 };
    match &config.source {
        Source::Mix(parts) => {
            for (index, part) in parts.iter().enumerate() {
                let to =
                    Destination { out: plan.scratch.sum, weight: part.weight as f32, accumulate: i32::from(index > 0) };
                plan.measured(&part.source, &part.normalize, to, &mut run)?;
            }
            let sum = Values { values: plan.scratch.sum, ..Values::default() };
            plan.normalized(sum, &config.normalize, whole, &mut run)
        }
        source => plan.measured(source, &config.normalize, whole, &mut run),
    }
}

struct Plan<'a> {
    target: Target,
    tensors: &'a Tensors,
    scratch: Scratch,
    causal: bool,
}

/// What a measure left: one value a head and token, or a table and the ids to look up.
#[derive(Clone, Copy)]
struct Values {
    values: *const f32,
    ids: *const i32,
    heads: usize,
    heads_max: bool,
}

impl Default for Values {
    fn default() -> Self {
        Self { values: std::ptr::null(), ids: std::ptr::null(), heads: 1, heads_max: false }
    }
}

impl Plan<'_> {
    fn measured(
        &self,
        source: &Source,
        rule: &Normalize,
        to: Destination,
        run: &mut impl FnMut(Call) -> Result<()>,
    ) -> Result<()> {
        let values = self.measure(source, run)?;
        self.normalized(values, rule, to, run)
    }

    /// Launches what a source needs before its values can be reduced.
    fn measure(&self, source: &Source, run: &mut impl FnMut(Call) -> Result<()>) -> Result<Values> {
        let t = self.tensors;
        let scratch = Values { values: self.scratch.values, ..Values::default() };
        match source {
            Source::Attention { measure, heads, scale } => {
                let Some(attention) = &t.attention else {
                    let why = format!("the importance source is `{}`", source.name());
                    return Err(Error::Missing { op: "importance", argument: "q and k, or attn_probs", why });
                };
                let reading = Reading {
                    target: self.target,
                    tokens: t.tokens,
                    sequences: t.sequences,
                    cu_seqlens: t.cu_seqlens,
                    mask: t.mask,
                    causal: self.causal,
                    values: self.scratch.values,
                    lse: self.scratch.lse,
                };
                reading.calls(attention, *measure, *scale, run)?;
                Ok(Values { heads: attention.heads(), heads_max: *heads == Heads::Max, ..scratch })
            }
            Source::External => Ok(Values { values: t.external, ..Values::default() }),
            Source::TokenFrequency => Ok(Values { values: t.token_frequency, ids: t.token_ids, ..Values::default() }),
            Source::RouterEntropy => {
                let p = abi::ImportanceRouterEntropy {
                    logits: t.logits,
                    logits_stride: t.logits_stride as i64,
                    values: self.scratch.values,
                    tokens: t.tokens as i32,
                    candidates: t.candidates as i32,
                    scale: if t.experts > 1 { 1.0 / (t.experts as f32).ln() } else { 0.0 },
                    ..Default::default()
                };
                let blocks = t.tokens.div_ceil(WARPS) as u32;
                run(Call::new(Launch::linear("importance_router_entropy", blocks, THREADS as u32), p))?;
                Ok(scratch)
            }
            Source::Mix(_) => {
                let problem = "a mix cannot contain a mix".into();
                Err(Error::Config { field: "importance.parts".into(), problem })
            }
        }
    }

    /// Reduces heads and applies a rule: in one launch where it looks at one token, in two where at a sequence.
    fn normalized(
        &self,
        values: Values,
        rule: &Normalize,
        to: Destination,
        run: &mut impl FnMut(Call) -> Result<()>,
    ) -> Result<()> {
        let (of_token, a, b) = match rule {
            Normalize::None => (abi::RULE_NONE, 0.0, 0.0),
            Normalize::Affine { a, b } => (abi::RULE_AFFINE, *a as f32, *b as f32),
            _ => return self.normalized_by_sequence(values, rule, to, run),
        };
        run(self.reduce(values, of_token, [a, b], to))
    }

    fn normalized_by_sequence(
        &self,
        values: Values,
        rule: &Normalize,
        to: Destination,
        run: &mut impl FnMut(Call) -> Result<()>,
    ) -> Result<()> {
        let t = self.tensors;
        let part = self.scratch.part;
        run(self.reduce(values, abi::RULE_NONE, [0.0; 2], Destination { out: part, weight: 1.0, accumulate: 0 }))?;
        if let Normalize::Running { momentum } = rule {
            let p = abi::ImportanceRunning {
                values: part,
                mask: t.mask,
                state: t.state,
                out: to.out,
                tokens: t.tokens as i32,
                momentum: *momentum as f32,
                training: i32::from(t.training),
                ..Default::default()
            };
            return run(Call::new(Launch::linear("importance_running", 1, SEQUENCE_THREADS), p));
        }
        let p = abi::ImportanceNormalize {
            values: part,
            cu_seqlens: t.cu_seqlens,
            mask: t.mask,
            out: to.out,
            tokens: t.tokens as i32,
            sequences: t.sequences as i32,
            rule: if matches!(rule, Normalize::Max) { abi::RULE_MAX } else { abi::RULE_MIN_MAX },
            weight: to.weight,
            accumulate: to.accumulate,
            ..Default::default()
        };
        let launch = match rule {
            Normalize::Rank => Launch::linear("importance_rank", t.tokens.div_ceil(RANKED) as u32, THREADS as u32),
            _ => Launch::linear("importance_normalize", t.sequences as u32, SEQUENCE_THREADS),
        };
        run(Call::new(launch, p))
    }

    fn reduce(&self, values: Values, rule: i32, [a, b]: [f32; 2], to: Destination) -> Call {
        let t = self.tensors;
        let p = abi::ImportanceReduce {
            values: values.values,
            ids: values.ids,
            mask: t.mask,
            out: to.out,
            tokens: t.tokens as i32,
            heads: values.heads as i32,
            heads_max: i32::from(values.heads_max),
            vocabulary: t.vocabulary as i32,
            rule,
            a,
            b,
            weight: to.weight,
            accumulate: to.accumulate,
            ..Default::default()
        };
        Call::new(Launch::linear("importance_reduce", t.tokens.div_ceil(THREADS) as u32, THREADS as u32), p)
    }
}

impl Parameters for abi::ImportanceRouterEntropy {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        Work::moved(4.0 * f64::from(self.tokens) * (f64::from(self.candidates) + 1.0), launch.blocks())
    }
}

impl Parameters for abi::ImportanceReduce {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        Work::moved(4.0 * f64::from(self.tokens) * (f64::from(self.heads) + 1.0), launch.blocks())
    }
}

impl Parameters for abi::ImportanceNormalize {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        Work::moved(8.0 * f64::from(self.tokens), launch.blocks())
    }
}

impl Parameters for abi::ImportanceRunning {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        Work::moved(8.0 * f64::from(self.tokens), launch.blocks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::launch::attention::Probabilities;
    use crate::{AttentionSource, DType, ImportancePart};
    use std::ptr::{null, null_mut};

    fn tensors(side: i32) -> Tensors {
        let stride = i64::from(side);
        let matrix = abi::ImportanceProbabilities {
            sequence_stride: 4 * stride * stride,
            head_stride: stride * stride,
            row_stride: stride,
            side,
            ..Default::default()
        };
        Tensors {
            tokens: 600,
            sequences: 3,
            cu_seqlens: null(),
            mask: null(),
            attention: Some(Attention::Probabilities(Probabilities { dtype: DType::Bf16, heads: 4, matrix })),
            external: null(),
            token_ids: null(),
            token_frequency: null(),
            vocabulary: 0,
            logits: null(),
            logits_stride: 8,
            candidates: 8,
            experts: 8,
            state: null_mut(),
            training: false,
            importance: null_mut(),
        }
    }

    fn launches(source: Source, normalize: Normalize, side: i32) -> Vec<(&'static str, [u32; 3])> {
        let config = ImportanceConfig { source, normalize, causal: false, allow_future: true };
        let mut found = Vec::new();
        calls(Target::H100, &config, &tensors(side), 0, |call| {
            found.push((call.launch.kernel, call.launch.grid));
            Ok(())
        })
        .unwrap();
        found
    }

    fn attention(measure: AttentionSource) -> Source {
        Source::Attention { measure, heads: Heads::Mean, scale: None }
    }

    #[test]
    fn attention_takes_two_launches_and_a_rule_over_sequences_a_third() {
        let received = ("importance_received_bf16_wide", [6, 4, 1]);
        let reduce = ("importance_reduce", [3, 1, 1]);
        assert_eq!(launches(attention(AttentionSource::ReceivedMax), Normalize::None, 512), [received, reduce]);
        let ranked = launches(attention(AttentionSource::ReceivedMax), Normalize::Rank, 512);
        assert_eq!(ranked, [received, reduce, ("importance_rank", [10, 1, 1])]);
        let odd = launches(attention(AttentionSource::GivenPeak), Normalize::Max, 511);
        assert_eq!(odd, [("importance_given_bf16", [192, 4, 1]), reduce, ("importance_normalize", [3, 1, 1])]);
    }

    #[test]
    fn a_vector_takes_one_launch() {
        let affine = Normalize::Affine { a: 1.0, b: 0.0 };
        assert_eq!(launches(Source::External, affine, 8), [("importance_reduce", [3, 1, 1])]);
        assert_eq!(launches(Source::TokenFrequency, Normalize::None, 8).len(), 1);
    }

    #[test]
    fn a_mix_is_added_part_by_part() {
        let part = |source| ImportancePart { weight: 0.5, source, normalize: Normalize::Max };
        let mix = Source::Mix(vec![part(Source::External), part(Source::RouterEntropy)]);
        let kernels: Vec<_> = launches(mix, Normalize::None, 8).into_iter().map(|(kernel, _)| kernel).collect();
        let normalized = ["importance_reduce", "importance_normalize"];
        let expected =
            [&normalized[..], &["importance_router_entropy"], &normalized[..], &["importance_reduce"]].concat();
        assert_eq!(kernels, expected);
    }

    #[test]
    fn no_tokens_need_no_launch() {
        let config = ImportanceConfig {
            source: Source::External,
            normalize: Normalize::None,
            causal: false,
            allow_future: false,
        };
        calls(Target::H100, &config, &Tensors { tokens: 0, ..tensors(8) }, 0, |_| panic!("launched")).unwrap();
    }
}
