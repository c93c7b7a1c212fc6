//! Forward and backward on the shapes that the speed goals are stated for, by the device's own clock. Outputs are poisoned and
//! checked before any time is believed, and before every timed call the cache is filled with something else.

#![allow(unsafe_code, reason = "a recorded graph's tensors, and parts of a tensor, are their caller's word")]

mod drawn;

use da_moe::cuda::{Device, DeviceMemory, Driver, Graph, Most, Stream};
use da_moe::{
    Activation, Attention, Backend, Cuda, DType, ExpertGradients, ExpertsPerToken, Gradients, Inputs, Keep, Layer,
    LayerConfig, Normalize, Policy, Source, StageTimes, TensorMut, TensorRef, Timed, Weights,
};
use drawn::{W_IN, W_OUT, X, expect_rows, fan, random};
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

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
    shape("decode", [64, 2048, 768, 128], Mean(8, 4.0)),
    // Two dense products: what these kernels reach where nothing is ragged.
    Shape { activation: Activation::Relu, ..shape("one-expert", [8192, 4096, 8192, 1], Fixed(1)) },
];

/// Heads and their width: importance from queries and keys of these.
const HEADS: [usize; 2] = [16, 128];
const SEQUENCE: usize = 4096;

/// Larger than any cache.
const FLUSH: usize = 256 << 20;

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
    fn new(cuda: &Cuda, config: &LayerConfig, tokens: usize) -> Result<Self> {
        let (d, e, f) = (config.hidden_size, config.num_experts, config.moe_intermediate_size);
        let [heads, width] = HEADS;
        let starts: Vec<i32> = (0..=tokens.div_ceil(SEQUENCE)).map(|b| (b * SEQUENCE).min(tokens) as i32).collect();
        Ok(Self {
            x: cuda.upload(&random(tokens * d, 1.0, X))?,
            q: cuda.upload(&random(tokens * heads * width, 1.0, 2))?,
            k: cuda.upload(&random(tokens * heads * width, 1.0, 3))?,
            cu_seqlens: cuda.upload(&starts)?,
            router: cuda.upload(&random(e * d, fan(d), 4))?,
            w_in: cuda.upload(&random(e * config.rows_in() * d, fan(d), W_IN))?,
            w_out: cuda.upload(&random(e * d * f, fan(f), W_OUT))?,
        })
    }

    fn inputs(&self, config: &LayerConfig) -> Result<Inputs<'_>> {
        let (d, [heads, width]) = (config.hidden_size, HEADS);
        let tokens = self.x.len() / d;
        let rows = |memory| TensorRef::new(memory, [tokens, heads, width]);
        Ok(Inputs {
            cu_seqlens: Some(TensorRef::new(&self.cu_seqlens, [self.cu_seqlens.len()])?),
            attention: Some(Attention::query_key(rows(&self.q)?, rows(&self.k)?)),
            ..Inputs::new(TensorRef::new(&self.x, [tokens, d])?)
        })
    }

    fn weights(&self, config: &LayerConfig) -> Result<Weights<'_>> {
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
    fn new(cuda: &Cuda, tensors: &Tensors) -> Result<Self> {
        let like = |memory: &DeviceMemory<Driver>| cuda.zeros(memory.dtype(), memory.len());
        let (x, router) = (like(&tensors.x)?, like(&tensors.router)?);
        Ok(Self { x, router, w_in: like(&tensors.w_in)?, w_out: like(&tensors.w_out)? })
    }

    fn view_mut(&mut self, x: [usize; 2], weights: &Weights<'_>) -> Result<Gradients<'_>> {
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

/// A GPU, and what is written between measurements so that nothing of them is in its cache.
struct Bench {
    cuda: Cuda,
    flush: DeviceMemory<Driver>,
}

impl Bench {
    fn new(cuda: Cuda) -> Result<Self> {
        Ok(Self { flush: cuda.zeros(DType::U8, FLUSH)?, cuda })
    }

    fn fill(&self, stream: &Stream<Driver>, memory: &DeviceMemory<Driver>, value: u8) -> Result<()> {
        let bytes = memory.len() * memory.dtype().size();
        // SAFETY: the stream and the memory are this device's.
        Ok(unsafe { self.cuda.device().fill(stream.handle(), memory.address(), value, bytes) }?)
    }

    /// Time of what is queued: median, smallest and largest in milliseconds.
    fn spread(
        &self,
        stream: &Stream<Driver>,
        mut queue: impl FnMut() -> std::result::Result<(), da_moe::Error>,
    ) -> Result<[f64; 3]> {
        let mut times = Vec::new();
        for round in 0..WARM_UP + REPEATS {
            self.fill(stream, &self.flush, round as u8)?;
            let time = stream.time(&mut queue)?;
            times.extend((round >= WARM_UP).then_some(time));
        }
        Ok(spread(&mut times))
    }

    /// Time of a recorded call.
    fn replayed(&self, stream: &Stream<Driver>, graph: &Graph<Driver>) -> Result<[f64; 3]> {
        // SAFETY: the caller keeps everything that was recorded, and nothing else uses it meanwhile.
        self.spread(stream, || unsafe { graph.launch(stream) })
    }

    /// What memory can do: half a gibibyte to another place, read and written.
    fn copy_ceiling(&self) -> Result<String> {
        let bytes = 512 << 20;
        let [from, to] = [self.cuda.zeros(DType::U8, bytes)?, self.cuda.zeros(DType::U8, bytes)?];
        let stream = self.cuda.stream(0)?;
        // SAFETY: the stream and both allocations are this device's.
        let copy = || unsafe { self.cuda.device().copy(stream.handle(), from.address(), to.address(), bytes) };
        let [median, min, max] = self.spread(&stream, copy)?;
        let rate = 2.0 * bytes as f64 / median / 1e9;
        Ok(format!("{:<12} device copy {median:.3} ms ({min:.3} to {max:.3})  {rate:.2} TB/s", "ceiling"))
    }

    /// Fails where poison is left, or where nothing but zeros is: in parts of a tensor from its first to its last.
    fn expect_written(&self, stream: &Stream<Driver>, name: &str, memory: &DeviceMemory<Driver>) -> Result<()> {
        const PARTS: usize = 16;
        let count = memory.len().min(1 << 16);
        let (mut is_finite, mut is_zero) = (true, true);
        for part in 0..PARTS {
            let first = (memory.len() - count) / (PARTS - 1) * part;
            let address = memory.address() + (first * memory.dtype().size()) as u64;
            // SAFETY: it is a part of the tensor, which nothing writes meanwhile.
            let part = unsafe { self.cuda.borrow(memory.dtype(), address, count) }?;
            let values = stream.read(&part)?.to_f32();
            is_finite &= values.iter().all(|value| value.is_finite());
            is_zero &= values.iter().all(|value| *value == 0.0);
        }
        match is_finite && !is_zero {
            true => Ok(()),
            false => Err(format!("`{name}` was not written, or has numbers that are not finite").into()),
        }
    }

    fn measure(&self, shape: &Shape, config: &LayerConfig, tensors: &Tensors) -> Result<String> {
        let (cuda, [tokens, d, f, _]) = (&self.cuda, shape.sizes);
        let inputs = match shape.experts {
            Fixed(_) => Inputs { attention: None, ..tensors.inputs(config)? },
            Mean(..) => tensors.inputs(config)?,
        };
        let (weights, all) = (tensors.weights(config)?, [tokens, d]);
        let stream = cuda.stream(cuda.workspace_bytes(config, Most::of(&inputs, Keep::Hidden))?)?;
        let mut y = cuda.zeros(DType::Bf16, tokens * d)?;
        let dy = cuda.upload(&random(tokens * d, 1.0, 7))?;
        let dy = TensorRef::new(&dy, all)?;
        let mut gradients = GradientMemory::new(cuda, tensors)?;
        let outputs = |y: &DeviceMemory<Driver>, gradients: &GradientMemory, fill: bool| -> Result<()> {
            let GradientMemory { x, router, w_in, w_out } = gradients;
            for (name, memory) in [("y", y), ("d.x", x), ("d.router", router), ("d.w_in", w_in), ("d.w_out", w_out)] {
                // With one expert of one, the router decides nothing and has no gradient.
                match fill {
                    true => self.fill(&stream, memory, 0xff)?,
                    false if name == "d.router" && config.num_experts == 1 => {}
                    false => self.expect_written(&stream, name, memory)?,
                }
            }
            Ok(())
        };

        let staged = Layer::new(Timed::new(cuda.clone()), config.clone())?;
        let (mut state, mut step) = (staged.state()?, staged.step(tokens, DType::Bf16, Keep::Hidden)?);
        let mut rounds = Vec::new();
        outputs(&y, &gradients, true)?;
        for round in 0..WARM_UP + REPEATS {
            self.fill(&stream, &self.flush, round as u8)?;
            staged.forward(&stream, &inputs, &weights, &mut state, &mut step, TensorMut::new(&mut y, all)?)?;
            staged.backward(&stream, &inputs, &weights, dy, &mut step, &mut gradients.view_mut(all, &weights)?)?;
            let times = staged.backend().take();
            rounds.extend((round >= WARM_UP).then_some(times));
            if round == 0 {
                outputs(&y, &gradients, false)?;
                expect_rows(config, &step, &stream.read(&y)?)?;
            }
        }
        let stage = |of: fn(&StageTimes) -> Duration| spread(&mut rounds.iter().map(of).collect::<Vec<_>>())[0];

        let layer = Layer::new(cuda.clone(), config.clone())?;
        let forward = stream.capture(|| {
            layer.forward(&stream, &inputs, &weights, &mut state, &mut step, TensorMut::new(&mut y, all)?)
        })?;
        let [median, min, max] = self.replayed(&stream, &forward)?;
        let mut view = gradients.view_mut(all, &weights)?;
        let backward = stream.capture(|| layer.backward(&stream, &inputs, &weights, dy, &mut step, &mut view))?;
        let [back, back_min, back_max] = self.replayed(&stream, &backward)?;
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
}

#[test]
#[ignore = "asked for by name"]
fn layer() {
    let cuda = Cuda::open(0).unwrap_or_else(|error| panic!("{error}"));
    println!("# {}; bf16; median of {REPEATS}; stages one by one, each waited for", cuda.describe());
    let bench = Bench::new(cuda).unwrap_or_else(|error| panic!("{error}"));
    let mut failed = 0;
    let mut tell = |name: &str, line: Result<String>| match line {
        Ok(line) => println!("{line}"),
        Err(error) => {
            failed += 1;
            println!("{name:<12} FAILED: {error}");
        }
    };
    tell("ceiling", bench.copy_ceiling());
    // Drawn once for all that follow one another with the same sizes.
    for alike in SHAPES.chunk_by(|a, b| a.sizes == b.sizes) {
        match Tensors::new(&bench.cuda, &config(&alike[0]), alike[0].sizes[0]) {
            Err(error) => tell(alike[0].name, Err(error)),
            Ok(tensors) => {
                alike.iter().for_each(|shape| tell(shape.name, bench.measure(shape, &config(shape), &tensors)));
            }
        }
    }
    assert_eq!(failed, 0, "measurements that failed");
}
