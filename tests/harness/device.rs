//! A layer as an engine calls it: tensors on the device, a stream, a workspace of exactly the size that was asked for.

use super::Subject;
use super::case::{Case, attention_source, small_config};
use super::data::{Data, poison};
use da_moe::cuda::{Copies, Device, DeviceMemory, Failing, GradientCopies, Kernels, Most, StandIn, Stream};
use da_moe::{
    AttentionSource, DType, Error, ExpertsPerToken, Gradients, Inputs, Keep, Layer, LayerConfig, Normalize, NullExpert,
    Policy, State, Step, TensorMut, TensorRef, Weights,
};
use da_moe_reference::check::Outcome;
use std::sync::Arc;

/// Each check runs on the emulator, and on the GPU where there is one.
#[macro_export]
macro_rules! on_every_device {
    ($($name:ident: $check:ident;)*) => {
        $(
            #[test]
            fn $name() {
                $crate::kernels::on_each(
                    |staged| $check(staged.kernels().device()),
                    |staged| $check(staged.kernels().device()),
                );
            }
        )*
    };
}

pub use on_every_device;

/// A device that counts, and may fail.
pub fn counted<D: Device>(device: &Arc<D>, failing: Option<Failing>) -> Kernels<StandIn<D>> {
    Kernels::new(Arc::new(StandIn::new(device.clone(), failing)))
}

/// A layer with something in every stage: attention, a rule over sequences, a price, capacity, null and shared experts.
pub fn rich() -> Case {
    let mut config = LayerConfig {
        num_null_experts: 3,
        null_expert: NullExpert::Constant,
        shared_intermediate_size: 5,
        ..small_config()
    };
    config.importance.source = attention_source(AttentionSource::ReceivedMax);
    config.importance.normalize = Normalize::MinMax;
    config.experts_per_token = ExpertsPerToken::between(Policy::Budget { mean_k: 2.0 }, 0, 4);
    config.router.capacity_factor = Some(1.0);
    Case { dtype: DType::Bf16, masked_every: 5, biases: true, router_bias: true, ..Case::plain(config) }
}

/// A call's tensors on the device, with an engine for it.
pub fn with_engine<D: Device>(
    kernels: &Kernels<D>,
    case: &Case,
    run: impl FnOnce(&Data, &mut Engine<D>, &Inputs<'_>, &Weights<'_>),
) {
    let data = Data::new(case);
    let copies = Copies::new(kernels);
    let inputs = copies.inputs(&data.inputs().unwrap()).unwrap();
    let weights = copies.weights(&data.weights().unwrap()).unwrap();
    run(&data, &mut Engine::new(kernels, &data, case, 0).unwrap(), &inputs, &weights);
}

/// The kernels under [`Layer`], with everything on the device.
pub struct OnDevice<D: Device>(pub Kernels<D>);

/// Everything that one layer's calls need.
pub struct Engine<D: Device> {
    pub layer: Layer<Kernels<D>>,
    pub stream: Stream<D>,
    pub state: State,
    pub step: Step,
    pub y: DeviceMemory<D>,
}

impl<D: Device> Engine<D> {
    /// For calls of up to `room` more tokens than the case's.
    pub fn new(kernels: &Kernels<D>, data: &Data, case: &Case, room: usize) -> Result<Self, Error> {
        let tokens = data.tokens + room;
        let most = Most { tokens, ..Most::of(&data.inputs()?, case.keep) };
        let layer = Layer::new(kernels.clone(), data.config.clone())?;
        Ok(Self {
            stream: kernels.stream(kernels.workspace_bytes(&data.config, most)?)?,
            state: layer.state()?,
            step: layer.step(tokens, data.dtype, case.keep)?,
            y: kernels.upload(&poison(data.dtype, tokens * data.config.hidden_size))?,
            layer,
        })
    }

    pub fn forward(&mut self, inputs: &Inputs<'_>, weights: &Weights<'_>) -> Result<(), Error> {
        let Self { layer, stream, state, step, y } = self;
        layer.forward(stream, inputs, weights, state, step, TensorMut::prefix(y, inputs.x.shape())?)
    }

    pub fn backward(
        &mut self,
        inputs: &Inputs<'_>,
        weights: &Weights<'_>,
        dy: TensorRef<'_, 2>,
        gradients: &mut Gradients<'_>,
    ) -> Result<(), Error> {
        self.layer.backward(&self.stream, inputs, weights, dy, &mut self.step, gradients)
    }

    /// What the last calls left.
    pub fn outcome(&self, data: &Data, gradients: Option<&Gradients<'_>>) -> Result<Outcome, Error> {
        let y = TensorRef::prefix(&self.y, [data.tokens, data.config.hidden_size])?;
        Outcome::from_step(&self.step, y, gradients)
    }
}

impl<D: Device> Subject for OnDevice<D> {
    fn name(&self) -> String {
        format!("{:?}, tensors on the device", self.0)
    }

    fn run(&self, data: &Data, case: &Case) -> Result<Outcome, Error> {
        let copies = Copies::new(&self.0);
        let (inputs, weights) = (copies.inputs(&data.inputs()?)?, copies.weights(&data.weights()?)?);
        let mut engine = Engine::new(&self.0, data, case, 3)?;
        engine.forward(&inputs, &weights)?;
        if case.keep == Keep::Nothing {
            return engine.outcome(data, None);
        }
        let mut host = data.gradients();
        let mut gradients = GradientCopies::like(&self.0, &host.view_mut()?)?;
        let mut gradients = gradients.view_mut()?;
        engine.backward(&inputs, &weights, copies.tensor(&data.dy()?)?, &mut gradients)?;
        engine.outcome(data, Some(&gradients))
    }
}
