//! `da-moe bench`: time per stage, rate of useful operations, memory, and the machine's ceiling beside them.

mod problem;
mod report;
pub(crate) mod shapes;

use crate::args::BenchArgs;
use crate::device::Opened;
use crate::target::Target;
use crate::{Result, memory};
use da_moe::{
    Backend, ExpertGradients, Gradients, Inputs, Keep, Layer, Memory, StageTimes, Step, TensorMut, TensorRef, Timed,
    Weights,
};
use indicatif::{ProgressBar, ProgressStyle};
use problem::Problem;
use report::{Measurement, Times};
use shapes::Experts;
use std::time::{Duration, Instant};

const WARM_UP: u32 = 2;

pub(crate) fn execute(arguments: &BenchArgs) -> Result<()> {
    match arguments.device.open()? {
        Opened::Cpu(cpu) => bench_on(cpu, arguments),
        Opened::Cuda(cuda) => bench_on(cuda, arguments),
    }
}

fn bench_on<B: Target>(backend: B, arguments: &BenchArgs) -> Result<()> {
    let shape = &arguments.shape;
    let experts = Experts::asked(arguments.k, arguments.mean_k, shape.usual);
    let activation = arguments.act.unwrap_or(shape.activation);
    let problem = Problem::draw(shape, experts, activation, arguments.dtype)?;

    let progress = progress(arguments.repeats + WARM_UP);
    let mut samples = Samples::default();
    let before = memory::resident();
    memory::forget_peak();
    let layer = Layer::new(Timed::new(backend), problem.config.clone())?;
    let held = layer.backend().inner().held();
    let mut call = Call::new(&layer, &held, &problem, arguments)?;
    for round in 0..arguments.repeats + WARM_UP {
        let sample = call.once()?;
        if round >= WARM_UP {
            samples.push(sample);
        }
        progress.inc(1);
    }
    let peak_bytes = memory::peak().zip(before).map(|(peak, before)| peak.saturating_sub(before));
    progress.set_message("ceiling");
    let ceiling = layer.backend().inner().ceiling();
    progress.finish_and_clear();

    let report = call.step.report()?;
    let operations = activation.row_operations(shape.hidden, shape.width) * report.rows as f64;
    let measurement = Measurement {
        shape,
        dtype: arguments.dtype,
        device: layer.backend().describe(),
        rows: report.rows,
        mean_k: report.mean_k,
        stages: samples.stages(),
        forward: Times::of(&samples.forward),
        backward: arguments.backward.then(|| Times::of(&samples.backward)),
        operations,
        ceiling,
        peak_bytes,
        repeats: arguments.repeats,
    };
    measurement.print(arguments.json)
}

fn progress(length: u32) -> ProgressBar {
    // Drawn on stderr, and only where that is a terminal.
    let bar = ProgressBar::new(length.into());
    match ProgressStyle::with_template("{bar:32} {pos}/{len} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// What each repeat took.
#[derive(Default)]
struct Samples {
    forward: Vec<Duration>,
    backward: Vec<Duration>,
    stages: Vec<StageTimes>,
}

impl Samples {
    fn push(&mut self, (forward, backward, stages): (Duration, Duration, StageTimes)) {
        self.forward.push(forward);
        self.backward.push(backward);
        self.stages.push(stages);
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

/// A layer call that can be repeated: every buffer is allocated once.
struct Call<'a, B: Target> {
    layer: &'a Layer<Timed<B>>,
    inputs: Inputs<'a>,
    weights: Weights<'a>,
    dy: TensorRef<'a, 2>,
    stream: B::Stream,
    step: Step,
    y: Memory,
    gradients: Option<GradientBuffers>,
}

struct GradientBuffers {
    x: Memory,
    router: Memory,
    w_in: Memory,
    w_out: Memory,
}

impl<'a, B: Target> Call<'a, B> {
    fn new(layer: &'a Layer<Timed<B>>, held: &'a B::Held, problem: &'a Problem, arguments: &BenchArgs) -> Result<Self> {
        let (dtype, target) = (arguments.dtype, layer.backend().inner());
        let keep = if arguments.backward { Keep::Hidden } else { Keep::Nothing };
        let outputs = if arguments.backward {
            problem.x.len() * 2 + problem.router.len() + problem.w_in.len() + problem.w_out.len()
        } else {
            problem.x.len()
        };
        let bytes = layer.step_bytes(problem.tokens(), dtype, keep)?.total().saturating_add(outputs * dtype.size());
        memory::expect_room("the layer's buffers", bytes)?;
        let (inputs, weights) = (B::inputs(held, &problem.inputs()?)?, B::weights(held, &problem.weights()?)?);
        let gradients = || -> Result<GradientBuffers> {
            Ok(GradientBuffers {
                x: target.room(&problem.x)?,
                router: target.room(&problem.router)?,
                w_in: target.room(&problem.w_in)?,
                w_out: target.room(&problem.w_out)?,
            })
        };
        Ok(Self {
            layer,
            stream: target.stream_for(layer.config(), &inputs, keep)?,
            dy: B::matrix(held, &TensorRef::new(&problem.dy, inputs.x.shape())?)?,
            step: layer.step(problem.tokens(), dtype, keep)?,
            y: target.room(&problem.x)?,
            gradients: arguments.backward.then(gradients).transpose()?,
            inputs,
            weights,
        })
    }

    /// Wall time of forward, of backward (zero without one) and of the stages.
    fn once(&mut self) -> Result<(Duration, Duration, StageTimes)> {
        let Self { layer, inputs, weights, dy, stream, step, y, gradients } = self;
        let shape = inputs.x.shape();
        let mut state = layer.state()?;
        layer.backend().take();
        let start = Instant::now();
        layer.forward(stream, inputs, weights, &mut state, step, TensorMut::new(&mut *y, shape)?)?;
        let forward = start.elapsed();
        let Some(buffers) = gradients else {
            return Ok((forward, Duration::ZERO, layer.backend().take()));
        };
        let mut gradients = Gradients {
            x: TensorMut::new(&mut buffers.x, shape)?,
            router: Some(TensorMut::new(&mut buffers.router, weights.router.shape())?),
            experts: ExpertGradients {
                w_in: TensorMut::new(&mut buffers.w_in, weights.experts.w_in.shape())?,
                w_out: TensorMut::new(&mut buffers.w_out, weights.experts.w_out.shape())?,
                b_in: None,
                b_out: None,
            },
            shared: None,
            constants: None,
            routing: None,
            accumulate: false,
        };
        let start = Instant::now();
        layer.backward(stream, inputs, weights, *dy, step, &mut gradients)?;
        Ok((forward, start.elapsed(), layer.backend().take()))
    }
}
