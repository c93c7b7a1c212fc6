//! The kernels on host tensors: every stage copies in, launches and copies out. Slow on purpose: it lets one set of tests
//! run the kernels on the emulator and on a GPU, stage by stage, under the same [`Layer`](crate::Layer) as every backend.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::device::Device;
use super::tray::{Output, Tray};
use super::{abi, attention, combine, experts, gate, importance, permute, staged_gradients};
use crate::{
    Attention, Backend, BiasUpdate, Buffer, CombineArgs, CombineBackwardArgs, Cpu, DType, ExpertsArgs,
    ExpertsBackwardArgs, GateArgs, GateBackwardArgs, ImportanceArgs, Inputs, LayerConfig, PermuteArgs,
    PermuteBackwardArgs, Result, RouterArgs, Routing, RoutingArgs, RoutingBackwardArgs, Rows, Source, TensorMut,
    TensorRef,
};

pub(super) const STORAGE: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// The layer by kernels on `D`, but for a router of another type than `x`, the experts' way back and the two products of the
/// router's: those on the host, until they have kernels.
#[derive(Clone, Debug)]
pub struct Staged<D> {
    device: D,
    host: Cpu,
    tokens_per_warp: Option<usize>,
    factors: experts::Factors,
}

impl<D: Device> Staged<D> {
    /// Stages on `device`.
    pub fn new(device: D) -> Self {
        Self { device, host: Cpu::new(), tokens_per_warp: None, factors: experts::Factors::F32 }
    }

    /// The same with so many tokens for each warp of the gate, whatever the number of tokens: what large batches do, in a
    /// small one.
    pub fn tokens_per_warp(self, tokens: usize) -> Self {
        Self { tokens_per_warp: Some(tokens), ..self }
    }

    /// The same with f32 operands multiplied as `factors` says.
    pub fn factors(self, factors: experts::Factors) -> Self {
        Self { factors, ..self }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    fn tray(&self, stage: &'static str) -> Tray<'_, D> {
        Tray::new(&self.device, stage)
    }
}

/// The selection's outputs, which gate and routing share.
struct SelectionOutputs<'a> {
    k: Output<'a, i32>,
    experts: Output<'a, i32>,
    weights: Output<'a, f32>,
    ranked: Output<'a, i32>,
    load: Output<'a, i32>,
    unmasked: Output<'a, i32>,
    losses: Output<'a, f32>,
}

impl<'a> SelectionOutputs<'a> {
    fn new<D: Device>(
        tray: &mut Tray<'_, D>,
        selection: crate::SelectionMut<'a>,
        load: TensorMut<'a, 1>,
        unmasked: TensorMut<'a, 1>,
        losses: TensorMut<'a, 1>,
    ) -> Result<Self> {
        Ok(Self {
            k: tray.output("k", selection.k)?,
            experts: tray.output("experts", selection.experts)?,
            weights: tray.output("weights", selection.weights)?,
            ranked: tray.output("ranked", selection.ranked)?,
            load: tray.output("load", load)?,
            unmasked: tray.output("unmasked", unmasked)?,
            losses: tray.output("losses", losses)?,
        })
    }

    fn take<D: Device>(self, tray: &Tray<'_, D>) -> Result<()> {
        let integers = [self.k, self.experts, self.ranked, self.load, self.unmasked];
        integers.into_iter().try_for_each(|output| tray.take(output))?;
        [self.weights, self.losses].into_iter().try_for_each(|output| tray.take(output))
    }
}

/// Whether any part of a source is read off attention.
fn reads_attention(source: &Source) -> bool {
    match source {
        Source::Attention { .. } => true,
        Source::Mix(parts) => parts.iter().any(|part| reads_attention(&part.source)),
        _ => false,
    }
}

/// What attention sources read, on the device.
fn attention_on<D: Device>(tray: &mut Tray<'_, D>, from: &Attention<'_>) -> Result<attention::Attention> {
    match from {
        Attention::Probabilities(p) => {
            let ([_, heads, side, _], strides) = (p.shape(), p.strides());
            let matrix = abi::ImportanceProbabilities {
                probabilities: tray.storage("attn_probs", p)?,
                sequence_stride: strides[0] as i64,
                head_stride: strides[1] as i64,
                row_stride: strides[2] as i64,
                side: side as i32,
                ..Default::default()
            };
            Ok(attention::Attention::Probabilities(attention::Probabilities { dtype: p.dtype(), heads, matrix }))
        }
        Attention::QueryKey { q, k, lse } => {
            let ([_, heads, width], [_, key_heads, _]) = (q.shape(), k.shape());
            let tensors = abi::ImportanceQueryKey {
                q: tray.storage("q", q)?,
                q_token_stride: q.strides()[0] as i64,
                q_head_stride: q.strides()[1] as i64,
                k: tray.storage("k", k)?,
                k_token_stride: k.strides()[0] as i64,
                k_head_stride: k.strides()[1] as i64,
                lse: tray.optional("lse", lse)?,
                lse_stride: lse.as_ref().map_or(0, row_stride),
                width: width as i32,
                ..Default::default()
            };
            Ok(attention::Attention::QueryKey(attention::QueryKey { dtype: q.dtype(), heads, key_heads, tensors }))
        }
    }
}

/// Refuses types that combine has no kernel for.
fn check_types(args: &CombineArgs<'_>) -> Result<()> {
    let (op, storage, rows) = ("combine", args.x.dtype(), args.rows.dtype());
    args.x.expect_dtype(op, "x", &STORAGE)?;
    args.rows.expect_dtype(op, "rows", &[storage, DType::F32])?;
    args.shared.map_or(Ok(()), |shared| shared.expect_dtype(op, "shared", &[rows]))?;
    args.constants.map_or(Ok(()), |constants| constants.expect_dtype(op, "constants", &[storage]))?;
    args.y.expect_dtype(op, "y", &[storage])
}

/// A product with the weights `[E, rows, depth]` and biases of some experts; the rest is to be set.
fn product<D: Device>(
    tray: &mut Tray<'_, D>,
    storage: DType,
    weights: &TensorRef<'_, 3>,
    bias: &Option<TensorRef<'_, 2>>,
    [weights_name, bias_name]: [&'static str; 2],
) -> Result<abi::GroupedGemm> {
    weights.expect_dtype("experts", weights_name, &[storage])?;
    bias.map_or(Ok(()), |bias| bias.expect_dtype("experts", bias_name, &[storage]))?;
    let ([experts, _, depth], [expert_stride, ..]) = (weights.shape(), weights.strides());
    Ok(abi::GroupedGemm {
        b: tray.storage(weights_name, weights)?,
        bias: tray.optional_storage(bias_name, bias)?,
        b_expert_stride: expert_stride as i64,
        b_stride: row_stride(weights),
        bias_stride: bias.as_ref().map_or(0, row_stride),
        experts: experts as i32,
        depth: depth as i32,
        ..Default::default()
    })
}

/// The last of some offsets, when it is one: rows that there are.
fn last(offsets: &TensorRef<'_, 1>) -> usize {
    let last = offsets.elements::<i32>().and_then(|offsets| offsets.last().copied());
    last.and_then(|rows| usize::try_from(rows).ok()).unwrap_or(0)
}

/// The distance between a matrix's rows.
pub(super) fn row_stride<const R: usize>(view: &TensorRef<'_, R>) -> i64 {
    view.strides()[R - 2] as i64
}

impl<D: Device + Clone> Backend for Staged<D> {
    type Stream = ();

    fn describe(&self) -> String {
        self.device.describe()
    }

    fn allocate(&self, dtype: DType, len: usize) -> Result<Buffer> {
        self.host.allocate(dtype, len)
    }

    fn intermediate(&self, storage: DType) -> DType {
        self.host.intermediate(storage)
    }

    fn check_contents(&self, config: &LayerConfig, inputs: &Inputs<'_>, tokens: usize) -> Result<()> {
        self.host.check_contents(config, inputs, tokens)
    }

    fn router(&self, stream: &(), args: RouterArgs<'_>) -> Result<()> {
        if args.weight.dtype() != args.x.dtype() {
            return self.host.router(stream, args);
        }
        args.check()?;
        args.x.expect_dtype("router", "x", &STORAGE)?;
        let mut tray = self.tray("router");
        let ([tokens, width], [candidates, _]) = (args.x.shape(), args.weight.shape());
        let logits = tray.output::<f32, 2>("logits", args.logits)?;
        let p = abi::GroupedGemm {
            a: tray.storage("x", &args.x)?,
            b: tray.storage("router.weight", &args.weight)?,
            out: logits.address().cast(),
            a_stride: row_stride(&args.x),
            b_stride: row_stride(&args.weight),
            out_stride: candidates as i64,
            rows: tokens as i32,
            a_rows: tokens as i32,
            experts: 1,
            depth: width as i32,
            columns: candidates as i32,
            activation: abi::ACTIVATION_NONE,
            out_f32: 1,
            ..Default::default()
        };
        // SAFETY: every address is of an allocation as large as the tensor it stands for.
        unsafe { tray.run(experts::calls(args.x.dtype(), experts::Factors::F32, self.device.multiprocessors(), p)) }?;
        tray.take(logits)
    }

    fn importance(&self, stream: &(), args: ImportanceArgs<'_>) -> Result<()> {
        args.check()?;
        let Some(config) = args.config else {
            return self.host.importance(stream, args);
        };
        let mut tray = self.tray("importance");
        let attention = args.attention.as_ref().filter(|_| reads_attention(&config.source));
        let attention = attention.map(|attention| attention_on(&mut tray, attention)).transpose()?;
        let state = tray.in_out("state", args.state)?;
        let out = tray.output("importance", args.importance)?;
        let tensors = importance::Tensors {
            tokens: args.logits.shape()[0],
            sequences: args.cu_seqlens.map_or(1, |bounds| bounds.shape()[0] - 1),
            cu_seqlens: tray.optional("cu_seqlens", &args.cu_seqlens)?,
            mask: tray.optional("mask", &args.mask)?,
            attention,
            external: tray.optional("external", &args.external)?,
            token_ids: tray.optional("token_ids", &args.token_ids)?,
            token_frequency: tray.optional("token_frequency", &args.token_frequency)?,
            vocabulary: args.token_frequency.map_or(0, |table| table.shape()[0]),
            logits: tray.input("logits", &args.logits)?,
            logits_stride: row_stride(&args.logits) as usize,
            candidates: args.logits.shape()[1],
            experts: args.experts,
            state: state.address(),
            training: args.training,
            importance: out.address(),
        };
        let workspace = tray.workspace(importance::workspace(&tensors))?;
        // SAFETY: every address above is of an allocation as large as the tensor that was checked.
        importance::calls(config, &tensors, workspace, |call| unsafe { tray.run([call]) })?;
        tray.take(state)?;
        tray.take(out)
    }

    fn gate(&self, _: &(), args: GateArgs<'_>) -> Result<()> {
        args.check()?;
        let mut tray = self.tray("gate");
        let tokens = args.logits.shape()[0];
        let mut p = gate::parameters(args.config, tokens, args.training);
        p.tokens_per_warp = self.tokens_per_warp.map_or(p.tokens_per_warp, |tokens| tokens as i32);
        p.logits = tray.input("logits", &args.logits)?;
        p.logits_stride = row_stride(&args.logits);
        p.importance = tray.input("importance", &args.importance)?;
        p.bias = tray.optional("bias", &args.bias)?;
        p.mask = tray.optional("mask", &args.mask)?;
        p.k_given = tray.optional("k_given", &args.k_given)?;
        let state = tray.in_out("state", args.state)?;
        let outputs = SelectionOutputs::new(&mut tray, args.selection, args.load, args.unmasked, args.losses)?;
        p.state = state.address();
        (p.k, p.experts) = (outputs.k.address(), outputs.experts.address());
        (p.weights, p.ranked) = (outputs.weights.address(), outputs.ranked.address());
        (p.load, p.unmasked) = (outputs.load.address(), outputs.unmasked.address());
        p.losses = outputs.losses.address();
        let workspace = gate::place(&mut p, 0);
        gate::place(&mut p, tray.workspace(workspace)?);
        if let Some(mut budget) = gate::budget(args.config, tokens) {
            (budget.importance, budget.mask, budget.k) = (p.importance, p.mask, p.k);
            let workspace = gate::place_budget(&mut budget, 0);
            gate::place_budget(&mut budget, tray.workspace(workspace)?);
            // SAFETY: every address is of an allocation as large as the tensor or workspace it stands for.
            unsafe { tray.run(gate::budget_calls(budget)) }?;
        }
        // SAFETY: as above.
        unsafe { tray.run(gate::calls(p)) }?;
        tray.take(state)?;
        outputs.take(&tray)
    }

    fn routing(&self, _: &(), args: RoutingArgs<'_>) -> Result<()> {
        args.check()?;
        let mut tray = self.tray("routing");
        let [tokens, slots] = args.selection.experts.shape();
        let mut p = gate::routing(tokens, args.candidates, slots);
        p.tokens_per_warp = self.tokens_per_warp.map_or(p.tokens_per_warp, |tokens| tokens as i32);
        match &args.routing {
            Routing::Padded { experts, weights } => {
                p.given_experts = tray.input("routing.experts", experts)?;
                p.given_weights = tray.input("routing.weights", weights)?;
                (p.experts_stride, p.weights_stride) = (row_stride(experts), row_stride(weights));
                p.columns = experts.shape()[1] as i32;
            }
            Routing::Csr { offsets, experts, weights } => {
                p.offsets = tray.input("routing.offsets", offsets)?;
                p.given_experts = tray.input("routing.experts", experts)?;
                p.given_weights = tray.input("routing.weights", weights)?;
                p.entries = experts.shape()[0] as i32;
            }
        }
        p.mask = tray.optional("mask", &args.mask)?;
        let outputs = SelectionOutputs::new(&mut tray, args.selection, args.load, args.unmasked, args.losses)?;
        (p.k, p.experts) = (outputs.k.address(), outputs.experts.address());
        (p.weights, p.ranked) = (outputs.weights.address(), outputs.ranked.address());
        (p.load, p.unmasked) = (outputs.load.address(), outputs.unmasked.address());
        p.losses = outputs.losses.address();
        let workspace = gate::place_routing(&mut p, 0);
        gate::place_routing(&mut p, tray.workspace(workspace)?);
        // SAFETY: every address is of an allocation as large as the tensor or workspace it stands for.
        unsafe { tray.run(gate::routing_calls(p)) }?;
        outputs.take(&tray)
    }

    fn permute(&self, _: &(), args: PermuteArgs<'_>) -> Result<()> {
        args.check()?;
        let mut tray = self.tray("permute");
        let [tokens, _] = args.selection.experts.shape();
        let mut p = permute::parameters(args.config, tokens);
        p.experts = tray.input("selection.experts", &args.selection.experts)?;
        p.weights = tray.input("selection.weights", &args.selection.weights)?;
        p.experts_stride = row_stride(&args.selection.experts);
        p.weights_stride = row_stride(&args.selection.weights);
        let counts = tray.output("counts", args.plan.counts)?;
        let mut rows = vec![0i32; args.config.num_experts + 1];
        let mut offsets_to = args.plan.offsets;
        let offsets = tray.output("offsets", TensorMut::new(&mut rows[..], offsets_to.shape())?)?;
        let row_token = tray.output("row_token", args.plan.row_token)?;
        let row_weight = tray.output("row_weight", args.plan.row_weight)?;
        let token_row = tray.output("token_row", args.plan.token_row)?;
        let dropped = tray.output("dropped", args.plan.dropped)?;
        (p.counts, p.offsets, p.dropped) = (counts.address(), offsets.address(), dropped.address());
        (p.row_token, p.row_weight, p.token_row) = (row_token.address(), row_weight.address(), token_row.address());
        let workspace = permute::place(&mut p, 0);
        permute::place(&mut p, tray.workspace(workspace)?);
        // SAFETY: every address is of an allocation as large as the tensor or workspace it stands for.
        unsafe { tray.run(permute::calls(p)) }?;
        tray.take(offsets)?;
        if let Some(to) = offsets_to.reborrow().into_elements::<i32>() {
            to.copy_from_slice(&rows);
        }
        let count = rows[rows.len() - 1] as usize;
        tray.take_first(row_token, count)?;
        tray.take_first(row_weight, count)?;
        [counts, token_row, dropped].into_iter().try_for_each(|output| tray.take(output))
    }

    fn experts(&self, _: &(), args: ExpertsArgs<'_>) -> Result<()> {
        args.check()?;
        let op = "experts";
        let storage = args.x.dtype();
        args.x.expect_dtype(op, "x", &STORAGE)?;
        args.out.expect_dtype(op, "out", &[storage, DType::F32])?;
        let mut tray = self.tray(op);
        let ([tokens, hidden], [count, _, width]) = (args.x.shape(), args.weights.w_out.shape());
        let room = args.out.shape()[0];
        let mut first = product(&mut tray, storage, &args.weights.w_in, &args.weights.b_in, ["w_in", "b_in"])?;
        let mut second = product(&mut tray, storage, &args.weights.w_out, &args.weights.b_out, ["w_out", "b_out"])?;
        let rows = match args.rows {
            Rows::Routed { offsets, row_token, .. } => {
                first.offsets = tray.input("offsets", &offsets)?;
                first.row_token = tray.input("row_token", &row_token)?;
                last(&offsets).min(room)
            }
            Rows::All => tokens,
        };
        (second.offsets, second.rows) = (first.offsets, if first.offsets.is_null() { rows } else { room } as i32);
        let stride = experts::activated_stride(width);
        let activated = tray.scratch("activated", room * stride * storage.size())?;
        let out_f32 = i32::from(args.out.as_ref().dtype() == DType::F32);
        let out = tray.storage_output("out", args.out)?;
        let kept = match args.hidden {
            None => None,
            Some(kept) => {
                kept.expect_dtype(op, "hidden", &[storage, DType::F32])?;
                first.hidden_f32 = i32::from(kept.as_ref().dtype() == DType::F32);
                first.hidden_stride = kept.shape()[1] as i64;
                Some(tray.storage_output("hidden", kept)?)
            }
        };
        let rows_kept = first.hidden_stride as usize * rows;
        first = abi::GroupedGemm {
            a: tray.storage("x", &args.x)?,
            out: activated as *mut _,
            hidden: kept.as_ref().map_or(std::ptr::null_mut(), Output::address),
            a_stride: row_stride(&args.x),
            out_stride: stride as i64,
            rows: second.rows,
            a_rows: tokens as i32,
            columns: width as i32,
            activation: experts::activation(args.activation),
            out_f32: i32::from(storage == DType::F32),
            ..first
        };
        second = abi::GroupedGemm {
            a: activated as *const _,
            out: out.address(),
            a_stride: stride as i64,
            out_stride: hidden as i64,
            a_rows: room as i32,
            columns: hidden as i32,
            activation: abi::ACTIVATION_NONE,
            out_f32,
            ..second
        };
        debug_assert!(first.experts as usize == count && second.experts as usize == count);
        let multiprocessors = self.device.multiprocessors();
        for p in [first, second] {
            // SAFETY: every address is of an allocation as large as the tensor or workspace it stands for.
            unsafe { tray.run(experts::calls(storage, self.factors, multiprocessors, p)) }?;
        }
        kept.map_or(Ok(()), |kept| tray.take_first(kept, rows_kept))?;
        tray.take_first(out, rows * hidden)
    }

    fn combine(&self, _: &(), args: CombineArgs<'_>) -> Result<()> {
        args.check()?;
        let mut tray = self.tray("combine");
        let [tokens, width] = args.x.shape();
        let (storage, rows) = (args.x.dtype(), args.rows.dtype());
        check_types(&args)?;
        let mut p = abi::Combine {
            experts: tray.input("selection.experts", &args.selection.experts)?,
            weights: tray.input("selection.weights", &args.selection.weights)?,
            token_row: tray.input("plan.token_row", &args.plan.token_row)?,
            experts_stride: row_stride(&args.selection.experts),
            weights_stride: row_stride(&args.selection.weights),
            token_row_stride: row_stride(&args.plan.token_row),
            rows: tray.storage("rows", &args.rows)?,
            rows_stride: row_stride(&args.rows),
            shared: tray.optional_storage("shared", &args.shared)?,
            shared_stride: args.shared.as_ref().map_or(0, row_stride),
            x: tray.storage("x", &args.x)?,
            x_stride: row_stride(&args.x),
            constants: tray.optional_storage("constants", &args.constants)?,
            constants_stride: args.constants.as_ref().map_or(0, row_stride),
            tokens: tokens as i32,
            width: width as i32,
            slots: args.selection.experts.shape()[1] as i32,
            routed: args.experts as i32,
            nulls: args.constants.map_or(i32::MAX, |constants| constants.shape()[0] as i32),
            null_kind: combine::null_kind(args.null_expert),
            row_count: args.rows.shape()[0] as i32,
            ..Default::default()
        };
        let y = tray.storage_output("y", args.y)?;
        p.y = y.address();
        // SAFETY: every address is of an allocation as large as the tensor it stands for.
        unsafe { tray.run(combine::calls(storage, rows, p)) }?;
        tray.take(y)
    }

    fn combine_backward(&self, _: &(), args: CombineBackwardArgs<'_>) -> Result<()> {
        staged_gradients::combine(self.tray("combine_backward"), args)
    }

    fn experts_backward(&self, stream: &(), args: ExpertsBackwardArgs<'_>) -> Result<()> {
        self.host.experts_backward(stream, args)
    }

    fn permute_backward(&self, _: &(), args: PermuteBackwardArgs<'_>) -> Result<()> {
        staged_gradients::permute(self.tray("permute_backward"), args)
    }

    fn gate_backward(&self, _: &(), args: GateBackwardArgs<'_>) -> Result<()> {
        staged_gradients::gate(self.tray("gate_backward"), args, self.tokens_per_warp)
    }

    fn routing_backward(&self, _: &(), args: RoutingBackwardArgs<'_>) -> Result<()> {
        staged_gradients::routing(self.tray("routing_backward"), args)
    }

    fn update_bias(&self, _: &(), update: BiasUpdate, load: TensorRef<'_, 1>, bias: TensorMut<'_, 1>) -> Result<()> {
        let mut tray = self.tray("update_bias");
        load.expect_shape("update_bias", "load", bias.shape())?;
        let candidates = bias.shape()[0] as i32;
        let load = tray.input("load", &load)?;
        let bias = tray.in_out("bias", bias)?;
        let p = abi::GateBias { load, bias: bias.address(), candidates, ..Default::default() };
        // SAFETY: both are allocations of `candidates` elements.
        unsafe { tray.run([gate::bias_call(update, p)]) }?;
        tray.take(bias)
    }
}
