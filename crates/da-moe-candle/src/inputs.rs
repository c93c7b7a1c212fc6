//! What a call is given: candle's tensors, with the dimensions that models have.

use crate::integers;
use candle_core::{Result, Tensor, bail};

/// Activations, and what decides how many experts a token gets.
///
/// Activations are `[B, S, D]`, `B` sequences of `S` tokens, or `[T, D]`: one sequence, or several with
/// [`Inputs::with_lengths`]. What there is one of for each token has the same leading dimensions. Only activations carry a
/// gradient: numbers of experts are discrete (SPEC §1).
#[derive(Clone, Debug)]
pub struct Inputs {
    x: Tensor,
    lengths: Option<Vec<usize>>,
    rest: Rest,
}

/// Everything but activations and lengths.
#[derive(Clone, Debug, Default)]
struct Rest {
    mask: Option<Tensor>,
    query_key: Option<[Tensor; 2]>,
    lse: Option<Tensor>,
    probabilities: Option<Tensor>,
    importance: Option<Tensor>,
    token_ids: Option<Tensor>,
    token_frequency: Option<Tensor>,
    k_given: Option<Tensor>,
}

impl Inputs {
    /// Just the activations, f32, bf16 or f16.
    pub fn new(x: &Tensor) -> Self {
        Self { x: x.clone(), lengths: None, rest: Rest::default() }
    }

    /// Tokens of each sequence, where activations are `[T, D]`.
    pub fn with_lengths(self, lengths: &[usize]) -> Self {
        Self { lengths: Some(lengths.to_vec()), ..self }
    }

    /// `[B, S]` or `[T]`: 1 a token, 0 padding, and nothing else. U8, or any integers: those are copied.
    pub fn with_mask(mut self, mask: &Tensor) -> Self {
        self.rest.mask = Some(mask.detach());
        self
    }

    /// Queries `[B, S, H, dh]` and keys `[B, S, Hk, dh]`, or `[T, ..]`: importance is read off their attention.
    pub fn with_query_key(mut self, queries: &Tensor, keys: &Tensor) -> Self {
        self.rest.query_key = Some([queries.detach(), keys.detach()]);
        self
    }

    /// The log-sum-exp of that attention, f32 `[H, T]`; computed when absent.
    pub fn with_lse(mut self, lse: &Tensor) -> Self {
        self.rest.lse = Some(lse.detach());
        self
    }

    /// Attention's probabilities `[B, H, S, S]`, in place of queries and keys.
    pub fn with_probabilities(mut self, probabilities: &Tensor) -> Self {
        self.rest.probabilities = Some(probabilities.detach());
        self
    }

    /// Importance from outside, f32 `[B, S]` or `[T]`.
    pub fn with_importance(mut self, importance: &Tensor) -> Self {
        self.rest.importance = Some(importance.detach());
        self
    }

    /// Tokens' ids, U32, I64 or I32 `[B, S]` or `[T]` (I32 are read where they are), and the frequency of each id, f32 `[V]`.
    pub fn with_token_frequency(mut self, ids: &Tensor, frequency: &Tensor) -> Self {
        self.rest.token_ids = Some(ids.detach());
        self.rest.token_frequency = Some(frequency.detach());
        self
    }

    /// Experts of each token, U32, I64 or I32 `[B, S]` or `[T]` (I32 are read where they are), for the policy `given`.
    pub fn with_k(mut self, k: &Tensor) -> Self {
        self.rest.k_given = Some(k.detach());
        self
    }

    /// Activations as they were given.
    pub(crate) fn x(&self) -> &Tensor {
        &self.x
    }

    /// The same with all tokens in one dimension.
    pub(crate) fn flat(&self) -> Result<Flat<Tensor>> {
        let (leading, lengths) = match (self.x.dims(), &self.lengths) {
            (&[batch, length, _], None) => (2, vec![length; batch]),
            (&[tokens, _], lengths) => (1, lengths.clone().unwrap_or_else(|| vec![tokens])),
            (dims, Some(_)) => bail!("`x` has shape {dims:?}; with lengths it is [T, D]"),
            (dims, None) => bail!("`x` has shape {dims:?}; it is [B, S, D] or [T, D]"),
        };
        let merge = Merge { leading: &self.x.dims()[..leading] };
        let x = merge.whole("x", &self.x)?;
        let Rest { mask, query_key, lse, probabilities, importance, token_ids, token_frequency, k_given } = &self.rest;
        if query_key.is_some() && probabilities.is_some() {
            bail!("importance is read off `q` and `k` or off `attn_probs`, and both were given");
        }
        let query_key = match query_key {
            Some([q, k]) => Some([merge.whole("q", q)?, merge.whole("k", k)?]),
            None => None,
        };
        let contiguous = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::contiguous).transpose();
        Ok(Flat {
            cu_seqlens: starts(&lengths, &x)?,
            mask: merge.optional("mask", mask)?.map(|mask| integers::mask(&mask)).transpose()?,
            query_key,
            lse: contiguous(lse)?,
            probabilities: contiguous(probabilities)?,
            importance: merge.optional("importance", importance)?,
            token_ids: merge.integers("token_ids", token_ids)?,
            token_frequency: contiguous(token_frequency)?,
            k_given: merge.integers("k_given", k_given)?,
            x,
        })
    }
}

/// What a call is given, with all tokens in one dimension and rows one after another: one `T` for each tensor.
pub(crate) struct Flat<T> {
    pub x: T,
    pub cu_seqlens: T,
    pub mask: Option<T>,
    pub query_key: Option<[T; 2]>,
    pub lse: Option<T>,
    pub probabilities: Option<T>,
    pub importance: Option<T>,
    pub token_ids: Option<T>,
    pub token_frequency: Option<T>,
    pub k_given: Option<T>,
}

impl<T> Flat<T> {
    /// The same of what `map` makes of each tensor and the name that the library has for it.
    pub fn try_map<'t, U>(&'t self, map: impl Fn(&'static str, &'t T) -> Result<U>) -> Result<Flat<U>> {
        let optional = |name, tensor: &'t Option<T>| tensor.as_ref().map(|tensor| map(name, tensor)).transpose();
        Ok(Flat {
            x: map("x", &self.x)?,
            cu_seqlens: map("cu_seqlens", &self.cu_seqlens)?,
            mask: optional("mask", &self.mask)?,
            query_key: match &self.query_key {
                Some([q, k]) => Some([map("q", q)?, map("k", k)?]),
                None => None,
            },
            lse: optional("lse", &self.lse)?,
            probabilities: optional("attn_probs", &self.probabilities)?,
            importance: optional("importance", &self.importance)?,
            token_ids: optional("token_ids", &self.token_ids)?,
            token_frequency: optional("token_frequency", &self.token_frequency)?,
            k_given: optional("k_given", &self.k_given)?,
        })
    }
}

impl Flat<Tensor> {
    /// The same outside of the graph that `x` is part of.
    pub fn detach(self) -> Self {
        Self { x: self.x.detach(), ..self }
    }
}

/// Makes one dimension of the leading ones.
struct Merge<'a> {
    leading: &'a [usize],
}

impl Merge<'_> {
    fn whole(&self, name: &str, tensor: &Tensor) -> Result<Tensor> {
        let Some(rest) = tensor.dims().strip_prefix(self.leading) else {
            bail!("`{name}` has shape {:?}, which does not begin with x's {:?}", tensor.dims(), self.leading);
        };
        let tokens = self.leading.iter().product();
        // Where rows already lie one after another, neither of the two copies.
        tensor.contiguous()?.reshape([&[tokens], rest].concat())
    }

    fn optional(&self, name: &str, tensor: &Option<Tensor>) -> Result<Option<Tensor>> {
        tensor.as_ref().map(|tensor| self.whole(name, tensor)).transpose()
    }

    /// As I32.
    fn integers(&self, name: &str, tensor: &Option<Tensor>) -> Result<Option<Tensor>> {
        self.optional(name, tensor)?.map(|tensor| integers::narrow(name, &tensor)).transpose()
    }
}

/// Where each sequence starts, and the end: I32 `[B + 1]`, beside `x[T, D]`.
fn starts(lengths: &[usize], x: &Tensor) -> Result<Tensor> {
    let tokens = x.dim(0)?;
    let total = lengths.iter().try_fold(0usize, |sum, &length| sum.checked_add(length));
    if total != Some(tokens) {
        bail!("the sequences' lengths are {lengths:?}, but `x` has {tokens} tokens");
    }
    if i32::try_from(tokens).is_err() {
        bail!("`x` has {tokens} tokens, more than i32 counts to");
    }
    let mut starts = vec![0i32];
    starts.extend(lengths.iter().scan(0, |sum, &length| {
        *sum += length as i32;
        Some(*sum)
    }));
    Tensor::from_vec(starts, lengths.len() + 1, x.device())
}
