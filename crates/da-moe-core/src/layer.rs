//! The layer, written once on top of [`Backend`]: checks, then five stages down, or five stages up.

use crate::step::{Last, view, view_mut};
use crate::{
    Backend, BiasUpdate, CombineArgs, CombineBackwardArgs, DType, Error, ExpertGradients, ExpertWeights, ExpertsArgs,
    ExpertsBackwardArgs, GateArgs, GateBackwardArgs, Gradients, ImportanceArgs, Inputs, Keep, LayerConfig, PermuteArgs,
    PermuteBackwardArgs, Plan, Result, RouterArgs, RouterBackward, RoutingArgs, RoutingBackwardArgs, Rows, STATE_LEN,
    Sizes, Slice, State, Step, TensorMut, TensorRef, Weights,
};

/// A DA-MoE layer: a valid configuration and the backend that executes it. Weights and buffers are the caller's.
///
/// A layer holds no state: any number of threads may call it at once, each with its own [`Step`].
#[derive(Clone, Debug)]
pub struct Layer<B> {
    backend: B,
    config: LayerConfig,
}

impl<B: Backend> Layer<B> {
    /// A layer of this configuration.
    ///
    /// # Errors
    /// As [`LayerConfig::validate`].
    pub fn new(backend: B, config: LayerConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { backend, config })
    }

    /// The configuration.
    pub fn config(&self) -> &LayerConfig {
        &self.config
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Buffers for calls of up to `max_tokens` tokens of storage type `dtype`.
    ///
    /// # Errors
    /// [`Error::Overflow`], [`Error::DType`] for an integer type, or the backend's allocation error.
    pub fn step(&self, max_tokens: usize, dtype: DType, keep: Keep) -> Result<Step> {
        if !dtype.is_storage() {
            let expected = "f32, bf16 or f16".into();
            return Err(Error::DType { op: "step", argument: "dtype", expected, found: dtype });
        }
        Step::allocate(&self.backend, &Sizes::new(&self.config, max_tokens)?, dtype, keep)
    }

    /// Bytes that [`Layer::step`] allocates.
    ///
    /// # Errors
    /// [`Error::Overflow`].
    pub fn step_bytes(&self, max_tokens: usize, dtype: DType, keep: Keep) -> Result<usize> {
        let intermediate = self.backend.intermediate(dtype);
        Ok(Step::bytes(&Sizes::new(&self.config, max_tokens)?, intermediate, keep))
    }

    /// Fresh state for policies and normalisations that carry statistics between steps.
    ///
    /// # Errors
    /// The backend's allocation error.
    pub fn state(&self) -> Result<State> {
        Ok(State { values: self.backend.allocate(DType::F32, STATE_LEN)? })
    }

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
        self.backend.check_place(op, "y", y.as_ref().data())?;
        let carried = TensorRef::new(&state.values, [STATE_LEN])?;
        carried.expect_dtype(op, "state", &[DType::F32])?;
        self.backend.check_place(op, "state", carried.data())?;
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
        step.last = Some(Last { sizes, routed: inputs.routing.is_some() });
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
        let Step { saved, workspace, .. } = step;
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
                scratch: view_mut(&mut workspace.positions, [3, sizes.tokens])?,
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
        let Step { saved, workspace, keep, .. } = step;
        let selection = saved.selection.view(sizes)?;
        let plan = saved.plan.view_mut(sizes)?;
        self.backend.permute(stream, PermuteArgs { config: &self.config, selection, plan })?;
        let plan = saved.plan.view(sizes)?;
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
                out: view_mut(&mut workspace.rows, [sizes.rows, sizes.hidden])?,
            },
        )?;
        let all = [sizes.tokens, sizes.hidden];
        if let Some(shared) = weights.shared {
            let hidden = [sizes.tokens, sizes.shared_rows_in];
            self.backend.experts(
                stream,
                ExpertsArgs {
                    activation,
                    x: inputs.x,
                    rows: Rows::All,
                    weights: shared,
                    hidden: keeps.then(|| view_mut(&mut saved.shared_hidden, hidden)).transpose()?,
                    out: view_mut(&mut workspace.shared, all)?,
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
                rows: view(&workspace.rows, [sizes.rows, sizes.hidden])?,
                shared: weights.shared.map(|_| view(&workspace.shared, all)).transpose()?,
                y,
            },
        )
    }

    /// Gradients of `⟨y, dy⟩ + balance·L_balance + z·L_z` (SPEC §6) for the forward call that `step` last saw.
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
        self.backend.check_place(op, "dy", dy.data())?;
        gradients.check(op, inputs, weights)?;
        gradients.visit(&mut |argument, memory| self.backend.check_place(op, argument, memory))?;
        if step.keep == Keep::Nothing {
            return Err(Error::Workspace { op, problem: "the step was made with Keep::Nothing".into() });
        }
        let refuse =
            |problem: String| Err(Error::Workspace { op, problem: format!("the step's last forward {problem}") });
        match step.last {
            Some(last) if last.sizes == sizes && last.routed == inputs.routing.is_some() => {}
            Some(last) if last.sizes == sizes && last.routed => return refuse("had a routing from outside".into()),
            Some(last) if last.sizes == sizes => return refuse("had no routing from outside".into()),
            _ => return refuse(format!("was not over {} tokens", sizes.tokens)),
        }
        self.compute_backward(stream, inputs, weights, dy, step, gradients, &sizes)?;
        self.route_backward(stream, inputs, weights, step, gradients, &sizes)
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
        let Step { saved, workspace, keep, .. } = step;
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
                d_weights: view_mut(&mut workspace.d_weights, slots)?,
                d_constants: gradients.constants.as_mut().map(TensorMut::reborrow),
            },
        )?;
        let keeps = *keep == Keep::Hidden;
        let mut expert_pass = |rows, experts: ExpertWeights<'_>, hidden, out, gradients: &mut ExpertGradients<'_>| {
            let [_, rows_in, _] = experts.w_in.shape();
            let [_, _, width] = experts.w_out.shape();
            let count = match rows {
                Rows::Routed { .. } => sizes.rows,
                Rows::All => sizes.tokens,
            };
            self.backend.experts_backward(
                stream,
                ExpertsBackwardArgs {
                    activation: self.config.hidden_act,
                    x: inputs.x,
                    dy,
                    rows,
                    weights: experts,
                    hidden: if keeps { Some(view(hidden, [count, rows_in])?) } else { None },
                    d_hidden: view_mut(&mut workspace.d_hidden, [count, rows_in])?,
                    activated: if keeps { None } else { Some(view_mut(&mut workspace.activated, [count, width])?) },
                    dx_rows: view_mut(out, [count, sizes.hidden])?,
                    d_row_weight: view_mut(&mut workspace.d_row_weight, [count])?,
                    gradients: reborrow(gradients),
                },
            )
        };
        // The shared expert first: its ⟨dy, o⟩ is nobody's gradient and may be overwritten by the routed rows'.
        if let (Some(shared), Some(gradients)) = (weights.shared, gradients.shared.as_mut()) {
            expert_pass(Rows::All, shared, &saved.shared_hidden, &mut workspace.shared, gradients)?;
        }
        expert_pass(routed(&plan), weights.experts, &saved.hidden, &mut workspace.rows, &mut gradients.experts)?;
        let all = [sizes.tokens, sizes.hidden];
        self.backend.permute_backward(
            stream,
            PermuteBackwardArgs {
                experts: sizes.experts,
                null_expert: self.config.null_expert,
                selection,
                plan,
                dx_rows: view(&workspace.rows, [sizes.rows, sizes.hidden])?,
                d_row_weight: view(&workspace.d_row_weight, [sizes.rows])?,
                shared_dx: weights.shared.map(|_| view(&workspace.shared, all)).transpose()?,
                dy,
                d_weights: view_mut(&mut workspace.d_weights, slots)?,
                dx: view_mut(&mut workspace.dx, all)?,
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
        let Step { saved, workspace, .. } = step;
        let selection = saved.selection.view(sizes)?;
        let scores = [sizes.tokens, sizes.candidates];
        let d_weights = view(&workspace.d_weights, [sizes.tokens, sizes.k_max])?;
        let router = match gradients.router.as_mut() {
            None => None,
            Some(d_weight) => Some(RouterBackward {
                weight: weights.router,
                logits: view(&saved.logits, scores)?,
                load: view(&saved.load, [sizes.candidates])?,
                unmasked: view(&saved.unmasked, [1])?,
                d_logits: view_mut(&mut workspace.d_logits, scores)?,
                d_weight: d_weight.reborrow(),
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
                dx_rows: view(&workspace.dx, [sizes.tokens, sizes.hidden])?,
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

    /// Moves the selection bias against the load of `step`'s last forward (SPEC §3).
    ///
    /// # Errors
    /// A bias of wrong shape or type, or a step without a forward.
    pub fn update_bias(
        &self,
        stream: &B::Stream,
        update: BiasUpdate,
        step: &Step,
        bias: TensorMut<'_, 1>,
    ) -> Result<()> {
        bias.expect_shape("update_bias", "router.bias", [self.config.candidates()])?;
        bias.expect_dtype("update_bias", "router.bias", &[DType::F32])?;
        self.backend.check_place("update_bias", "router.bias", bias.as_ref().data())?;
        self.backend.update_bias(stream, update, step.load()?, bias)
    }

    fn check_call(
        &self,
        op: &'static str,
        stream: &B::Stream,
        inputs: &Inputs<'_>,
        weights: &Weights<'_>,
        step: &Step,
    ) -> Result<Sizes> {
        let sizes = inputs.check(op, &self.config)?;
        weights.check(op, &self.config, inputs.x.dtype())?;
        let mut see = |argument, memory: Slice<'_>| self.backend.check_place(op, argument, memory);
        inputs.visit(&mut see)?;
        weights.visit(&mut see)?;
        see("step", step.place())?;
        let most = step.made_for.tokens;
        if sizes.tokens > most {
            let problem = format!("{} tokens, but the step was made for {most}", sizes.tokens);
            return Err(Error::Workspace { op, problem });
        }
        if step.made_for != Sizes::new(&self.config, most)? {
            return Err(Error::Workspace { op, problem: "the step was made for a layer of other sizes".into() });
        }
        if inputs.x.dtype() != step.dtype {
            let problem = format!("x is {}, but the step was made for {}", inputs.x.dtype(), step.dtype);
            return Err(Error::Workspace { op, problem });
        }
        self.backend.check_stream(op, stream, &self.config, inputs, step.keep)?;
        self.backend.check_contents(&self.config, inputs, sizes.tokens)?;
        Ok(sizes)
    }
}

fn routed<'a>(plan: &Plan<'a>) -> Rows<'a> {
    Rows::Routed { offsets: plan.offsets, row_token: plan.row_token, row_weight: plan.row_weight }
}

fn reborrow<'s>(gradients: &'s mut ExpertGradients<'_>) -> ExpertGradients<'s> {
    ExpertGradients {
        w_in: gradients.w_in.reborrow(),
        w_out: gradients.w_out.reborrow(),
        b_in: gradients.b_in.as_mut().map(TensorMut::reborrow),
        b_out: gradients.b_out.as_mut().map(TensorMut::reborrow),
    }
}
