//! Five stages down.

use super::{Layer, all, routed, shared};
use crate::step::{Last, view, view_mut};
use crate::{
    Backend, CombineArgs, DType, ExpertsArgs, GateArgs, ImportanceArgs, Inputs, Keep, PermuteArgs, Result, RouterArgs,
    RoutingArgs, STATE_LEN, SharedPermute, Sizes, State, Step, TensorMut, TensorRef, Weights,
};

impl<B: Backend> Layer<B> {
    /// `y[T, D]` from `inputs`; what backward and reports need stays in `step`.
    ///
    /// # Errors
    /// Any input, weight, output or buffer that does not fit, by name; nothing has been written then.
    pub fn forward(
        &self,
        stream: &B::Stream,
        inputs: &Inputs<'_>,
        weights: &Weights<'_>,
        state: &mut State,
        step: &mut Step,
        mut y: TensorMut<'_, 2>,
    ) -> Result<()> {
        let op = "forward";
        let sizes = self.check_call(op, stream, inputs, weights, step)?;
        y.expect_shape(op, "y", inputs.x.shape())?;
        y.expect_dtype(op, "y", &[inputs.x.dtype()])?;
        self.backend.check_location(op, "y", y.as_ref().data())?;
        let carried = TensorRef::new(&state.values, [STATE_LEN])?;
        carried.expect_dtype(op, "state", &[DType::F32])?;
        self.backend.check_location(op, "state", carried.data())?;
        state.check(op)?;
        step.last = None;
        match inputs.routing {
            Some(routing) => {
                let Step { saved, .. } = step;
                self.backend.routing(
                    stream,
                    RoutingArgs {
                        candidates: sizes.candidates,
                        routing,
                        mask: inputs.mask,
                        selection: saved.selection.view_mut(&sizes)?,
                        load: view_mut(&mut saved.load, [sizes.candidates])?,
                        unmasked: view_mut(&mut saved.unmasked, [1])?,
                        losses: view_mut(&mut saved.losses, [2])?,
                    },
                )?;
            }
            None => self.route(stream, inputs, weights, state, step, &sizes)?,
        }
        self.compute(stream, inputs, weights, step, &sizes, y.reborrow())?;
        let (routed, masked) = (inputs.routing.is_some(), inputs.mask.is_some());
        step.last = Some(Last { sizes, routed, masked, backward: false });
        Ok(())
    }

    /// Router product, importance and gate.
    fn route(
        &self,
        stream: &B::Stream,
        inputs: &Inputs<'_>,
        weights: &Weights<'_>,
        state: &mut State,
        step: &mut Step,
        sizes: &Sizes,
    ) -> Result<()> {
        let Step { saved, scratch, .. } = step;
        let scratch = scratch.buffers("forward")?;
        let scores = [sizes.tokens, sizes.candidates];
        let source = &self.config.importance;
        let logits = view_mut(&mut saved.logits, scores)?;
        self.backend.router(stream, RouterArgs { x: inputs.x, weight: weights.router, logits })?;
        self.backend.importance(
            stream,
            ImportanceArgs {
                config: inputs.missing(&source.source).is_none().then_some(source),
                cu_seqlens: inputs.cu_seqlens,
                mask: inputs.mask,
                attention: inputs.attention,
                external: inputs.importance,
                token_ids: inputs.token_ids,
                token_frequency: inputs.token_frequency,
                logits: view(&saved.logits, scores)?,
                experts: sizes.experts,
                state: state.view_mut()?,
                training: inputs.training,
                scratch: all(&mut scratch.stage)?,
                importance: view_mut(&mut saved.importance, [sizes.tokens])?,
            },
        )?;
        self.backend.gate(
            stream,
            GateArgs {
                config: &self.config,
                logits: view(&saved.logits, scores)?,
                importance: view(&saved.importance, [sizes.tokens])?,
                bias: weights.router_bias,
                mask: inputs.mask,
                k_given: inputs.k_given,
                state: state.view_mut()?,
                training: inputs.training,
                selection: saved.selection.view_mut(sizes)?,
                load: view_mut(&mut saved.load, [sizes.candidates])?,
                unmasked: view_mut(&mut saved.unmasked, [1])?,
                losses: view_mut(&mut saved.losses, [2])?,
            },
        )
    }

    /// Permute, experts (routed and shared) and combine.
    fn compute(
        &self,
        stream: &B::Stream,
        inputs: &Inputs<'_>,
        weights: &Weights<'_>,
        step: &mut Step,
        sizes: &Sizes,
        y: TensorMut<'_, 2>,
    ) -> Result<()> {
        let Step { saved, scratch, keep, .. } = step;
        let scratch = scratch.buffers("forward")?;
        let selection = saved.selection.view(sizes)?;
        let plan = saved.plan.view_mut(sizes)?;
        let mask = inputs.mask.filter(|_| weights.shared.is_some());
        let of_shared = match mask {
            Some(mask) => Some(SharedPermute { mask, plan: saved.shared_plan.view_mut(sizes)? }),
            None => None,
        };
        self.backend.permute(stream, PermuteArgs { config: &self.config, selection, plan, shared: of_shared })?;
        let plan = saved.plan.view(sizes)?;
        let shared_plan = mask.map(|_| saved.shared_plan.view(sizes)).transpose()?;
        let keeps = *keep == Keep::Hidden;
        let activation = self.config.hidden_act;
        self.backend.experts(
            stream,
            ExpertsArgs {
                activation,
                x: inputs.x,
                rows: routed(&plan),
                weights: weights.experts,
                hidden: keeps.then(|| view_mut(&mut saved.hidden, [sizes.rows, sizes.rows_in])).transpose()?,
                out: view_mut(&mut scratch.rows, [sizes.rows, sizes.hidden])?,
            },
        )?;
        let tokens = [sizes.tokens, sizes.hidden];
        if let Some(weights) = weights.shared {
            let hidden = [sizes.tokens, sizes.shared_rows_in];
            self.backend.experts(
                stream,
                ExpertsArgs {
                    activation,
                    x: inputs.x,
                    rows: shared(shared_plan.as_ref()),
                    weights,
                    hidden: keeps.then(|| view_mut(&mut saved.shared_hidden, hidden)).transpose()?,
                    out: view_mut(&mut scratch.shared, tokens)?,
                },
            )?;
        }
        self.backend.combine(
            stream,
            CombineArgs {
                experts: sizes.experts,
                null_expert: self.config.null_expert,
                x: inputs.x,
                constants: weights.constants,
                selection,
                plan,
                rows: view(&scratch.rows, [sizes.rows, sizes.hidden])?,
                shared: weights.shared.map(|_| view(&scratch.shared, tokens)).transpose()?,
                shared_row: shared_plan.map(|plan| plan.token_row),
                y,
            },
        )
    }
}
