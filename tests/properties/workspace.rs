//! The header of a stream's workspace is zero between launches: what one stage leaves there another would take for its own
//! counters.

#![allow(unsafe_code, reason = "an engine's own memory and streams are its word")]

use da_moe::cuda::{Copies, Device, DeviceMemory, GradientCopies, Kernels, Most, Stream, Workspace};
use da_moe::{
    Backend, BiasUpdate, CombineArgs, CombineBackwardArgs, DType, ExpertsArgs, ExpertsBackwardArgs, ExpertsPerToken,
    GateArgs, GateBackwardArgs, ImportanceArgs, Inputs, Keep, Layer, LayerConfig, Memory, NullExpert, PermuteArgs,
    PermuteBackwardArgs, Policy, Result, RouterArgs, RoutingArgs, RoutingBackwardArgs, Slice, TensorMut, TensorRef,
};
use da_moe_harness::case::{Case, case, small_config};
use da_moe_harness::data::{Data, poison};
use da_moe_harness::device::{on_every_device, rich};
use da_moe_harness::kernels;
use proptest::prelude::*;
use std::sync::Arc;

/// The kernels, with a look at the header after every stage.
struct Watched<D: Device> {
    kernels: Kernels<D>,
    header: u64,
}

impl<D: Device> Watched<D> {
    fn expect_zeros(&self, stage: &str, stream: &Stream<D>) -> Result<()> {
        let mut header = vec![1; Workspace::HEADER];
        // SAFETY: the stream is of this device, and the workspace on it has a header at that address.
        unsafe { self.kernels.device().download(stream.handle(), self.header, &mut header) }?;
        let left = header.iter().position(|&byte| byte != 0);
        assert_eq!(left, None, "`{stage}` leaves something at this byte of the header");
        Ok(())
    }
}

macro_rules! watched {
    ($($stage:ident: $Args:ident),*) => {
        $(fn $stage(&self, stream: &Stream<D>, args: $Args<'_>) -> Result<()> {
            self.kernels.$stage(stream, args)?;
            self.expect_zeros(stringify!($stage), stream)
        })*
    };
}

impl<D: Device> Backend for Watched<D> {
    type Stream = Stream<D>;

    fn describe(&self) -> String {
        self.kernels.describe()
    }

    fn allocate(&self, dtype: DType, len: usize) -> Result<Memory> {
        self.kernels.allocate(dtype, len)
    }

    fn row_type(&self, storage: DType) -> DType {
        self.kernels.row_type(storage)
    }

    fn check_location(&self, op: &'static str, argument: &'static str, memory: Slice<'_>) -> Result<()> {
        self.kernels.check_location(op, argument, memory)
    }

    fn check_contents(&self, config: &LayerConfig, inputs: &Inputs<'_>, tokens: usize) -> Result<()> {
        self.kernels.check_contents(config, inputs, tokens)
    }

    watched! {
        router: RouterArgs, importance: ImportanceArgs, gate: GateArgs, routing: RoutingArgs, permute: PermuteArgs,
        experts: ExpertsArgs, combine: CombineArgs, combine_backward: CombineBackwardArgs,
        experts_backward: ExpertsBackwardArgs, permute_backward: PermuteBackwardArgs,
        gate_backward: GateBackwardArgs, routing_backward: RoutingBackwardArgs
    }

    fn update_bias(
        &self,
        stream: &Stream<D>,
        update: BiasUpdate,
        load: TensorRef<'_, 1>,
        bias: TensorMut<'_, 1>,
    ) -> Result<()> {
        self.kernels.update_bias(stream, update, load, bias)?;
        self.expect_zeros("update_bias", stream)
    }
}

/// A layer's calls, one after another on one stream, with a look after every stage.
fn watch<D: Device>(kernels: &Kernels<D>, case: &Case) -> Result<()> {
    let data = Data::new(case);
    let copies = Copies::new(kernels);
    let (inputs, weights) = (copies.inputs(&data.inputs()?)?, copies.weights(&data.weights()?)?);
    let bytes = kernels.workspace_bytes(&data.config, Most::of(&inputs, case.keep))?;
    let (own, room) = (kernels.stream(0)?, kernels.zeros(DType::U8, bytes.max(Workspace::HEADER))?);
    // SAFETY: stream and memory outlive what borrows them, and are used through that alone.
    let stream = unsafe {
        let workspace: DeviceMemory<D> = kernels.borrow(DType::U8, room.address(), room.len())?;
        kernels.borrow_stream(own.handle(), workspace)?
    };
    let layer = Layer::new(Watched { kernels: kernels.clone(), header: room.address() }, data.config.clone())?;
    let (mut state, mut step) = (layer.state()?, layer.step(data.tokens, data.dtype, case.keep)?);
    let mut y = kernels.upload(&poison(data.dtype, data.tokens * data.config.hidden_size))?;
    let dy = copies.tensor(&data.dy()?)?;
    let mut host = data.gradients();
    let mut gradients = GradientCopies::like(kernels, &host.view_mut()?)?;
    for _ in 0..2 {
        layer.forward(&stream, &inputs, &weights, &mut state, &mut step, TensorMut::prefix(&mut y, dy.shape())?)?;
        if case.keep != Keep::Nothing {
            layer.backward(&stream, &inputs, &weights, dy, &mut step, &mut gradients.view_mut()?)?;
        }
    }
    Ok(())
}

on_every_device! {
    every_word_that_a_stage_counts_with_is_zero_again: check_rich;
    learned_constants_of_many_or_wide_experts_after_a_price: check_constants;
}

fn check_rich<D: Device>(device: &Arc<D>) {
    for routing in 0..3 {
        watch(&Kernels::new(device.clone()), &Case { routing, ..rich() }).unwrap();
    }
}

/// A ticket for each constant and for each share of its columns, where the search for the price has its words.
fn check_constants<D: Device>(device: &Arc<D>) {
    let policy = ExpertsPerToken::between(Policy::Budget { mean_k: 2.0 }, 0, 4);
    let config = LayerConfig { null_expert: NullExpert::Constant, experts_per_token: policy, ..small_config() };
    for (num_null_experts, hidden_size) in [(9, 12), (1, 2 * 2048 + 8)] {
        let config = LayerConfig { num_null_experts, hidden_size, ..config.clone() };
        watch(&Kernels::new(device.clone()), &Case { dtype: DType::Bf16, ..Case::plain(config) }).unwrap();
    }
}

proptest! {
    #![proptest_config(da_moe_harness::cases(60))]

    #[test]
    fn any_call_leaves_the_header_zero(case in case()) {
        if kernels::is_emulator_wanted() {
            watch(kernels::emulated(case.seed).kernels(), &case).unwrap();
        }
        if let Some(gpu) = kernels::on_gpu() {
            watch(gpu.kernels(), &case).unwrap();
        }
    }
}
