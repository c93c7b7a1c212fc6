//! The CPU backend with one planted bug: what the harness must notice.

use da_moe::{
    Backend, BiasUpdate, CombineArgs, CombineBackwardArgs, Cpu, DType, Error, ExpertGradients, ExpertsArgs,
    ExpertsBackwardArgs, GateArgs, GateBackwardArgs, ImportanceArgs, Inputs, Keep, LayerConfig, Memory, Normalize,
    NormalizeWeights, NullExpert, PermuteArgs, PermuteBackwardArgs, RouterArgs, RoutingArgs, RoutingBackwardArgs, Rows,
    Scoring, SharedPermute, SharedPlanMut, Sizes, TensorMut, TensorRef,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

macro_rules! faults {
    ($($fault:ident),* $(,)?) => {
        /// One thing done wrong.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum Fault { $($fault),* }

        impl Fault {
            pub const ALL: &[Fault] = &[$(Fault::$fault),*];
        }
    };
}

faults! {
    LogitOff, RouterOfWrongToken,
    ImportanceOff, NormalizationSkipped, CausalMaskIgnored, MaskedTokensAsk,
    KTooSmall, MaskIgnored, BiasIgnored, WrongTie, SlotsSwapped, WeightNotDivided, ScalingForgotten, LoadOff, TinyScoresLost,
    BalanceLossOff, ZLossOff, RoutingInCallersOrder,
    UnstableOrder, OffsetOff, CapacityIgnored, DropsMiscounted, RowWeightStale,
    LastRowMissing, BiasSkipped, NeighboursRow, SimilarActivation,
    SharedForgotten, SharedTakesMasked, NullExpertForgotten, LastTokenUnwritten, LastBitFlips,
    ConstantsGradientMissing, NullWeightGradientMissing,
    RowGradientMissing, EmptyExpertUnwritten, WOutGradientUnweighted, WInGradientAccumulated, WeightGradientSign,
    SharedDxForgotten, CopyDxForgotten,
    ZLossGradientMissing, BalanceGradientMissing, DivisorGradientMissing, RouterGradientOfWrongToken,
    RoutingGradientShifted,
}

/// Delegates every stage to the CPU backend, and damages what one of them reads or writes. f32 only.
#[derive(Clone)]
pub struct Faulty {
    inner: Cpu,
    fault: Option<Fault>,
    calls: Arc<AtomicU32>,
}

impl Faulty {
    pub fn new(fault: Option<Fault>) -> Self {
        Self { inner: Cpu::new(), fault, calls: Arc::default() }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// The configuration as this backend understands it.
    fn read(&self, config: &LayerConfig) -> LayerConfig {
        let mut config = config.clone();
        match self.fault {
            Some(Fault::WeightNotDivided) => config.router.normalize = NormalizeWeights::None,
            Some(Fault::ScalingForgotten) => config.router.routed_scaling = 1.0,
            Some(Fault::CapacityIgnored) => config.router.capacity_factor = None,
            _ => {}
        }
        config
    }
}

fn f32s<'a, const R: usize>(tensor: &'a mut TensorMut<'_, R>) -> &'a mut [f32] {
    tensor.reborrow().into_elements().expect("f32")
}

fn i32s<'a, const R: usize>(tensor: &'a mut TensorMut<'_, R>) -> &'a mut [i32] {
    tensor.reborrow().into_elements().expect("i32")
}

fn read<'a, const R: usize>(tensor: &TensorRef<'a, R>) -> &'a [i32] {
    tensor.elements().expect("i32")
}

/// Weights as quotients of scores in f32: 0 where the scores of all that are selected are.
fn lose_tiny_scores(config: &LayerConfig, logits: &TensorRef<'_, 2>, experts: &[i32], weights: &mut [f32]) {
    let slots = config.k_max().max(1);
    let logits = logits.elements::<f32>().expect("f32").chunks(config.candidates());
    for ((z, experts), weights) in logits.zip(experts.chunks(slots)).zip(weights.chunks_mut(slots)) {
        let largest = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let score = |e: i32| match config.router.scoring {
            Scoring::Softmax => (z[e as usize] - largest).exp(),
            Scoring::Sigmoid => 1.0 / (1.0 + (-z[e as usize]).exp()),
            Scoring::Relu => z[e as usize].max(0.0),
        };
        if experts.iter().filter(|e| **e >= 0).map(|&e| score(e)).sum::<f32>() == 0.0 {
            weights.fill(0.0);
        }
    }
}

/// The rows of a matrix, each at its neighbour's place.
fn rotated(matrix: &TensorRef<'_, 2>) -> Vec<f32> {
    let ([rows, cols], [stride, _]) = (matrix.shape(), matrix.strides());
    let data: &[f32] = matrix.elements().expect("f32");
    (0..rows).flat_map(|row| data[(row + 1) % rows * stride..][..cols].to_vec()).collect()
}

impl Backend for Faulty {
    type Stream = ();

    fn describe(&self) -> String {
        format!("cpu with {:?}", self.fault)
    }

    fn allocate(&self, dtype: DType, len: usize) -> Result<Memory, Error> {
        self.inner.allocate(dtype, len)
    }

    fn row_type(&self, storage: DType) -> DType {
        self.inner.row_type(storage)
    }

    fn stage_scratch(&self, sizes: &Sizes, keep: Keep) -> usize {
        self.inner.stage_scratch(sizes, keep)
    }

    fn check_contents(&self, config: &LayerConfig, inputs: &Inputs<'_>, tokens: usize) -> Result<(), Error> {
        self.inner.check_contents(config, inputs, tokens)
    }

    fn router(&self, _: &(), mut args: RouterArgs<'_>) -> Result<(), Error> {
        let (x, shape) = (rotated(&args.x), args.x.shape());
        let x = if self.has(Fault::RouterOfWrongToken) { TensorRef::new(&x, shape)? } else { args.x };
        self.inner.router(&(), RouterArgs { x, weight: args.weight, logits: args.logits.reborrow() })?;
        if self.has(Fault::LogitOff) {
            f32s(&mut args.logits)[0] += 1e-2;
        }
        Ok(())
    }

    fn importance(&self, _: &(), mut args: ImportanceArgs<'_>) -> Result<(), Error> {
        let mut config = args.config.cloned();
        match (self.fault, &mut config) {
            (Some(Fault::NormalizationSkipped), Some(config)) => config.normalize = Normalize::None,
            (Some(Fault::CausalMaskIgnored), Some(config)) => config.causal = false,
            _ => {}
        }
        let mask = if self.has(Fault::MaskedTokensAsk) { None } else { args.mask };
        let importance = args.importance.reborrow();
        self.inner.importance(&(), ImportanceArgs { config: config.as_ref(), mask, importance, ..args })?;
        if self.has(Fault::ImportanceOff) {
            f32s(&mut args.importance)[1] *= 1.0 + 1e-4;
        }
        Ok(())
    }

    fn gate(&self, _: &(), mut args: GateArgs<'_>) -> Result<(), Error> {
        let config = self.read(args.config);
        let slots = config.k_max();
        {
            let selection = reborrow_selection(&mut args.selection);
            let (load, losses) = (args.load.reborrow(), args.losses.reborrow());
            let mask = if self.has(Fault::MaskIgnored) { None } else { args.mask };
            let bias = if self.has(Fault::BiasIgnored) { None } else { args.bias };
            self.inner.gate(&(), GateArgs { config: &config, mask, bias, selection, load, losses, ..args })?;
        }
        let (k, experts) = (i32s(&mut args.selection.k), i32s(&mut args.selection.experts));
        let (weights, load) = (f32s(&mut args.selection.weights), i32s(&mut args.load));
        let token = (0..k.len()).find(|&t| k[t] >= 2);
        let tied = args.logits.elements::<f32>().is_some_and(|z| z.iter().all(|z| *z == 0.0));
        match (self.fault, token) {
            (Some(Fault::KTooSmall), Some(t)) => {
                k[t] -= 1;
                let slot = t * slots + k[t] as usize;
                load[experts[slot] as usize] -= 1;
                (experts[slot], weights[slot]) = (-1, 0.0);
            }
            (Some(Fault::SlotsSwapped), Some(t)) => {
                experts.swap(t * slots, t * slots + 1);
                weights.swap(t * slots, t * slots + 1);
            }
            (Some(Fault::WrongTie), Some(t)) if tied => {
                // The expert after the last selected one is exactly as good.
                let last = t * slots + k[t] as usize - 1;
                load[experts[last] as usize] -= 1;
                experts[last] += 1;
                load[experts[last] as usize] += 1;
                i32s(&mut args.selection.ranked)[last] += 1;
            }
            (Some(Fault::TinyScoresLost), _) => lose_tiny_scores(&config, &args.logits, experts, weights),
            (Some(Fault::LoadOff), _) => load[0] += 1,
            (Some(Fault::BalanceLossOff), _) => f32s(&mut args.losses)[0] *= 1.001,
            (Some(Fault::ZLossOff), _) => f32s(&mut args.losses)[1] *= 1.001,
            _ => {}
        }
        Ok(())
    }

    fn routing(&self, _: &(), mut args: RoutingArgs<'_>) -> Result<(), Error> {
        let slots = args.selection.experts.shape()[1];
        let selection = reborrow_selection(&mut args.selection);
        self.inner.routing(&(), RoutingArgs { selection, load: args.load.reborrow(), ..args })?;
        let k = i32s(&mut args.selection.k);
        if self.has(Fault::RoutingInCallersOrder)
            && let Some(t) = (0..k.len()).find(|&t| k[t] >= 2)
        {
            i32s(&mut args.selection.experts).swap(t * slots, t * slots + 1);
            f32s(&mut args.selection.weights).swap(t * slots, t * slots + 1);
            i32s(&mut args.selection.ranked).swap(t * slots, t * slots + 1);
        }
        Ok(())
    }

    fn permute(&self, _: &(), args: PermuteArgs<'_>) -> Result<(), Error> {
        let mut plan = args.plan;
        let config = self.read(args.config);
        let (offsets, dropped) = (plan.offsets.reborrow(), plan.dropped.reborrow());
        let (row_token, row_weight) = (plan.row_token.reborrow(), plan.row_weight.reborrow());
        let token_row = plan.token_row.reborrow();
        let counts = plan.counts.reborrow();
        let inner = da_moe::PlanMut { counts, offsets, row_token, row_weight, token_row, dropped };
        let (selection, mut shared) = (args.selection, args.shared);
        let of_shared = shared.as_mut().map(|shared| SharedPermute {
            mask: shared.mask,
            plan: SharedPlanMut {
                offsets: shared.plan.offsets.reborrow(),
                row_token: shared.plan.row_token.reborrow(),
                token_row: shared.plan.token_row.reborrow(),
            },
        });
        self.inner.permute(&(), PermuteArgs { config: &config, selection, plan: inner, shared: of_shared })?;
        if let (Some(shared), true) = (&mut shared, self.has(Fault::SharedTakesMasked)) {
            let everyone: Vec<i32> = (0..shared.mask.shape()[0] as i32).collect();
            i32s(&mut shared.plan.offsets)[1] = everyone.len() as i32;
            i32s(&mut shared.plan.row_token).copy_from_slice(&everyone);
            i32s(&mut shared.plan.token_row).copy_from_slice(&everyone);
        }
        let offsets = i32s(&mut plan.offsets);
        match self.fault {
            Some(Fault::OffsetOff) => offsets[1] += 1,
            Some(Fault::DropsMiscounted) => i32s(&mut plan.dropped)[0] += 1,
            Some(Fault::RowWeightStale) => f32s(&mut plan.row_weight)[0] *= 1.01,
            Some(Fault::UnstableOrder) => {
                // A permutation as good as any other, but not the stable one.
                if let Some(row) = (1..offsets.len()).find(|&e| offsets[e] - offsets[e - 1] >= 2) {
                    let row = offsets[row - 1];
                    i32s(&mut plan.row_token).swap(row as usize, row as usize + 1);
                    f32s(&mut plan.row_weight).swap(row as usize, row as usize + 1);
                    for place in i32s(&mut plan.token_row) {
                        *place = if *place == row {
                            row + 1
                        } else if *place == row + 1 {
                            row
                        } else {
                            *place
                        };
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn experts(&self, _: &(), mut args: ExpertsArgs<'_>) -> Result<(), Error> {
        let mut weights = args.weights;
        if self.has(Fault::BiasSkipped) {
            weights.b_in = None;
        }
        let activation = match args.activation {
            da_moe::Activation::GeluTanh if self.has(Fault::SimilarActivation) => da_moe::Activation::Gelu,
            activation => activation,
        };
        let (rows, width) = (args.rows, args.out.shape()[1]);
        self.inner.experts(&(), ExpertsArgs { activation, weights, out: args.out.reborrow(), ..args })?;
        if let Rows::Routed { offsets, .. } = rows {
            let rows = *read(&offsets).last().expect("offsets are never empty") as usize;
            let out = f32s(&mut args.out);
            match self.fault {
                Some(Fault::LastRowMissing) if rows > 0 => out[(rows - 1) * width..][..width].fill(0.0),
                Some(Fault::NeighboursRow) if rows > 1 => out.copy_within(width..2 * width, 0),
                _ => {}
            }
        }
        Ok(())
    }

    fn combine(&self, _: &(), mut args: CombineArgs<'_>) -> Result<(), Error> {
        let null_expert = if self.has(Fault::NullExpertForgotten) { NullExpert::Zero } else { args.null_expert };
        let shared = if self.has(Fault::SharedForgotten) { None } else { args.shared };
        self.inner.combine(&(), CombineArgs { null_expert, shared, y: args.y.reborrow(), ..args })?;
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        match f32s(&mut args.y).last_mut() {
            Some(last) if self.has(Fault::LastTokenUnwritten) => *last = f32::NAN,
            Some(last) if self.has(Fault::LastBitFlips) => *last = f32::from_bits(last.to_bits() ^ (calls & 1)),
            _ => {}
        }
        Ok(())
    }

    fn combine_backward(&self, _: &(), mut args: CombineBackwardArgs<'_>) -> Result<(), Error> {
        let (d_weights, mut d_constants) = (args.d_weights.reborrow(), args.d_constants.take());
        let inner = d_constants.as_mut().map(TensorMut::reborrow);
        self.inner.combine_backward(&(), CombineBackwardArgs { d_weights, d_constants: inner, ..args })?;
        match (self.fault, d_constants) {
            (Some(Fault::ConstantsGradientMissing), Some(mut gradient)) => f32s(&mut gradient).fill(0.0),
            (Some(Fault::NullWeightGradientMissing), _) => f32s(&mut args.d_weights).fill(0.0),
            _ => {}
        }
        Ok(())
    }

    fn experts_backward(&self, _: &(), mut args: ExpertsBackwardArgs<'_>) -> Result<(), Error> {
        let Rows::Routed { offsets, row_token, row_weight: Some(row_weight) } = args.rows else {
            return self.inner.experts_backward(&(), args);
        };
        let mut unweighted = None;
        if self.has(Fault::WOutGradientUnweighted) {
            let ones = vec![1.0f32; row_weight.shape()[0]];
            let row_weight = TensorRef::new(&ones, row_weight.shape())?;
            let rows = Rows::Routed { offsets, row_token, row_weight: Some(row_weight) };
            self.inner.experts_backward(&(), ExpertsBackwardArgs { rows, ..reborrow_backward(&mut args) })?;
            unweighted = Some(f32s(&mut args.gradients.w_out).to_vec());
        }
        self.inner.experts_backward(&(), reborrow_backward(&mut args))?;
        let offsets = read(&offsets);
        let (rows, width) = (offsets[offsets.len() - 1] as usize, args.dx_rows.shape()[1]);
        let w_in = f32s(&mut args.gradients.w_in);
        let of_expert = w_in.len() / (offsets.len() - 1);
        match self.fault {
            Some(Fault::RowGradientMissing) if rows > 0 => f32s(&mut args.dx_rows)[..width].fill(0.0),
            Some(Fault::WeightGradientSign) => f32s(&mut args.d_row_weight).iter_mut().for_each(|dg| *dg = -*dg),
            Some(Fault::WInGradientAccumulated) => w_in[..of_expert].iter_mut().for_each(|g| *g *= 2.0),
            Some(Fault::EmptyExpertUnwritten) => {
                for e in (1..offsets.len()).filter(|&e| offsets[e] == offsets[e - 1]) {
                    w_in[(e - 1) * of_expert..e * of_expert].fill(f32::NAN);
                }
            }
            _ => {}
        }
        if let Some(unweighted) = unweighted {
            f32s(&mut args.gradients.w_out).copy_from_slice(&unweighted);
        }
        Ok(())
    }

    fn permute_backward(&self, _: &(), args: PermuteBackwardArgs<'_>) -> Result<(), Error> {
        let null_expert = if self.has(Fault::CopyDxForgotten) { NullExpert::Zero } else { args.null_expert };
        let shared_dx = if self.has(Fault::SharedDxForgotten) { None } else { args.shared_dx };
        self.inner.permute_backward(&(), PermuteBackwardArgs { null_expert, shared_dx, ..args })
    }

    fn gate_backward(&self, _: &(), args: GateBackwardArgs<'_>) -> Result<(), Error> {
        let mut config = args.config.clone();
        match self.fault {
            Some(Fault::ZLossGradientMissing) => config.losses.z = 0.0,
            Some(Fault::BalanceGradientMissing) => config.losses.balance = 0.0,
            Some(Fault::DivisorGradientMissing) => config.router.normalize = NormalizeWeights::None,
            _ => {}
        }
        let (x, shape) = (rotated(&args.x), args.x.shape());
        let x = if self.has(Fault::RouterGradientOfWrongToken) { TensorRef::new(&x, shape)? } else { args.x };
        self.inner.gate_backward(&(), GateBackwardArgs { config: &config, x, ..args })
    }

    fn routing_backward(&self, _: &(), mut args: RoutingBackwardArgs<'_>) -> Result<(), Error> {
        self.inner.routing_backward(&(), RoutingBackwardArgs { d_routing: args.d_routing.reborrow(), ..args })?;
        if self.has(Fault::RoutingGradientShifted) {
            f32s(&mut args.d_routing).rotate_left(1);
        }
        Ok(())
    }

    fn update_bias(
        &self,
        _: &(),
        update: BiasUpdate,
        load: TensorRef<'_, 1>,
        bias: TensorMut<'_, 1>,
    ) -> Result<(), Error> {
        self.inner.update_bias(&(), update, load, bias)
    }
}

fn reborrow_selection<'s>(selection: &'s mut da_moe::SelectionMut<'_>) -> da_moe::SelectionMut<'s> {
    da_moe::SelectionMut {
        k: selection.k.reborrow(),
        experts: selection.experts.reborrow(),
        weights: selection.weights.reborrow(),
        ranked: selection.ranked.reborrow(),
    }
}

fn reborrow_backward<'s>(args: &'s mut ExpertsBackwardArgs<'_>) -> ExpertsBackwardArgs<'s> {
    ExpertsBackwardArgs {
        activation: args.activation,
        x: args.x,
        dy: args.dy,
        rows: args.rows,
        weights: args.weights,
        hidden: args.hidden,
        scratch: args.scratch.reborrow(),
        dx_rows: args.dx_rows.reborrow(),
        d_row_weight: args.d_row_weight.reborrow(),
        gradients: ExpertGradients {
            w_in: args.gradients.w_in.reborrow(),
            w_out: args.gradients.w_out.reborrow(),
            b_in: args.gradients.b_in.as_mut().map(TensorMut::reborrow),
            b_out: args.gradients.b_out.as_mut().map(TensorMut::reborrow),
        },
        accumulate: args.accumulate,
    }
}
