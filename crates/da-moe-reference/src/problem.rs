//! One call of the layer (SPEC, preamble): configuration, inputs and weights, widened to f64.

use da_moe_core::{Error, LayerConfig, NullExpert, Policy, Result, Source};

/// Everything that one call depends on. [`Problem::check`] says whether the lengths fit each other; the stages rely on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Sizes and choices.
    pub config: LayerConfig,
    /// `T`.
    pub tokens: usize,
    /// `[T, D]`.
    pub x: Vec<f64>,
    /// `[B + 1]`: first token of each sequence, ending at `T`.
    pub cu_seqlens: Vec<usize>,
    /// `[T]`: whether the position is a token (and not padding).
    pub mask: Vec<bool>,
    /// For attention sources.
    pub attention: Option<Attention>,
    /// `[T]`, for the source `external`.
    pub importance: Option<Vec<f64>>,
    /// `[T]`, for the source `token-frequency`.
    pub token_ids: Option<Vec<i64>>,
    /// `[V]`, for the source `token-frequency`.
    pub token_frequency: Option<Vec<f64>>,
    /// `[T]`, for the policy `given`.
    pub k_given: Option<Vec<i64>>,
    /// A routing from outside: per token (expert, weight) in the caller's order; an id of `E + Z` or more is "none".
    pub routing: Option<Vec<Vec<(usize, f64)>>>,
    /// Whether the state moves.
    pub training: bool,
    /// As it was before the call: minimum, maximum, price `λ` (0 while fresh), training steps seen.
    pub state: [f64; 4],
    /// `W_r[E + Z, D]`.
    pub router: Vec<f64>,
    /// `b[E + Z]`, for selection only.
    pub router_bias: Option<Vec<f64>>,
    /// The routed experts.
    pub experts: Experts,
    /// The shared expert: one expert of its own width.
    pub shared: Option<Experts>,
    /// `[Z, D]`, for null experts of kind `constant`.
    pub constants: Option<Vec<f64>>,
}

/// What attention importance is read off (SPEC §1).
#[derive(Clone, Debug, PartialEq)]
pub enum Attention {
    /// Queries and keys.
    QueryKey {
        /// `[T, H, dh]`.
        q: Vec<f64>,
        /// `[T, Hk, dh]`.
        k: Vec<f64>,
        /// `[H, T]`; computed when absent.
        lse: Option<Vec<f64>>,
        /// `H`.
        heads: usize,
        /// `Hk`.
        key_heads: usize,
        /// `dh`.
        width: usize,
    },
    /// The finished probabilities.
    Probabilities {
        /// `[B, H, S, S]`, rows are queries.
        p: Vec<f64>,
        /// `H`.
        heads: usize,
        /// `S`.
        side: usize,
    },
}

/// The matrices of `count` experts, or their gradients (SPEC §5).
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// `[count, F or 2F, D]`, gate rows first when gated.
    pub w_in: Vec<f64>,
    /// `[count, D, F]`.
    pub w_out: Vec<f64>,
    /// `[count, F or 2F]`.
    pub b_in: Option<Vec<f64>>,
    /// `[count, D]`.
    pub b_out: Option<Vec<f64>>,
    /// Number of experts.
    pub count: usize,
    /// `F`.
    pub width: usize,
}

impl Experts {
    /// Zeros of the same shape: where gradients are summed.
    pub fn zeros_like(&self) -> Self {
        let zeros = |of: &Vec<f64>| vec![0.0; of.len()];
        Self {
            w_in: zeros(&self.w_in),
            w_out: zeros(&self.w_out),
            b_in: self.b_in.as_ref().map(zeros),
            b_out: self.b_out.as_ref().map(zeros),
            ..*self
        }
    }

    fn check(&self, name: [&'static str; 4], rows_in: usize, hidden: usize) -> Result<()> {
        let Self { count, width, .. } = *self;
        length(name[0], Some(&self.w_in), count * rows_in * hidden)?;
        length(name[1], Some(&self.w_out), count * hidden * width)?;
        length(name[2], self.b_in.as_ref(), count * rows_in)?;
        length(name[3], self.b_out.as_ref(), count * hidden)
    }
}

impl Problem {
    /// The row of token `t` in `x`.
    pub fn x_row(&self, t: usize) -> &[f64] {
        row(&self.x, t, self.config.hidden_size)
    }

    /// How many tokens are not masked.
    pub fn unmasked(&self) -> usize {
        self.unmasked_tokens().count()
    }

    /// The tokens that are not masked, in order: the rows of the shared expert.
    pub fn unmasked_tokens(&self) -> impl Iterator<Item = usize> + '_ {
        self.mask.iter().enumerate().filter(|(_, token)| **token).map(|(t, _)| t)
    }

    /// First token and one past the last token of each sequence.
    pub fn sequences(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.cu_seqlens.windows(2).map(|pair| (pair[0], pair[1]))
    }

    /// Whether all lengths fit the configuration and each other, and what the configuration needs is there.
    ///
    /// # Errors
    /// The configuration's own error, or the first field that does not fit, by name.
    pub fn check(&self) -> Result<()> {
        let config = &self.config;
        config.validate()?;
        let (t, d, candidates) = (self.tokens, config.hidden_size, config.candidates());
        length("x", Some(&self.x), t * d)?;
        length("mask", Some(&self.mask), t)?;
        let ends = (self.cu_seqlens.first(), self.cu_seqlens.last());
        if ends != (Some(&0), Some(&t)) || self.cu_seqlens.windows(2).any(|pair| pair[0] > pair[1]) {
            return refuse("cu_seqlens", format!("{:?} do not ascend from 0 to {t}", self.cu_seqlens));
        }
        length("importance", self.importance.as_ref(), t)?;
        length("token_ids", self.token_ids.as_ref(), t)?;
        length("k_given", self.k_given.as_ref(), t)?;
        length("routing", self.routing.as_ref(), t)?;
        length("router", Some(&self.router), candidates * d)?;
        length("router_bias", self.router_bias.as_ref(), candidates)?;
        length("constants", self.constants.as_ref(), config.num_null_experts * d)?;
        let expected = [config.num_experts, config.moe_intermediate_size];
        if [self.experts.count, self.experts.width] != expected {
            let found = vec![self.experts.count, self.experts.width];
            return Err(Error::Shape { op: OP, argument: "experts", expected: expected.to_vec(), found });
        }
        let names = ["experts.w_in", "experts.w_out", "experts.b_in", "experts.b_out"];
        self.experts.check(names, config.rows_in(), d)?;
        if let Some(shared) = &self.shared {
            let expected = [1, config.shared_intermediate_size];
            if [shared.count, shared.width] != expected {
                let found = vec![shared.count, shared.width];
                return Err(Error::Shape { op: OP, argument: "shared", expected: expected.to_vec(), found });
            }
            let names = ["shared.w_in", "shared.w_out", "shared.b_in", "shared.b_out"];
            shared.check(names, config.shared_rows_in(), d)?;
        }
        self.check_attention()?;
        self.check_presence()
    }

    fn check_attention(&self) -> Result<()> {
        match &self.attention {
            None => Ok(()),
            Some(Attention::QueryKey { q, k, lse, heads, key_heads, width }) => {
                if *key_heads == 0 || heads % key_heads != 0 {
                    return refuse("q", format!("{heads} query heads over {key_heads} key heads"));
                }
                length("q", Some(q), product(&[self.tokens, *heads, *width]))?;
                length("k", Some(k), product(&[self.tokens, *key_heads, *width]))?;
                length("lse", lse.as_ref(), product(&[*heads, self.tokens]))
            }
            Some(Attention::Probabilities { p, heads, side }) => {
                let sequences = self.cu_seqlens.len() - 1;
                length("attn_probs", Some(p), product(&[sequences, *heads, *side, *side]))?;
                match self.sequences().find(|(start, end)| end - start > *side) {
                    Some((start, end)) => refuse("attn_probs", format!("{} tokens on a side of {side}", end - start)),
                    None => Ok(()),
                }
            }
        }
    }

    /// The first input that the importance source lacks.
    pub(crate) fn missing_for_importance(&self) -> Option<&'static str> {
        let uses = |predicate: &dyn Fn(&Source) -> bool| self.config.importance.source.any(predicate);
        let frequency = uses(&|s| *s == Source::TokenFrequency);
        let needs = [
            ("q", uses(&|s| matches!(s, Source::Attention { .. })) && self.attention.is_none()),
            ("importance", uses(&|s| *s == Source::External) && self.importance.is_none()),
            ("token_ids", frequency && self.token_ids.is_none()),
            ("token_frequency", frequency && self.token_frequency.is_none()),
        ];
        needs.into_iter().find(|(_, missing)| *missing).map(|(argument, _)| argument)
    }

    fn check_presence(&self) -> Result<()> {
        let config = &self.config;
        let constant = config.null_expert == NullExpert::Constant && config.num_null_experts > 0;
        let gate = self.routing.is_none();
        let unmeasurable = self.missing_for_importance();
        let needs = [
            ("null.constants", constant && self.constants.is_none()),
            ("shared.w_in", config.shared_intermediate_size > 0 && self.shared.is_none()),
            (
                unmeasurable.unwrap_or_default(),
                gate && config.experts_per_token.policy.uses_importance() && unmeasurable.is_some(),
            ),
            ("k_given", gate && config.experts_per_token.policy == Policy::Given && self.k_given.is_none()),
        ];
        match needs.iter().find(|(_, missing)| *missing) {
            Some((argument, _)) => Err(Error::Missing { op: OP, argument, why: "the configuration needs it".into() }),
            None => Ok(()),
        }
    }
}

pub(crate) const OP: &str = "reference";

pub(crate) fn refuse<T>(argument: &'static str, problem: String) -> Result<T> {
    Err(Error::Value { op: OP, argument, problem })
}

/// Saturating, so that extents no memory can have are refused by [`length`] instead of overflowing.
fn product(extents: &[usize]) -> usize {
    if extents.contains(&0) { 0 } else { extents.iter().fold(1, |product, &extent| product.saturating_mul(extent)) }
}

fn length<T>(argument: &'static str, values: Option<&Vec<T>>, expected: usize) -> Result<()> {
    match values {
        Some(values) if values.len() != expected => {
            Err(Error::Shape { op: OP, argument, expected: vec![expected], found: vec![values.len()] })
        }
        _ => Ok(()),
    }
}

/// Row `index` of a row-major matrix with rows of `width`.
pub(crate) fn row(matrix: &[f64], index: usize, width: usize) -> &[f64] {
    &matrix[index * width..(index + 1) * width]
}

/// As [`row`], for writing.
pub(crate) fn row_mut(matrix: &mut [f64], index: usize, width: usize) -> &mut [f64] {
    &mut matrix[index * width..(index + 1) * width]
}

/// `Σ a_i b_i`.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `y += factor · x`.
pub(crate) fn add_scaled(y: &mut [f64], factor: f64, x: &[f64]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}
