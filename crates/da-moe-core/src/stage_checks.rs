//! Shapes of every stage's arguments against each other, for engines that call stages one by one: a backend refuses what
//! does not fit before it writes anything (SPEC §7). Types are checked where elements are read.

use crate::weights::check_loss_scale;
use crate::{
    Activation, Attention, CombineArgs, CombineBackwardArgs, DType, Error, ExpertGradients, ExpertWeights, ExpertsArgs,
    ExpertsBackwardArgs, GateArgs, GateBackwardArgs, ImportanceArgs, PermuteArgs, PermuteBackwardArgs, Policy, Result,
    RouterArgs, RoutingArgs, RoutingBackwardArgs, Rows, STATE_LEN, Selection, SelectionMut, SharedPermute, TensorMut,
    TensorRef, hidden_type,
};

/// Refuses a view that is given and has not this shape.
fn fits<const R: usize>(
    op: &'static str,
    argument: &'static str,
    view: Option<&TensorRef<'_, R>>,
    shape: [usize; R],
) -> Result<()> {
    view.map_or(Ok(()), |view| view.expect_shape(op, argument, shape))
}

/// Refuses a view with fewer rows than needed, or rows of another length.
fn has_rows(
    op: &'static str,
    argument: &'static str,
    [found, cols]: [usize; 2],
    rows: usize,
    width: usize,
) -> Result<()> {
    if found >= rows && cols == width {
        return Ok(());
    }
    Err(Error::Shape { op, argument, expected: vec![rows, width], found: vec![found, cols] })
}

/// Refuses rows of no elements.
fn not_empty(op: &'static str, argument: &'static str, [rows, cols]: [usize; 2]) -> Result<()> {
    if cols > 0 {
        return Ok(());
    }
    Err(Error::Shape { op, argument, expected: vec![rows, 1], found: vec![rows, 0] })
}

impl RouterArgs<'_> {
    /// Refuses views that do not fit each other.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument.
    pub fn check(&self) -> Result<()> {
        let op = "router";
        let ([tokens, width], [candidates, _]) = (self.x.shape(), self.weight.shape());
        not_empty(op, "x", [tokens, width])?;
        not_empty(op, "logits", [tokens, candidates])?;
        self.weight.expect_shape(op, "router.weight", [candidates, width])?;
        self.logits.expect_shape(op, "logits", [tokens, candidates])
    }
}

impl ImportanceArgs<'_> {
    /// Refuses views that do not fit each other.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument.
    pub fn check(&self) -> Result<()> {
        let op = "importance";
        let [tokens, _] = self.logits.shape();
        fits(op, "mask", self.mask.as_ref(), [tokens])?;
        fits(op, "importance", self.external.as_ref(), [tokens])?;
        fits(op, "token_ids", self.token_ids.as_ref(), [tokens])?;
        self.state.expect_shape(op, "state", [STATE_LEN])?;
        self.importance.expect_shape(op, "importance", [tokens])?;
        let sequences = match &self.cu_seqlens {
            None => 1,
            Some(bounds) => bounds.shape()[0].checked_sub(1).ok_or(Error::Shape {
                op,
                argument: "cu_seqlens",
                expected: vec![1],
                found: vec![0],
            })?,
        };
        self.attention.as_ref().map_or(Ok(()), |attention| attention.check(op, tokens, sequences))
    }
}

impl Attention<'_> {
    /// Checks shapes and types for `tokens` tokens in `sequences` sequences.
    pub(crate) fn check(&self, op: &'static str, tokens: usize, sequences: usize) -> Result<()> {
        const STORAGE: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];
        match self {
            Attention::QueryKey { q, k, lse } => {
                let ([_, heads, width], [_, key_heads, _]) = (q.shape(), k.shape());
                q.expect_shape(op, "q", [tokens, heads, width])?;
                k.expect_shape(op, "k", [tokens, key_heads, width])?;
                q.expect_dtype(op, "q", &STORAGE)?;
                k.expect_dtype(op, "k", &[q.dtype()])?;
                if heads == 0 || width == 0 || key_heads == 0 || heads % key_heads != 0 {
                    let problem = format!(
                        "{heads} query heads of width {width} over {key_heads} key heads; heads must be positive and a \
                         multiple of the key heads"
                    );
                    return Err(Error::Value { op, argument: "q", problem });
                }
                if let Some(lse) = lse {
                    lse.expect_shape(op, "lse", [heads, tokens])?;
                    lse.expect_dtype(op, "lse", &[DType::F32])?;
                }
                Ok(())
            }
            Attention::Probabilities(probabilities) => {
                let [_, heads, side, _] = probabilities.shape();
                probabilities.expect_shape(op, "attn_probs", [sequences, heads, side, side])?;
                probabilities.expect_dtype(op, "attn_probs", &STORAGE)?;
                if heads == 0 {
                    return Err(Error::Value { op, argument: "attn_probs", problem: "no heads".into() });
                }
                Ok(())
            }
        }
    }
}

impl Selection<'_> {
    fn check(&self, op: &'static str, tokens: usize) -> Result<()> {
        let [_, slots] = self.experts.shape();
        self.k.expect_shape(op, "selection.k", [tokens])?;
        self.experts.expect_shape(op, "selection.experts", [tokens, slots])?;
        self.weights.expect_shape(op, "selection.weights", [tokens, slots])?;
        self.ranked.expect_shape(op, "selection.ranked", [tokens, slots])
    }
}

impl SelectionMut<'_> {
    fn check(&self, op: &'static str, tokens: usize, slots: usize) -> Result<()> {
        self.k.expect_shape(op, "selection.k", [tokens])?;
        self.experts.expect_shape(op, "selection.experts", [tokens, slots])?;
        self.weights.expect_shape(op, "selection.weights", [tokens, slots])?;
        self.ranked.expect_shape(op, "selection.ranked", [tokens, slots])
    }
}

impl GateArgs<'_> {
    /// Refuses views that do not fit each other.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument, or the configuration's own error.
    pub fn check(&self) -> Result<()> {
        let op = "gate";
        self.config.validate()?;
        let ([tokens, _], candidates) = (self.logits.shape(), self.config.candidates());
        self.logits.expect_shape(op, "logits", [tokens, candidates])?;
        self.importance.expect_shape(op, "importance", [tokens])?;
        fits(op, "router.bias", self.bias.as_ref(), [candidates])?;
        fits(op, "mask", self.mask.as_ref(), [tokens])?;
        fits(op, "k_given", self.k_given.as_ref(), [tokens])?;
        if self.config.experts_per_token.policy == Policy::Given && self.k_given.is_none() {
            return Err(Error::Missing { op, argument: "k_given", why: "the policy is `given`".into() });
        }
        self.state.expect_shape(op, "state", [STATE_LEN])?;
        self.selection.check(op, tokens, self.config.k_max())?;
        self.load.expect_shape(op, "load", [candidates])?;
        self.unmasked.expect_shape(op, "unmasked", [1])?;
        self.losses.expect_shape(op, "losses", [2])
    }
}

impl RoutingArgs<'_> {
    /// Refuses views that do not fit each other.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument.
    pub fn check(&self) -> Result<()> {
        let op = "routing";
        let [tokens, slots] = self.selection.experts.shape();
        self.routing.check(op, tokens, slots)?;
        fits(op, "mask", self.mask.as_ref(), [tokens])?;
        self.selection.check(op, tokens, slots)?;
        self.load.expect_shape(op, "load", [self.candidates])?;
        self.unmasked.expect_shape(op, "unmasked", [1])?;
        self.losses.expect_shape(op, "losses", [2])
    }
}

impl PermuteArgs<'_> {
    /// Refuses views that do not fit each other.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument, the configuration's own error, or [`Error::Overflow`].
    pub fn check(&self) -> Result<()> {
        let op = "permute";
        self.config.validate()?;
        let ([tokens, slots], plan) = (self.selection.experts.shape(), &self.plan);
        let rows = crate::Sizes::new(self.config, tokens)?.rows;
        self.selection.check(op, tokens)?;
        self.selection.experts.expect_shape(op, "selection.experts", [tokens, self.config.k_max()])?;
        plan.counts.expect_shape(op, "plan.counts", [self.config.candidates()])?;
        plan.offsets.expect_shape(op, "plan.offsets", [self.config.num_experts + 1])?;
        plan.row_token.expect_shape(op, "plan.row_token", [rows])?;
        plan.row_weight.expect_shape(op, "plan.row_weight", [rows])?;
        plan.token_row.expect_shape(op, "plan.token_row", [tokens, slots])?;
        plan.dropped.expect_shape(op, "plan.dropped", [1])?;
        let Some(SharedPermute { mask, plan }) = &self.shared else { return Ok(()) };
        mask.expect_shape(op, "mask", [tokens])?;
        plan.offsets.expect_shape(op, "shared_plan.offsets", [2])?;
        plan.row_token.expect_shape(op, "shared_plan.row_token", [tokens])?;
        plan.token_row.expect_shape(op, "shared_plan.token_row", [tokens])
    }
}

impl ExpertWeights<'_> {
    /// `[E, rows of W_in, D, F]`, when the four agree.
    fn check(&self, op: &'static str, activation: Activation, hidden: usize) -> Result<[usize; 4]> {
        let ([experts, ..], [_, _, width]) = (self.w_in.shape(), self.w_out.shape());
        let rows_in = activation.rows_in(width);
        self.w_in.expect_shape(op, "w_in", [experts, rows_in, hidden])?;
        self.w_out.expect_shape(op, "w_out", [experts, hidden, width])?;
        fits(op, "b_in", self.b_in.as_ref(), [experts, rows_in])?;
        fits(op, "b_out", self.b_out.as_ref(), [experts, hidden])?;
        not_empty(op, "x", [0, hidden])?;
        not_empty(op, "w_out", [hidden, width])?;
        Ok([experts, rows_in, hidden, width])
    }
}

impl ExpertGradients<'_> {
    fn check(&self, op: &'static str, [experts, rows_in, hidden, width]: [usize; 4], storage: DType) -> Result<()> {
        let bias = |argument, view: Option<&TensorMut<'_, 2>>, shape| {
            view.map_or(Ok(()), |view| view.expect_shape(op, argument, shape))
        };
        self.w_in.expect_shape(op, "d.w_in", [experts, rows_in, hidden])?;
        self.w_out.expect_shape(op, "d.w_out", [experts, hidden, width])?;
        bias("d.b_in", self.b_in.as_ref(), [experts, rows_in])?;
        bias("d.b_out", self.b_out.as_ref(), [experts, hidden])?;
        self.w_in.expect_dtype(op, "d.w_in", &[storage, DType::F32])?;
        self.check_types(op, ["d.w_out", "d.b_in", "d.b_out"])
    }

    /// All are of the type of `w_in`.
    pub(crate) fn check_types(&self, op: &'static str, [w_out, b_in, b_out]: [&'static str; 3]) -> Result<()> {
        let one = [self.w_in.dtype()];
        self.w_out.expect_dtype(op, w_out, &one)?;
        self.b_in.as_ref().map_or(Ok(()), |bias| bias.expect_dtype(op, b_in, &one))?;
        self.b_out.as_ref().map_or(Ok(()), |bias| bias.expect_dtype(op, b_out, &one))
    }
}

impl Rows<'_> {
    /// Rows that there must at least be room for; how many a plan really has is in its offsets.
    fn least(&self, op: &'static str, experts: usize, tokens: usize) -> Result<usize> {
        match self {
            Rows::Routed { offsets, row_token, row_weight } => {
                offsets.expect_shape(op, "offsets", [experts + 1])?;
                fits(op, "row_weight", row_weight.as_ref(), row_token.shape())?;
                Ok(0)
            }
            Rows::All if experts == 1 => Ok(tokens),
            Rows::All => Err(Error::Value { op, argument: "rows", problem: format!("all rows for {experts} experts") }),
        }
    }
}

impl ExpertsArgs<'_> {
    /// Refuses views that do not fit each other.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument.
    pub fn check(&self) -> Result<()> {
        let op = "experts";
        let [tokens, hidden] = self.x.shape();
        let [experts, rows_in, ..] = self.weights.check(op, self.activation, hidden)?;
        let least = self.rows.least(op, experts, tokens)?;
        let room = self.out.shape()[0];
        has_rows(op, "out", self.out.shape(), least, hidden)?;
        let Some(kept) = &self.hidden else { return Ok(()) };
        kept.expect_dtype(op, "hidden", &[hidden_type(self.x.dtype())])?;
        has_rows(op, "hidden", kept.shape(), room, rows_in)
    }
}

impl CombineArgs<'_> {
    /// Refuses views that do not fit each other.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument.
    pub fn check(&self) -> Result<()> {
        let op = "combine";
        let ([tokens, hidden], [_, slots]) = (self.x.shape(), self.selection.experts.shape());
        not_empty(op, "x", [tokens, hidden])?;
        self.selection.check(op, tokens)?;
        self.plan.token_row.expect_shape(op, "plan.token_row", [tokens, slots])?;
        has_rows(op, "rows", self.rows.shape(), 0, hidden)?;
        fits(op, "shared", self.shared.as_ref(), [tokens, hidden])?;
        fits(op, "shared_row", self.shared_row.as_ref(), [tokens])?;
        check_constants(op, self.constants.as_ref(), hidden)?;
        self.y.expect_shape(op, "y", [tokens, hidden])
    }
}

fn check_constants(op: &'static str, constants: Option<&TensorRef<'_, 2>>, hidden: usize) -> Result<()> {
    constants.map_or(Ok(()), |constants| has_rows(op, "constants", constants.shape(), 0, hidden))
}

impl CombineBackwardArgs<'_> {
    /// Refuses views that do not fit each other.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument.
    pub fn check(&self) -> Result<()> {
        let op = "combine_backward";
        let ([tokens, hidden], [_, slots]) = (self.x.shape(), self.selection.experts.shape());
        not_empty(op, "x", [tokens, hidden])?;
        self.selection.check(op, tokens)?;
        self.dy.expect_shape(op, "dy", [tokens, hidden])?;
        check_constants(op, self.constants.as_ref(), hidden)?;
        self.d_weights.expect_shape(op, "d_weights", [tokens, slots])?;
        let Some(gradient) = &self.d_constants else { return Ok(()) };
        has_rows(op, "d_constants", gradient.shape(), 0, hidden)?;
        gradient.expect_dtype(op, "d_constants", &[self.dy.dtype(), DType::F32])
    }
}

impl ExpertsBackwardArgs<'_> {
    /// Refuses views that do not fit each other.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument.
    pub fn check(&self) -> Result<()> {
        let op = "experts_backward";
        let [tokens, hidden] = self.x.shape();
        self.dy.expect_shape(op, "dy", [tokens, hidden])?;
        let sizes @ [experts, rows_in, ..] = self.weights.check(op, self.activation, hidden)?;
        let (least, room) = (self.rows.least(op, experts, tokens)?, self.dx_rows.shape()[0]);
        has_rows(op, "dx_rows", self.dx_rows.shape(), least, hidden)?;
        if let Some(kept) = &self.hidden {
            kept.expect_dtype(op, "hidden", &[hidden_type(self.x.dtype())])?;
            has_rows(op, "hidden", kept.shape(), room, rows_in)?;
        }
        self.d_row_weight.expect_shape(op, "d_row_weight", [room])?;
        self.gradients.check(op, sizes, self.x.dtype())
    }
}

impl PermuteBackwardArgs<'_> {
    /// Refuses views that do not fit each other.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument.
    pub fn check(&self) -> Result<()> {
        let op = "permute_backward";
        let ([tokens, hidden], [_, slots]) = (self.dy.shape(), self.selection.experts.shape());
        not_empty(op, "dy", [tokens, hidden])?;
        self.selection.check(op, tokens)?;
        self.plan.token_row.expect_shape(op, "plan.token_row", [tokens, slots])?;
        let rows = self.dx_rows.shape()[0];
        has_rows(op, "dx_rows", self.dx_rows.shape(), 0, hidden)?;
        self.d_row_weight.expect_shape(op, "d_row_weight", [rows])?;
        fits(op, "shared_dx", self.shared_dx.as_ref(), [tokens, hidden])?;
        fits(op, "shared_row", self.shared_row.as_ref(), [tokens])?;
        self.d_weights.expect_shape(op, "d_weights", [tokens, slots])?;
        self.dx.expect_shape(op, "dx", [tokens, hidden])
    }
}

impl GateBackwardArgs<'_> {
    /// Refuses views that do not fit each other.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument, or the configuration's own error.
    pub fn check(&self) -> Result<()> {
        let op = "gate_backward";
        self.config.validate()?;
        let ([tokens, hidden], [_, slots]) = (self.x.shape(), self.selection.experts.shape());
        let candidates = self.config.candidates();
        self.x.expect_shape(op, "x", [tokens, self.config.hidden_size])?;
        fits(op, "mask", self.mask.as_ref(), [tokens])?;
        self.selection.check(op, tokens)?;
        self.d_weights.expect_shape(op, "d_weights", [tokens, slots])?;
        self.dx_rows.expect_shape(op, "dx_rows", [tokens, hidden])?;
        self.dx.expect_shape(op, "dx", [tokens, hidden])?;
        check_loss_scale(op, self.loss_scale)?;
        let Some(router) = &self.router else { return Ok(()) };
        router.weight.expect_shape(op, "router.weight", [candidates, hidden])?;
        router.logits.expect_shape(op, "logits", [tokens, candidates])?;
        router.load.expect_shape(op, "load", [candidates])?;
        router.unmasked.expect_shape(op, "unmasked", [1])?;
        router.d_logits.expect_shape(op, "d_logits", [tokens, candidates])?;
        router.d_weight.expect_shape(op, "d.router.weight", [candidates, hidden])?;
        router.d_weight.expect_dtype(op, "d.router.weight", &[router.weight.dtype(), DType::F32])
    }
}

impl RoutingBackwardArgs<'_> {
    /// Refuses views that do not fit each other.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument.
    pub fn check(&self) -> Result<()> {
        let op = "routing_backward";
        let [tokens, slots] = self.selection.experts.shape();
        self.routing.check(op, tokens, slots)?;
        self.selection.check(op, tokens)?;
        self.d_weights.expect_shape(op, "d_weights", [tokens, slots])?;
        self.d_routing.expect_shape(op, "d_routing", [self.routing.entries()])
    }
}
