//! What a caller hands to a layer call, and the checks that happen before anything is written (SPEC §7).

use crate::{Attention, DType, Error, LayerConfig, Policy, Result, Routing, Sizes, Slice, Source, TensorRef};

/// What looks at the memory of tensors, by name, and may refuse it.
pub(crate) type See<'s> = &'s mut dyn FnMut(&'static str, Slice<'_>) -> Result<()>;

const STORAGE: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// Activations and everything that decides how many experts a token gets.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// `[T, D]` storage; rows may be strided.
    pub x: TensorRef<'a, 2>,
    /// `[B + 1]` i32: first token of each sequence, ending at `T`; absent: one sequence.
    pub cu_seqlens: Option<TensorRef<'a, 1>>,
    /// `[T]` u8, as HuggingFace's `attention_mask`: 1 for a token, 0 for padding.
    pub mask: Option<TensorRef<'a, 1>>,
    /// For attention sources.
    pub attention: Option<Attention<'a>>,
    /// `[T]` f32, for the source `external`.
    pub importance: Option<TensorRef<'a, 1>>,
    /// `[T]` i32, for the source `token-frequency`.
    pub token_ids: Option<TensorRef<'a, 1>>,
    /// `[V]` f32, for the source `token-frequency`.
    pub token_frequency: Option<TensorRef<'a, 1>>,
    /// `[T]` i32, for the policy `given`.
    pub k_given: Option<TensorRef<'a, 1>>,
    /// A finished routing: importance, router and gate are then skipped.
    pub routing: Option<Routing<'a>>,
    /// Whether statistics carried between steps move.
    pub training: bool,
}

impl<'a> Inputs<'a> {
    /// Just the activations; the rest is set by field.
    pub fn new(x: TensorRef<'a, 2>) -> Self {
        Self {
            x,
            cu_seqlens: None,
            mask: None,
            attention: None,
            importance: None,
            token_ids: None,
            token_frequency: None,
            k_given: None,
            routing: None,
            training: false,
        }
    }

    /// With the attention that importance is read off.
    pub fn with_attention(self, attention: Attention<'a>) -> Self {
        Self { attention: Some(attention), ..self }
    }

    /// With importance from the caller.
    pub fn with_importance(self, importance: TensorRef<'a, 1>) -> Self {
        Self { importance: Some(importance), ..self }
    }

    /// Checks shapes and types against `config`; contents are the backend's to check.
    ///
    /// # Errors
    /// The first input that does not fit, by name.
    pub(crate) fn check(&self, op: &'static str, config: &LayerConfig) -> Result<Sizes> {
        let [tokens, _] = self.x.shape();
        let sizes = Sizes::new(config, tokens)?;
        self.x.expect_shape(op, "x", [tokens, config.hidden_size])?;
        self.x.expect_dtype(op, "x", &STORAGE)?;
        if let Some(cu_seqlens) = &self.cu_seqlens {
            cu_seqlens.expect_dtype(op, "cu_seqlens", &[DType::I32])?;
            if cu_seqlens.shape()[0] == 0 {
                return Err(Error::Shape { op, argument: "cu_seqlens", expected: vec![1], found: vec![0] });
            }
        }
        vector(op, "mask", self.mask, tokens, DType::U8)?;
        match &self.routing {
            Some(routing) => routing.check(op, sizes.tokens, sizes.k_max)?,
            None => self.check_sources(op, config, tokens)?,
        }
        Ok(sizes)
    }

    /// Shows every tensor that is there, by name.
    pub(crate) fn visit(&self, see: See<'_>) -> Result<()> {
        see("x", self.x.data())?;
        let vectors = [
            ("cu_seqlens", self.cu_seqlens),
            ("mask", self.mask),
            ("importance", self.importance),
            ("token_ids", self.token_ids),
            ("token_frequency", self.token_frequency),
            ("k_given", self.k_given),
        ];
        vectors.into_iter().try_for_each(|(name, vector)| vector.map_or(Ok(()), |vector| see(name, vector.data())))?;
        match &self.attention {
            Some(Attention::QueryKey { q, k, lse }) => {
                see("q", q.data())?;
                see("k", k.data())?;
                lse.map_or(Ok(()), |lse| see("lse", lse.data()))?;
            }
            Some(Attention::Probabilities(p)) => see("attn_probs", p.data())?,
            None => {}
        }
        match &self.routing {
            Some(Routing::Padded { experts, weights }) => {
                see("routing.experts", experts.data())?;
                see("routing.weights", weights.data())
            }
            Some(Routing::Csr { offsets, experts, weights }) => {
                see("routing.offsets", offsets.data())?;
                see("routing.experts", experts.data())?;
                see("routing.weights", weights.data())
            }
            None => Ok(()),
        }
    }

    fn check_sources(&self, op: &'static str, config: &LayerConfig, tokens: usize) -> Result<()> {
        let source = &config.importance.source;
        vector(op, "importance", self.importance, tokens, DType::F32)?;
        vector(op, "token_ids", self.token_ids, tokens, DType::I32)?;
        vector(op, "k_given", self.k_given, tokens, DType::I32)?;
        if let Some(table) = &self.token_frequency {
            table.expect_dtype(op, "token_frequency", &[DType::F32])?;
        }
        match self.missing(source) {
            Some(argument) if config.experts_per_token.policy.uses_importance() => {
                let why = format!("the importance source is `{}`", source.name());
                return Err(Error::Missing { op, argument, why });
            }
            _ => {}
        }
        if let Some(attention) = &self.attention
            && source.any(&|s| matches!(s, Source::Attention { .. }))
        {
            attention.check(op, tokens, self.cu_seqlens.map_or(1, |bounds| bounds.shape()[0] - 1))?;
        }
        if config.experts_per_token.policy == Policy::Given && self.k_given.is_none() {
            let why = "the policy is `given`".into();
            return Err(Error::Missing { op, argument: "k_given", why });
        }
        Ok(())
    }

    /// The first input that measuring `source` lacks. Where the policy asks for no importance this is no error:
    /// importance is then 0.
    pub(crate) fn missing(&self, source: &Source) -> Option<&'static str> {
        let needs = |predicate: &dyn Fn(&Source) -> bool| source.any(predicate);
        let frequency = needs(&|s| matches!(s, Source::TokenFrequency));
        let lacking = [
            ("q and k, or attn_probs", needs(&|s| matches!(s, Source::Attention { .. })) && self.attention.is_none()),
            ("importance", needs(&|s| matches!(s, Source::External)) && self.importance.is_none()),
            ("token_ids", frequency && self.token_ids.is_none()),
            ("token_frequency", frequency && self.token_frequency.is_none()),
        ];
        lacking.into_iter().find(|(_, lacks)| *lacks).map(|(argument, _)| argument)
    }
}

fn vector(
    op: &'static str,
    argument: &'static str,
    tensor: Option<TensorRef<'_, 1>>,
    tokens: usize,
    dtype: DType,
) -> Result<()> {
    match tensor {
        None => Ok(()),
        Some(tensor) => {
            tensor.expect_shape(op, argument, [tokens])?;
            tensor.expect_dtype(op, argument, &[dtype])
        }
    }
}
