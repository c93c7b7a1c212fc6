//! Five stages up.

use super::{Layer, all, routed, shared};
use crate::step::{Last, view, view_mut};
use crate::{
    Backend, CombineBackwardArgs, Error, ExpertGradients, ExpertWeights, ExpertsBackwardArgs, GateBackwardArgs,
    Gradients, Inputs, Keep, PermuteBackwardArgs, Result, RouterBackward, RoutingBackwardArgs, Sizes, Step, TensorMut,
    TensorRef, Weights,
};

impl<B: Backend> Layer<B> {
    /// Gradients of `⟨y, dy⟩ + loss_scale·(balance·L_balance + z·L_z)` (SPEC §6) for the forward call that `step` last saw.
    ///
    /// # Errors
    /// Any argument that does not fit, by name, or a `step` made without room for backward; nothing has been written.
    pub fn backward(
        &self,
        stream: &B::Stream,
        inputs: &Inputs<'_>,
        weights: &Weights<'_>,
        dy: TensorRef<'_, 2>,
        step: &mut Step,
        gradients: &mut Gradients<'_>,
    ) -> Result<()> {
        let op = "backward";
        let sizes = self.check_call(op, stream, inputs, weights, step)?;
        dy.expect_shape(op, "dy", inputs.x.shape())?;
        dy.expect_dtype(op, "dy", &[inputs.x.dtype()])?;
        self.backend.check_location(op, "dy", dy.data())?;
        gradients.check(op, inputs, weights)?;
        gradients.visit(&mut |argument, memory| self.backend.check_location(op, argument, memory))?;
        if step.keep == Keep::Nothing {
            return Err(Error::Workspace { op, problem: "the step was made with Keep::Nothing".into() });
        }
        let refuse =
            |problem: String| Err(Error::Workspace { op, problem: format!("the step's last forward {problem}") });
        match step.last {
            Some(last) if last.sizes == sizes && last.masked != inputs.mask.is_some() => {
                return refuse(format!("had {} mask", if last.masked { "a" } else { "no" }));
            }
            Some(last) if last.sizes == sizes && last.routed == inputs.routing.is_some() => {}
            Some(last) if last.sizes == sizes && last.routed => return refuse("had a routing from outside".into()),
            Some(last) if last.sizes == sizes => return refuse("had no routing from outside".into()),
            _ => return refuse(format!("was not over {} tokens", sizes.tokens)),
        }
        self.compute_backward(stream, inputs, weights, dy, step, gradients, &sizes)?;
        self.route_backward(stream, inputs, weights, step, gradients, &sizes)?;
        step.last = step.last.map(|last| Last { backward: true, ..last });
        Ok(())
    }

    /// Combine, experts (routed and shared) and permute, upward.
    #[allow(clippy::too_many_arguments)]
    fn compute_backward(
        &self,
        stream: &B::Stream,
        inputs: &Inputs<'_>,
        weights: &Weights<'_>,
        dy: TensorRef<'_, 2>,
        step: &mut Step,
        gradients: &mut Gradients<'_>,
        sizes: &Sizes,
    ) -> Result<()> {
        let Step { saved, scratch, keep, .. } = step;
        let scratch = scratch.buffers("backward")?;
        let (selection, plan) = (saved.selection.view(sizes)?, saved.plan.view(sizes)?);
        let slots = [sizes.tokens, sizes.k_max];
        self.backend.combine_backward(
            stream,
            CombineBackwardArgs {
                experts: sizes.experts,
                null_expert: self.config.null_expert,
                x: inputs.x,
                constants: weights.constants,
                selection,
                dy,
                d_weights: view_mut(&mut scratch.d_weights, slots)?,
                d_constants: gradients.constants.as_mut().map(TensorMut::reborrow),
                accumulate: gradients.accumulate,
            },
        )?;
        let (keeps, accumulate) = (*keep == Keep::Hidden, gradients.accumulate);
        let mut expert_pass =
            |rows, count, experts: ExpertWeights<'_>, hidden, out, gradients: &mut ExpertGradients<'_>| {
                let [_, rows_in, _] = experts.w_in.shape();
                self.backend.experts_backward(
                    stream,
                    ExpertsBackwardArgs {
                        activation: self.config.hidden_act,
                        x: inputs.x,
                        dy,
                        rows,
                        weights: experts,
                        hidden: if keeps { Some(view(hidden, [count, rows_in])?) } else { None },
                        scratch: all(&mut scratch.stage)?,
                        dx_rows: view_mut(out, [count, sizes.hidden])?,
                        d_row_weight: view_mut(&mut scratch.d_row_weight, [count])?,
                        gradients: reborrow(gradients),
                        accumulate,
                    },
                )
            };
        // The shared expert first: its ⟨dy, o⟩ is nobody's gradient and may be overwritten by the routed rows'.
        let mask = inputs.mask.filter(|_| weights.shared.is_some());
        let shared_plan = mask.map(|_| saved.shared_plan.view(sizes)).transpose()?;
        if let (Some(weights), Some(gradients)) = (weights.shared, gradients.shared.as_mut()) {
            let rows = shared(shared_plan.as_ref());
            expert_pass(rows, sizes.tokens, weights, &saved.shared_hidden, &mut scratch.shared, gradients)?;
        }
        expert_pass(
            routed(&plan),
            sizes.rows,
            weights.experts,
            &saved.hidden,
            &mut scratch.rows,
            &mut gradients.experts,
        )?;
        let tokens = [sizes.tokens, sizes.hidden];
        self.backend.permute_backward(
            stream,
            PermuteBackwardArgs {
                experts: sizes.experts,
                null_expert: self.config.null_expert,
                selection,
                plan,
                dx_rows: view(&scratch.rows, [sizes.rows, sizes.hidden])?,
                d_row_weight: view(&scratch.d_row_weight, [sizes.rows])?,
                shared_dx: weights.shared.map(|_| view(&scratch.shared, tokens)).transpose()?,
                shared_row: shared_plan.map(|plan| plan.token_row),
                dy,
                d_weights: view_mut(&mut scratch.d_weights, slots)?,
                dx: view_mut(&mut scratch.dx, tokens)?,
            },
        )
    }

    /// Gate and router product, upward; or the way back into a routing from outside.
    fn route_backward(
        &self,
        stream: &B::Stream,
        inputs: &Inputs<'_>,
        weights: &Weights<'_>,
        step: &mut Step,
        gradients: &mut Gradients<'_>,
        sizes: &Sizes,
    ) -> Result<()> {
        let Step { saved, scratch, .. } = step;
        let scratch = scratch.buffers("backward")?;
        let selection = saved.selection.view(sizes)?;
        let scores = [sizes.tokens, sizes.candidates];
        let d_weights = view(&scratch.d_weights, [sizes.tokens, sizes.k_max])?;
        let router = match gradients.router.as_mut() {
            None => None,
            Some(d_weight) => Some(RouterBackward {
                weight: weights.router,
                logits: view(&saved.logits, scores)?,
                load: view(&saved.load, [sizes.candidates])?,
                unmasked: view(&saved.unmasked, [1])?,
                d_logits: view_mut(&mut scratch.d_logits, scores)?,
                d_weight: d_weight.reborrow(),
                accumulate: gradients.accumulate,
            }),
        };
        self.backend.gate_backward(
            stream,
            GateBackwardArgs {
                config: &self.config,
                x: inputs.x,
                mask: inputs.mask,
                selection,
                d_weights,
                dx_rows: view(&scratch.dx, [sizes.tokens, sizes.hidden])?,
                loss_scale: gradients.loss_scale,
                router,
                dx: gradients.x.reborrow(),
            },
        )?;
        match (inputs.routing, gradients.routing.as_mut()) {
            (Some(routing), Some(d_routing)) => self.backend.routing_backward(
                stream,
                RoutingBackwardArgs { routing, selection, d_weights, d_routing: d_routing.reborrow() },
            ),
            _ => Ok(()),
        }
    }
}

fn reborrow<'s>(gradients: &'s mut ExpertGradients<'_>) -> ExpertGradients<'s> {
    ExpertGradients {
        w_in: gradients.w_in.reborrow(),
        w_out: gradients.w_out.reborrow(),
        b_in: gradients.b_in.as_mut().map(TensorMut::reborrow),
        b_out: gradients.b_out.as_mut().map(TensorMut::reborrow),
    }
}
