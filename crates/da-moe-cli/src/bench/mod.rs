//! `da-moe bench`: time per stage, rate of useful operations, memory, and the machine's ceiling beside them.

mod problem;
mod report;
pub(crate) mod shapes;

use crate::args::BenchArgs;
use crate::{Result, memory};
use da_moe::{
    Backend, Buffer, Cpu, ExpertGradients, Gradients, Keep, Layer, StageTimes, Step, TensorMut, TensorRef, Timed,
};
use indicatif::{ProgressBar, ProgressStyle};
use problem::Problem;
use report::{Measurement, Times};
use shapes::Experts;
use std::time::{Duration, Instant};

const WARM_UP: u32 = 2;

pub(crate) fn execute(arguments: &BenchArgs) -> Result<()> {
    let backend = arguments.device.open()?;
    let shape = &arguments.shape;
    let experts = Experts::asked(arguments.k, arguments.mean_k, shape.usual);
    let activation = arguments.act.unwrap_or(shape.activation);
    let problem = Problem::draw(shape, experts, activation, arguments.dtype)?;

    let progress = progress(arguments.repeats + WARM_UP);
    let mut samples = Samples::default();
    let before = memory::resident();
    memory::forget_peak();
    let layer = Layer::new(Timed::new(backend), problem.config.clone())?;
    let mut call = Call::new(&layer, &problem, arguments)?;
    for round in 0..arguments.repeats + WARM_UP {
        let sample = call.once()?;
        if round >= WARM_UP {
            samples.push(sample);
        }
        progress.inc(1);
    }
    let peak_bytes = memory::peak().zip(before).map(|(peak, before)| peak.saturating_sub(before));
    progress.set_message("ceiling");
    let ceiling = layer.backend().inner().dense_gflops();
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
struct Call<'a> {
    layer: &'a Layer<Timed<Cpu>>,
    problem: &'a Problem,
    step: Step,
    y: Buffer,
    gradients: Option<GradientBuffers>,
}

struct GradientBuffers {
    x: Buffer,
    router: Buffer,
    w_in: Buffer,
    w_out: Buffer,
}

impl<'a> Call<'a> {
    fn new(layer: &'a Layer<Timed<Cpu>>, problem: &'a Problem, arguments: &BenchArgs) -> Result<Self> {
        let dtype = arguments.dtype;
        let keep = if arguments.backward { Keep::Hidden } else { Keep::Nothing };
        let zeros = |of: &Buffer| Buffer::zeros(dtype, of.len());
        let outputs = if arguments.backward {
            problem.x.len() * 2 + problem.router.len() + problem.w_in.len() + problem.w_out.len()
        } else {
            problem.x.len()
        };
        let bytes = layer.step_bytes(problem.tokens(), dtype, keep)?.saturating_add(outputs * dtype.size());
        memory::expect_room("the layer's buffers", bytes)?;
        Ok(Self {
            layer,
            problem,
            step: layer.step(problem.tokens(), dtype, keep)?,
            y: zeros(&problem.x),
            gradients: arguments.backward.then(|| GradientBuffers {
                x: zeros(&problem.x),
                router: zeros(&problem.router),
                w_in: zeros(&problem.w_in),
                w_out: zeros(&problem.w_out),
            }),
        })
    }

    /// Wall time of forward, of backward (zero without one) and of the stages.
    fn once(&mut self) -> Result<(Duration, Duration, StageTimes)> {
        let (inputs, weights) = (self.problem.inputs()?, self.problem.weights()?);
        let shape = inputs.x.shape();
        let mut state = self.layer.state()?;
        self.layer.backend().take();
        let start = Instant::now();
        self.layer.forward(&(), &inputs, &weights, &mut state, &mut self.step, TensorMut::new(&mut self.y, shape)?)?;
        let forward = start.elapsed();
        let Some(buffers) = &mut self.gradients else {
            return Ok((forward, Duration::ZERO, self.layer.backend().take()));
        };
        let dy = TensorRef::new(&self.problem.dy, shape)?;
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
        };
        let start = Instant::now();
        self.layer.backward(&(), &inputs, &weights, dy, &mut self.step, &mut gradients)?;
        Ok((forward, start.elapsed(), self.layer.backend().take()))
    }
}
