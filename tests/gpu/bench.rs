//! Forward and backward on the shapes that the speed goals are stated for, by the device's own clock.

#![allow(unsafe_code, reason = "a recorded graph's tensors are its caller's word")]

use da_moe::cuda::{Cuda, DeviceMemory, Driver, Graph, Most, Stream};
use da_moe::{
    Activation, Attention, Backend, Buffer, DType, Error, ExpertGradients, ExpertsPerToken, Gradients, Inputs, Keep,
    Layer, LayerConfig, Normalize, Policy, Source, StageTimes, TensorMut, TensorRef, Timed, Weights, bf16,
};
use std::time::Duration;

const REPEATS: usize = 20;
const WARM_UP: usize = 3;

/// Experts for a token.
#[derive(Clone, Copy, Debug)]
enum Experts {
    Fixed(usize),
    /// So many at most, and the mean.
    Mean(usize, f64),
}

struct Shape {
    name: &'static str,
    /// T, D, F, E.
    sizes: [usize; 4],
    experts: Experts,
    activation: Activation,
}

const fn shape(name: &'static str, sizes: [usize; 4], experts: Experts) -> Shape {
    Shape { name, sizes, experts, activation: Activation::Swiglu }
}

use Experts::{Fixed, Mean};

const SHAPES: &[Shape] = &[
    Shape { activation: Activation::Relu, ..shape("switch-base", [4096, 768, 3072, 8], Fixed(1)) },
    Shape { activation: Activation::Relu, ..shape("switch-base", [4096, 768, 3072, 8], Mean(4, 2.0)) },
    shape("marin", [8192, 2048, 3072, 8], Fixed(2)),
    shape("olmoe", [32768, 2048, 1024, 64], Fixed(8)),
    shape("olmoe", [32768, 2048, 1024, 64], Mean(8, 4.0)),
    shape("qwen3-30b", [32768, 2048, 768, 128], Fixed(8)),
    shape("qwen3-30b", [32768, 2048, 768, 128], Mean(8, 4.0)),
    shape("fine-256", [16384, 4096, 1024, 256], Fixed(4)),
    shape("fine-256", [16384, 4096, 1024, 256], Mean(8, 3.0)),
    shape("decode", [64, 2048, 768, 128], Fixed(8)),
];

/// Heads and their width: importance from queries and keys of these.
const HEADS: [usize; 2] = [16, 128];
const SEQUENCE: usize = 4096;

/// Random numbers with deviation about `scale`; never zeros, whose products are faster.
fn random(len: usize, scale: f32, seed: u64) -> Buffer {
    let number = |i: usize| {
        let mut z = (i as u64).wrapping_add(seed << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let unit = (z >> 40) as f32 / (1 << 24) as f32;
        bf16::from_f32((unit - 0.5) * 3.46 * scale)
    };
    (0..len).map(number).collect::<Vec<_>>().into()
}

/// A shape's tensors on the device.
struct Tensors {
    x: DeviceMemory<Driver>,
    q: DeviceMemory<Driver>,
    k: DeviceMemory<Driver>,
    cu_seqlens: DeviceMemory<Driver>,
    router: DeviceMemory<Driver>,
    w_in: DeviceMemory<Driver>,
    w_out: DeviceMemory<Driver>,
}

impl Tensors {
    fn new(cuda: &Cuda, config: &LayerConfig, tokens: usize) -> Result<Self, Error> {
        let (d, e, f) = (config.hidden_size, config.num_experts, config.moe_intermediate_size);
        let [heads, width] = HEADS;
        let starts: Vec<i32> = (0..=tokens.div_ceil(SEQUENCE)).map(|b| (b * SEQUENCE).min(tokens) as i32).collect();
        let fan = |n: usize| 1.0 / (n as f32).sqrt();
        Ok(Self {
            x: cuda.upload(&random(tokens * d, 1.0, 1))?,
            q: cuda.upload(&random(tokens * heads * width, 1.0, 2))?,
            k: cuda.upload(&random(tokens * heads * width, 1.0, 3))?,
            cu_seqlens: cuda.upload(&starts)?,
            router: cuda.upload(&random(e * d, fan(d), 4))?,
            w_in: cuda.upload(&random(e * config.rows_in() * d, fan(d), 5))?,
            w_out: cuda.upload(&random(e * d * f, fan(f), 6))?,
        })
    }

    fn inputs(&self, config: &LayerConfig) -> Result<Inputs<'_>, Error> {
        let (d, [heads, width]) = (config.hidden_size, HEADS);
        let tokens = self.x.len() / d;
        let rows = |memory| TensorRef::new(memory, [tokens, heads, width]);
        Ok(Inputs {
            cu_seqlens: Some(TensorRef::new(&self.cu_seqlens, [self.cu_seqlens.len()])?),
            attention: Some(Attention::query_key(rows(&self.q)?, rows(&self.k)?)),
            ..Inputs::new(TensorRef::new(&self.x, [tokens, d])?)
        })
    }

    fn weights(&self, config: &LayerConfig) -> Result<Weights<'_>, Error> {
        let (d, e, f) = (config.hidden_size, config.num_experts, config.moe_intermediate_size);
        Ok(Weights::new(
            TensorRef::new(&self.router, [e, d])?,
            TensorRef::new(&self.w_in, [e, config.rows_in(), d])?,
            TensorRef::new(&self.w_out, [e, d, f])?,
        ))
    }
}

fn config(shape: &Shape) -> LayerConfig {
    let [_, d, f, e] = shape.sizes;
    let mut config = LayerConfig { hidden_act: shape.activation, ..LayerConfig::da_moe(d, f, e, e.min(8)) };
    config.experts_per_token = match shape.experts {
        Fixed(k) => {
            // A fixed number asks for no importance.
            (config.importance.source, config.importance.normalize) = (Source::External, Normalize::None);
            ExpertsPerToken::new(Policy::Fixed { k })
        }
        Mean(most, mean_k) => ExpertsPerToken::between(Policy::Budget { mean_k }, 1, most),
    };
    config
}

/// Median, smallest and largest, in milliseconds.
fn spread(times: &mut [Duration]) -> [f64; 3] {
    times.sort();
    [times[times.len() / 2], times[0], times[times.len() - 1]].map(|time| time.as_secs_f64() * 1e3)
}

/// Where backward writes.
struct GradientMemory {
    x: DeviceMemory<Driver>,
    router: DeviceMemory<Driver>,
    w_in: DeviceMemory<Driver>,
    w_out: DeviceMemory<Driver>,
}

impl GradientMemory {
    fn new(cuda: &Cuda, tensors: &Tensors) -> Result<Self, Error> {
        let like = |memory: &DeviceMemory<Driver>| cuda.zeros(memory.dtype(), memory.len());
        let (x, router) = (like(&tensors.x)?, like(&tensors.router)?);
        Ok(Self { x, router, w_in: like(&tensors.w_in)?, w_out: like(&tensors.w_out)? })
    }

    fn view_mut(&mut self, x: [usize; 2], weights: &Weights<'_>) -> Result<Gradients<'_>, Error> {
        Ok(Gradients {
            x: TensorMut::new(&mut self.x, x)?,
            router: Some(TensorMut::new(&mut self.router, weights.router.shape())?),
            experts: ExpertGradients {
                w_in: TensorMut::new(&mut self.w_in, weights.experts.w_in.shape())?,
                w_out: TensorMut::new(&mut self.w_out, weights.experts.w_out.shape())?,
                b_in: None,
                b_out: None,
            },
            shared: None,
            constants: None,
            routing: None,
            accumulate: false,
        })
    }
}

/// Time of a recorded call: median, smallest and largest in milliseconds.
fn replayed(stream: &Stream<Driver>, graph: &Graph<Driver>) -> Result<[f64; 3], Error> {
    let mut times = Vec::new();
    for round in 0..WARM_UP + REPEATS {
        // SAFETY: the caller keeps everything that was recorded, and nothing else uses it meanwhile.
        let time = stream.time(|| unsafe { graph.launch(stream) })?;
        times.extend((round >= WARM_UP).then_some(time));
    }
    Ok(spread(&mut times))
}

fn measure(cuda: &Cuda, shape: &Shape) -> Result<String, Error> {
    let (config, [tokens, d, f, _]) = (config(shape), shape.sizes);
    let tensors = Tensors::new(cuda, &config, tokens)?;
    let inputs = match shape.experts {
        Fixed(_) => Inputs { attention: None, ..tensors.inputs(&config)? },
        Mean(..) => tensors.inputs(&config)?,
    };
    let (weights, all) = (tensors.weights(&config)?, [tokens, d]);
    let stream = cuda.stream(cuda.workspace_bytes(&config, Most::of(&inputs, Keep::Hidden))?)?;
    let mut y = cuda.zeros(DType::Bf16, tokens * d)?;
    let dy = cuda.upload(&random(tokens * d, 1.0, 7))?;
    let dy = TensorRef::new(&dy, all)?;
    let mut gradients = GradientMemory::new(cuda, &tensors)?;

    let staged = Layer::new(Timed::new(cuda.clone()), config.clone())?;
    let (mut state, mut step) = (staged.state()?, staged.step(tokens, DType::Bf16, Keep::Hidden)?);
    let mut rounds = Vec::new();
    for round in 0..WARM_UP + REPEATS {
        staged.forward(&stream, &inputs, &weights, &mut state, &mut step, TensorMut::new(&mut y, all)?)?;
        staged.backward(&stream, &inputs, &weights, dy, &mut step, &mut gradients.view_mut(all, &weights)?)?;
        let times = staged.backend().take();
        rounds.extend((round >= WARM_UP).then_some(times));
    }
    let stage = |of: fn(&StageTimes) -> Duration| spread(&mut rounds.iter().map(of).collect::<Vec<_>>())[0];

    let layer = Layer::new(cuda.clone(), config.clone())?;
    let forward = stream
        .capture(|| layer.forward(&stream, &inputs, &weights, &mut state, &mut step, TensorMut::new(&mut y, all)?))?;
    let [median, min, max] = replayed(&stream, &forward)?;
    let backward = stream.capture(|| {
        layer.backward(&stream, &inputs, &weights, dy, &mut step, &mut gradients.view_mut(all, &weights)?)
    })?;
    let [back, back_min, back_max] = replayed(&stream, &backward)?;
    let report = step.report()?;
    let operations = shape.activation.row_operations(d, f) * report.rows as f64;
    let experts = stage(|times| times.experts);
    Ok(format!(
        "{:<12} mean k {:.2} rows {:>6}  forward {median:.3} ms ({min:.3} to {max:.3}) {:.0} TFLOP/s  backward {back:.3} ms \
         ({back_min:.3} to {back_max:.3}) {:.0} TFLOP/s\n{:<12} importance {:.3} gate {:.3} permute {:.3} experts {experts:.3} \
         ({:.0} TFLOP/s) combine {:.3}; back: combine {:.3} experts {:.3} permute {:.3} gate {:.3}",
        shape.name,
        report.mean_k,
        report.rows,
        operations / median / 1e9,
        2.0 * operations / back / 1e9,
        "",
        stage(|times| times.importance),
        stage(|times| times.gate),
        stage(|times| times.permute),
        operations / experts / 1e9,
        stage(|times| times.combine),
        stage(|times| times.combine_backward),
        stage(|times| times.experts_backward),
        stage(|times| times.permute_backward),
        stage(|times| times.gate_backward),
    ))
}

#[test]
#[ignore = "asked for by name"]
fn layer() {
    let cuda = Cuda::open(0).unwrap_or_else(|error| panic!("{error}"));
    println!("# {}; bf16; median of {REPEATS}; stages one by one, each waited for", cuda.describe());
    for shape in SHAPES {
        match measure(&cuda, shape) {
            Ok(line) => println!("{line}"),
            Err(error) => println!("{:<12} {error}", shape.name),
        }
    }
}
