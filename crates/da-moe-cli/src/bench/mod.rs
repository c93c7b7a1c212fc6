//! `da-moe bench`: time per stage, rate of useful operations, memory, and the machine's ceiling beside them.

mod problem;
mod report;
pub(crate) mod shapes;

use crate::args::BenchArgs;
use crate::device::{Opened, Why};
use crate::gradient_buffers::GradientBuffers;
use crate::result_buffer::ResultBuffer;
use crate::target::{Ceiling, Target};
use crate::{Result, memory};
use da_moe::{Activation, Backend, DType, Inputs, Keep, Layer, StageTimes, Step, TensorRef, Timed, Weights};
use indicatif::{ProgressBar, ProgressStyle};
use problem::Problem;
use report::{Measurement, Times};
use shapes::{Experts, ShapeArg};
use std::time::Duration;

const WARM_UP: u32 = 2;

pub(crate) fn execute(arguments: &BenchArgs) -> Result<()> {
    match arguments.device.open()? {
        Opened::Cpu(cpu, why) => bench_on(cpu, &why, arguments)?.print(arguments.json),
        Opened::Cuda(cuda) => bench_on(cuda, &Why::default(), arguments)?.print(arguments.json),
    }
}

fn bench_on<'a, B: Target>(backend: B, why: &Why, arguments: &'a BenchArgs) -> Result<Measurement<'a>> {
    let shape = &arguments.shape;
    let experts = Experts::asked(arguments.k, arguments.mean_k, shape.usual);
    let activation = arguments.act.unwrap_or(shape.activation);
    let problem = Problem::draw(shape, experts, activation, arguments.dtype)?;

    let progress = progress(arguments.repeats + WARM_UP);
    let mut samples = Samples::default();
    let before = memory::resident();
    memory::forget_peak();
    let layers = Layers::new(backend.clone(), &problem)?;
    let held = backend.held();
    let mut call = Call::new(&layers, &held, &problem, keep(arguments))?;
    for round in 0..arguments.repeats + WARM_UP {
        let sample = call.once()?;
        if round >= WARM_UP {
            samples.push(sample);
        }
        progress.inc(1);
    }
    let grown = || memory::peak().zip(before).map(|(peak, before)| peak.saturating_sub(before));
    let peak_bytes = call.device_bytes.map(|bytes| bytes as u64).or_else(grown);
    progress.set_message("ceiling");
    let ceiling = match backend.ceiling() {
        Ceiling::Rate(rate) => rate,
        Ceiling::OneExpert(side) => dense_rate(&backend, side, arguments.dtype)?,
    };
    progress.finish_and_clear();

    let report = call.step.report()?;
    Ok(Measurement {
        shape,
        dtype: arguments.dtype,
        device: why.after(backend.describe()),
        rows: report.rows,
        mean_k: report.mean_k,
        stages: samples.stages(),
        forward: Times::of(&samples.forward),
        backward: arguments.backward.then(|| Times::of(&samples.backward)),
        operations: activation.row_operations(shape.hidden, shape.width) * report.rows as f64,
        ceiling,
        peak_bytes,
        repeats: arguments.repeats,
    })
}

/// What is kept for backward: nothing without one.
fn keep(arguments: &BenchArgs) -> Keep {
    match arguments.backward {
        true => arguments.keep.into(),
        false => Keep::Nothing,
    }
}

/// GFLOP/s of the two products of one expert that has every token, the best of a few.
fn dense_rate<B: Target>(backend: &B, side: usize, dtype: DType) -> Result<f64> {
    let (usual, activation) = (Experts::Fixed(1), Activation::Relu);
    let name = "one expert".into();
    let shape = ShapeArg { name, tokens: side, hidden: side, width: side, experts: 1, usual, activation };
    let problem = Problem::draw(&shape, usual, activation, dtype)?;
    let layers = Layers::new(backend.clone(), &problem)?;
    let held = backend.held();
    let mut call = Call::new(&layers, &held, &problem, Keep::Nothing)?;
    let mut best = Duration::MAX;
    for _ in 0..WARM_UP + 5 {
        best = best.min(call.once()?.stages.experts);
    }
    Ok(activation.row_operations(side, side) * side as f64 / best.as_secs_f64() / 1e9)
}

fn progress(length: u32) -> ProgressBar {
    // Drawn on stderr, and only where that is a terminal.
    let bar = ProgressBar::new(length.into());
    match ProgressStyle::with_template("{bar:32} {pos}/{len} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// What one repeat took; backward is zero without one.
struct Sample {
    forward: Duration,
    backward: Duration,
    stages: StageTimes,
}

/// What each repeat took.
#[derive(Default)]
struct Samples {
    forward: Vec<Duration>,
    backward: Vec<Duration>,
    stages: Vec<StageTimes>,
}

impl Samples {
    fn push(&mut self, sample: Sample) {
        self.forward.push(sample.forward);
        self.backward.push(sample.backward);
        self.stages.push(sample.stages);
    }

    /// The median of each stage by itself.
    fn stages(&self) -> StageTimes {
        let median =
            |stage: fn(&StageTimes) -> Duration| Times::of(&self.stages.iter().map(stage).collect::<Vec<_>>()).median;
        StageTimes {
            importance: median(|times| times.importance),
            gate: median(|times| times.gate),
            permute: median(|times| times.permute),
            experts: median(|times| times.experts),
            combine: median(|times| times.combine),
            combine_backward: median(|times| times.combine_backward),
            experts_backward: median(|times| times.experts_backward),
            permute_backward: median(|times| times.permute_backward),
            gate_backward: median(|times| times.gate_backward),
        }
    }
}

/// The same layer twice: as it is, and with a stopwatch for each stage.
struct Layers<B: Target> {
    whole: Layer<B>,
    staged: Layer<Timed<B>>,
}

impl<B: Target> Layers<B> {
    fn new(backend: B, problem: &Problem) -> Result<Self> {
        let staged = Layer::new(Timed::new(backend.clone()), problem.config.clone())?;
        Ok(Self { whole: Layer::new(backend, problem.config.clone())?, staged })
    }
}

/// A layer call that can be repeated: every buffer is allocated once.
struct Call<'a, B: Target> {
    layers: &'a Layers<B>,
    inputs: Inputs<'a>,
    weights: Weights<'a>,
    dy: TensorRef<'a, 2>,
    stream: B::Stream,
    step: Step,
    y: ResultBuffer<2>,
    gradients: Option<GradientBuffers>,
    /// Bytes on a device that the call has beside inputs and weights.
    device_bytes: Option<usize>,
}

impl<'a, B: Target> Call<'a, B> {
    fn new(layers: &'a Layers<B>, held: &'a B::Held, problem: &'a Problem, keep: Keep) -> Result<Self> {
        let (dtype, target, layer) = (problem.x.dtype(), layers.whole.backend(), &layers.whole);
        let mut outputs = problem.x.len();
        if keep != Keep::Nothing {
            outputs += problem.x.len() + problem.router.len() + problem.w_in.len() + problem.w_out.len();
        }
        let bytes = layer.step_bytes(problem.tokens(), dtype, keep)?.total().saturating_add(outputs * dtype.size());
        let (inputs, weights) = (B::inputs(held, &problem.inputs()?)?, B::weights(held, &problem.weights()?)?);
        let stream = target.stream_for(layer.config(), &inputs, keep)?;
        let device_bytes = B::device_bytes(&stream).map(|workspace| bytes + workspace);
        if device_bytes.is_none() {
            memory::expect_room("the layer's buffers", bytes)?;
        }
        let gradients = (keep != Keep::Nothing).then(|| GradientBuffers::new(target, &inputs, &weights)).transpose()?;
        Ok(Self {
            layers,
            stream,
            dy: B::matrix(held, &TensorRef::new(&problem.dy, inputs.x.shape())?)?,
            step: layer.step(problem.tokens(), dtype, keep)?,
            y: ResultBuffer::like(target, inputs.x)?,
            gradients,
            inputs,
            weights,
            device_bytes,
        })
    }

    /// Times of forward and backward, by the backend's clock, and of the stages. Where those are waited for, they are those of
    /// another call.
    fn once(&mut self) -> Result<Sample> {
        let Layers { whole, staged } = self.layers;
        staged.backend().take();
        let (forward, backward) = if B::STAGES_ARE_WAITED_FOR {
            let times = self.timed(whole)?;
            self.timed(staged)?;
            times
        } else {
            self.timed(staged)?
        };
        Ok(Sample { forward, backward, stages: staged.backend().take() })
    }

    /// A forward, and a backward if there is one.
    fn timed<L: Backend<Stream = B::Stream>>(&mut self, layer: &Layer<L>) -> Result<(Duration, Duration)> {
        let Self { inputs, weights, dy, stream, step, y, gradients, .. } = self;
        let mut state = layer.state()?;
        let clock = self.layers.whole.backend();
        let forward =
            clock.time(stream, &mut || layer.forward(stream, inputs, weights, &mut state, step, y.view_mut()?))?;
        let Some(buffers) = gradients else { return Ok((forward, Duration::ZERO)) };
        let mut gradients = buffers.views()?;
        let backward =
            clock.time(stream, &mut || layer.backward(stream, inputs, weights, *dy, step, &mut gradients))?;
        Ok((forward, backward))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::target::tests::emulated;
    use clap::Parser;
    use da_moe::Cpu;

    fn arguments(more: &[&str]) -> BenchArgs {
        let line = ["da-moe", "bench", "--shape", "12,8,8,4", "--mean-k", "1.5", "--repeats", "5"];
        match Cli::try_parse_from(line.iter().chain(more)).expect("valid arguments").command {
            Some(Command::Bench(arguments)) => arguments,
            other => panic!("{other:?}"),
        }
    }

    /// As on a GPU: whole calls are timed apart from stages, there is a ceiling, and memory is the device's.
    #[test]
    fn emulated_kernels_are_measured_forward_and_backward() {
        for (keep, dtype) in [("hidden", "f32"), ("recompute", "bf16")] {
            let arguments = arguments(&["--backward", "--keep", keep, "--dtype", dtype]);
            let found = bench_on(emulated(), &Why::default(), &arguments).expect("a measurement");
            let on_cpu = bench_on(Cpu::new(), &Why::default(), &arguments).expect("a measurement");
            assert_eq!(found.rows, on_cpu.rows);
            assert!(found.device.starts_with("emulated kernels"), "{}", found.device);
            assert!(found.stages.forward() > Duration::ZERO && found.stages.backward() > Duration::ZERO);
            assert!(found.backward.expect("backward").median > Duration::ZERO && found.ceiling > 0.0);
        }
    }

    /// A device's peak is the sum of what `da-moe plan` and docs/MEMORY.md speak of.
    #[test]
    fn keeping_less_takes_less_of_a_device() {
        let bytes = |more: &[&str]| {
            bench_on(emulated(), &Why::default(), &arguments(more)).expect("a measurement").peak_bytes.expect("bytes")
        };
        let [forward, hidden, recompute] =
            [bytes(&[]), bytes(&["--backward"]), bytes(&["--backward", "--keep", "recompute"])];
        let (config, tokens) =
            (Problem::draw(&arguments(&[]).shape, Experts::Mean(1.5), Activation::Swiglu, DType::F32), 12);
        let config = config.expect("a problem").config;
        let most = |keep| da_moe::cuda::Most { tokens, dtype: DType::F32, heads: 0, keep };
        let own = |keep| da_moe::cuda::bytes(da_moe::cuda::Target::H100, &config, most(keep)).expect("a size");
        let outputs = |gradients: usize| 4 * (12 * 8 + gradients) as u64;
        let of_weights = 12 * 8 + 4 * 8 + 4 * 16 * 8 + 4 * 8 * 8;
        for (found, keep, gradients) in
            [(forward, Keep::Nothing, 0), (hidden, Keep::Hidden, of_weights), (recompute, Keep::Recompute, of_weights)]
        {
            let own = own(keep);
            assert_eq!(found, (own.step.total() + own.workspace) as u64 + outputs(gradients), "{keep:?}");
        }
    }
}
