//! A training engine's loop on a GPU: two streams that overlap, buffers that are allocated once, and a recorded graph.
//!
//! `cargo run --release --example engine`; without a GPU it says so and ends.

#![allow(unsafe_code, reason = "a recorded graph points into memory that its caller keeps")]

use da_moe::cuda::{Copies, DeviceMemory, Driver, Most, Stream};
use da_moe::{
    Attention, Backend, Buffer, Cuda, DType, Error, Inputs, Keep, Layer, LayerConfig, Parameters, Result, State, Step,
    TensorMut, TensorRef, Weights,
};

const TOKENS: usize = 4096;
const WIDTH: usize = 512;
const HEADS: usize = 8;
const STEPS: usize = 4;

/// Half of a batch: what is in flight on one stream, allocated once for all steps.
struct Lane {
    stream: Stream<Driver>,
    state: State,
    step: Step,
    x: DeviceMemory<Driver>,
    y: DeviceMemory<Driver>,
}

impl Lane {
    fn new(layer: &Layer<Cuda>) -> Result<Self> {
        let cuda = layer.backend();
        // One workspace serves every layer that is called on this stream.
        let most = Most { tokens: TOKENS, dtype: DType::Bf16, heads: HEADS, keep: Keep::Nothing };
        let workspace = cuda.workspace_bytes(layer.config(), most)?;
        Ok(Self {
            stream: cuda.stream(workspace)?,
            state: layer.state()?,
            step: layer.step(TOKENS, DType::Bf16, Keep::Nothing)?,
            x: cuda.zeros(DType::Bf16, TOKENS * WIDTH)?,
            y: cuda.zeros(DType::Bf16, TOKENS * WIDTH)?,
        })
    }

    /// Queues a forward and returns at once. Here queries and keys are the activations themselves.
    fn forward(&mut self, layer: &Layer<Cuda>, weights: &Weights<'_>) -> Result<()> {
        let Self { stream, state, step, x, y } = self;
        let heads = TensorRef::new(&*x, [TOKENS, HEADS, WIDTH / HEADS])?;
        let inputs = Inputs::new(TensorRef::new(&*x, [TOKENS, WIDTH])?);
        let inputs = inputs.with_attention(Attention::query_key(heads, heads));
        layer.forward(stream, &inputs, weights, state, step, TensorMut::new(y, [TOKENS, WIDTH])?)
    }
}

fn batch(number: usize) -> Buffer {
    let values: Vec<f32> = (0..TOKENS * WIDTH).map(|i| ((i + 31 * number) as f32 * 0.37).sin()).collect();
    Buffer::from_f32(DType::Bf16, &values)
}

fn train() -> Result<()> {
    let cuda = Cuda::open(0)?;
    println!("{}", cuda.describe());
    let layer = Layer::new(cuda.clone(), LayerConfig::da_moe(WIDTH, 1024, 16, 4))?;
    let parameters = Parameters::random(layer.config(), DType::Bf16, 1);
    let copies = Copies::new(&cuda);
    let weights = copies.weights(&parameters.weights()?)?;

    let mut lanes = [Lane::new(&layer)?, Lane::new(&layer)?];
    for number in 0..STEPS {
        // Each half waits for its own stream alone, so the second is prepared while the first is computed.
        for (half, lane) in lanes.iter_mut().enumerate() {
            lane.stream.write(&mut lane.x, &batch(2 * number + half))?;
            lane.forward(&layer, &weights)?;
        }
        for lane in &lanes {
            println!("step {number}: {:.3} experts per token", lane.step.report()?.mean_k);
        }
    }

    // The same calls once more, as one graph: nothing is decided on the host, so new activations need no new recording.
    let [lane, _] = &mut lanes;
    let Lane { stream, state, step, x, y } = &mut *lane;
    let heads = TensorRef::new(&*x, [TOKENS, HEADS, WIDTH / HEADS])?;
    let inputs = Inputs::new(TensorRef::new(&*x, [TOKENS, WIDTH])?);
    let inputs = inputs.with_attention(Attention::query_key(heads, heads));
    let y = TensorMut::new(y, [TOKENS, WIDTH])?;
    let graph = stream.capture(|| layer.forward(stream, &inputs, &weights, state, step, y))?;
    for number in 0..STEPS {
        lane.stream.write(&mut lane.x, &batch(number))?;
        // SAFETY: the lane and the weights are alive, and nothing else uses them until the stream has been waited for.
        unsafe { graph.launch(&lane.stream) }?;
        lane.stream.synchronize()?;
        println!("graph {number}: {:.3} experts per token", lane.step.report()?.mean_k);
    }
    Ok(())
}

fn main() -> Result<()> {
    match train() {
        Err(reason @ (Error::NoDriver { .. } | Error::NoDevice { .. } | Error::KernelsNotBuilt { .. })) => {
            println!("{reason}");
            Ok(())
        }
        other => other,
    }
}
