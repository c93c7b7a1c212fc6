//! Forward and backward on the shapes that the speed goals are stated for, by the device's own clock. Outputs are poisoned and
//! checked before any time is believed, and before every timed call the cache is filled with something else.
//!
//! `DA_MOE_BENCH=tiny` takes the same way on small shapes; after `DA_MOE_BENCH_SECONDS` nothing more is begun.

#![allow(unsafe_code, reason = "a recorded graph's tensors, and parts of a tensor, are their caller's word")]

mod drawn;
mod figures;
mod shapes;
mod smi;
mod tensors;

use da_moe::cuda::cost::Contents;
use da_moe::cuda::cost::hopper::Hopper;
use da_moe::cuda::launch::{Way, in_another_way, prediction};
use da_moe::cuda::{Architecture, Call, Device, DeviceMemory, Driver, Graph, Listed, Most, Stream, abi};
use da_moe::{Backend, Cuda, DType, Error, Inputs, Keep, Layer, TensorMut, TensorRef};
use drawn::{expect_rows, random};
use figures::{Ceilings, Clocks, Measured, Pass, Predicted};
use shapes::{Experts, Plan, Shape};
use smi::Smi;
use std::env;
use std::time::{Duration, Instant};
use tensors::{GradientMemory, Tensors};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A GPU, and what is written between measurements so that nothing of them is in its cache.
struct Bench {
    plan: &'static Plan,
    gpu: Cuda,
    flush: DeviceMemory<Driver>,
    smi: Smi,
}

/// Median, smallest and largest, in milliseconds.
fn spread(times: &mut [Duration]) -> [f64; 3] {
    times.sort();
    [times[times.len() / 2], times[0], times[times.len() - 1]].map(|time| time.as_secs_f64() * 1e3)
}

impl Bench {
    fn new(plan: &'static Plan, gpu: Cuda) -> Result<Self> {
        Ok(Self { plan, flush: gpu.zeros(DType::U8, plan.flush)?, gpu, smi: Smi::start() })
    }

    fn fill(&self, stream: &Stream<Driver>, memory: &DeviceMemory<Driver>, value: u8) -> Result<()> {
        let bytes = memory.len() * memory.dtype().size();
        // SAFETY: the stream and the memory are this device's.
        Ok(unsafe { self.gpu.device().fill(stream.handle(), memory.address(), value, bytes) }?)
    }

    /// The numbers of all rounds, those that only warm up included, and whether one counts.
    fn rounds(&self) -> impl Iterator<Item = (usize, bool)> + use<> {
        let (first, count) = (self.plan.warm_up, self.plan.warm_up + self.plan.repeats);
        (0..count).map(move |round| (round, round >= first))
    }

    /// Time of what is queued.
    fn spread(
        &self,
        stream: &Stream<Driver>,
        mut queue: impl FnMut() -> std::result::Result<(), Error>,
    ) -> Result<[f64; 3]> {
        let mut times = Vec::new();
        for (round, counts) in self.rounds() {
            self.fill(stream, &self.flush, round as u8)?;
            let time = stream.time(&mut queue)?;
            times.extend(counts.then_some(time));
        }
        Ok(spread(&mut times))
    }

    /// Time of a recorded call.
    fn replayed(&self, stream: &Stream<Driver>, graph: &Graph<Driver>) -> Result<[f64; 3]> {
        // SAFETY: the caller keeps everything that was recorded, and nothing else uses it meanwhile.
        self.spread(stream, || unsafe { graph.launch(stream) })
    }

    /// Median time of each launch of a call, all of them in turn: what one leaves the next one reads.
    fn each(&self, stream: &Stream<Driver>, listed: &[Listed]) -> Result<Vec<(&'static str, f64)>> {
        let mut times = vec![Vec::new(); listed.len()];
        for (round, counts) in self.rounds() {
            for (of, times) in listed.iter().zip(&mut times) {
                self.fill(stream, &self.flush, round as u8)?;
                // SAFETY: the caller keeps everything that the call reads and writes, and nothing else uses it meanwhile.
                let time = stream.time(|| unsafe { of.call.run(&**self.gpu.device(), stream.handle()) })?;
                times.extend(counts.then_some(time));
            }
        }
        let median = |(of, mut times): (&Listed, Vec<_>)| (of.call.launch.kernel, spread(&mut times)[0]);
        Ok(listed.iter().zip(times).map(median).collect())
    }

    /// Keeps the device busy until its clock has risen.
    fn warm_up(&self) -> Result<()> {
        let (stream, start) = (self.gpu.stream(0)?, Instant::now());
        while start.elapsed() < self.plan.busy {
            self.fill(&stream, &self.flush, 1)?;
            stream.synchronize()?;
        }
        Ok(())
    }

    /// What memory can do: to another place, read and written.
    fn ceilings(&self) -> Result<Ceilings> {
        let (start, bytes) = (Instant::now(), self.plan.copy);
        let [from, to] = [self.gpu.zeros(DType::U8, bytes)?, self.gpu.zeros(DType::U8, bytes)?];
        let stream = self.gpu.stream(0)?;
        // SAFETY: the stream and both allocations are this device's.
        let copy = || unsafe { self.gpu.device().copy(stream.handle(), from.address(), to.address(), bytes) };
        let [median, min, max] = self.spread(&stream, copy)?;
        let rate = 2.0 * bytes as f64 / median * 1e3;
        let dense = figures::dense(&self.gpu.describe(), self.gpu.target().multiprocessors);
        let told = dense.map_or("not known".into(), |dense| format!("{:.0} TFLOP/s", dense / 1e12));
        let (clock, rates) = (self.smi.since(start), format!("{:.2} TB/s", rate / 1e12));
        println!("{:<12} device copy {median:.3} ms ({min:.3} to {max:.3}) {rates}; dense {told}  {clock}", "ceilings");
        Ok(Ceilings { dense, copy: rate })
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
            let part = unsafe { self.gpu.borrow(memory.dtype(), address, count) }?;
            let values = stream.read(&part)?.to_f32();
            is_finite &= values.iter().all(|value| value.is_finite());
            is_zero &= values.iter().all(|value| *value == 0.0);
        }
        match is_finite && !is_zero {
            true => Ok(()),
            false => Err(format!("`{name}` was not written, or has numbers that are not finite").into()),
        }
    }

    /// A fixed number of experts looks at no queries and keys.
    fn inputs<'a>(&self, shape: &Shape, tensors: &'a Tensors) -> Result<Inputs<'a>> {
        let inputs = tensors.inputs(&shape.config())?;
        Ok(match shape.experts {
            Experts::Fixed(_) => Inputs { attention: None, ..inputs },
            Experts::Mean(..) => inputs,
        })
    }

    /// One direction: its kernels, its call, and its recording.
    fn pass(
        &self,
        stream: &Stream<Driver>,
        rows: usize,
        mut call: impl FnMut() -> std::result::Result<(), Error>,
    ) -> Result<Pass> {
        let listed = stream.list(&mut call)?;
        let kernels = self.each(stream, &listed)?;
        let (eager, graph) = (self.spread(stream, &mut call)?, stream.capture(&mut call)?);
        let predicted = self.predicted(stream, rows, &listed, &kernels)?;
        Ok(Pass { graph: self.replayed(stream, &graph)?, eager, kernels, predicted })
    }

    /// The launches that a model has a prediction for, and where their clocks go, where they can tell.
    fn predicted(
        &self,
        stream: &Stream<Driver>,
        rows: usize,
        listed: &[Listed],
        times: &[(&'static str, f64)],
    ) -> Result<Vec<Predicted>> {
        let contents = Contents { rows, pairs: 0.0 };
        let mut all = Vec::new();
        for (of, (_, time)) in listed.iter().zip(times) {
            let Some(prediction) = prediction(&Hopper::H100, &of.call, &contents) else { continue };
            let (ways, clocks) = (self.ways(stream, of)?, self.clocks(stream, &of.call)?);
            all.push(Predicted { kernel: of.call.launch.kernel, time: *time, prediction, ways, clocks });
        }
        Ok(all)
    }

    /// Milliseconds of the other ways in which a product may be run.
    fn ways(&self, stream: &Stream<Driver>, of: &Listed) -> Result<Vec<(&'static str, f64)>> {
        let ways = [("alone", Way::Alone), ("skewed", Way::Skewed)];
        let there = ways.map(|(name, way)| in_another_way(&of.call, way).map(|call| (name, call)));
        let (names, calls): (Vec<_>, Vec<_>) = there.into_iter().flatten().unzip();
        let listed: Vec<_> = calls.into_iter().map(|call| Listed { call, ..*of }).collect();
        let times = self.each(stream, &listed)?;
        Ok(names.into_iter().zip(times.into_iter().map(|(_, time)| time)).collect())
    }

    /// Clocks of a block on average, by what they went to.
    fn clocks(&self, stream: &Stream<Driver>, call: &Call) -> Result<Option<Clocks>> {
        const COUNTS: usize = abi::HOPPER_CLOCKS as usize;
        let blocks = call.launch.blocks() as usize;
        let counts = self.gpu.zeros(DType::U8, blocks * COUNTS * size_of::<i64>())?;
        let Some(call) = in_another_way(call, Way::Clocked(counts.address())) else { return Ok(None) };
        self.fill(stream, &self.flush, 1)?;
        // SAFETY: what the call reads and writes is the caller's, as in `each`; there is room for every block's counts.
        unsafe { call.run(&**self.gpu.device(), stream.handle()) }?;
        let bytes = stream.read(&counts)?;
        let bytes = bytes.as_slice::<u8>().ok_or("counts are bytes")?;
        let mut sums = [0.0; COUNTS];
        for (at, count) in bytes.as_chunks().0.iter().enumerate() {
            sums[at % COUNTS] += i64::from_ne_bytes(*count) as f64 / blocks as f64;
        }
        Ok(Some(sums))
    }

    /// Forward by the kernels that every architecture has, where the device has others: milliseconds.
    fn portable(&self, shape: &Shape, tensors: &Tensors) -> Result<Option<f64>> {
        if self.gpu.target().architecture == Architecture::Portable {
            return Ok(None);
        }
        let gpu = self.gpu.clone().architecture(Architecture::Portable)?;
        let (config, [tokens, d, ..]) = (shape.config(), shape.sizes);
        let (inputs, weights) = (self.inputs(shape, tensors)?, tensors.weights(&config)?);
        let room = gpu.workspace_bytes(&config, Most::of(&inputs, Keep::Hidden))?;
        let (stream, layer) = (gpu.stream(room)?, Layer::new(gpu.clone(), config)?);
        let (mut state, mut step) = (layer.state()?, layer.step(tokens, DType::Bf16, Keep::Hidden)?);
        let mut y = gpu.zeros(DType::Bf16, tokens * d)?;
        let graph = stream.capture(|| {
            let out = TensorMut::new(&mut y, [tokens, d])?;
            layer.forward(&stream, &inputs, &weights, &mut state, &mut step, out)
        })?;
        Ok(Some(self.replayed(&stream, &graph)?[0]))
    }

    fn measure(&self, shape: &Shape, tensors: &Tensors) -> Result<Measured> {
        let (gpu, config, [tokens, d, ..]) = (&self.gpu, shape.config(), shape.sizes);
        let (inputs, weights, all) = (self.inputs(shape, tensors)?, tensors.weights(&config)?, [tokens, d]);
        let room = gpu.workspace_bytes(&config, Most::of(&inputs, Keep::Hidden))?;
        let mut y = gpu.zeros(DType::Bf16, tokens * d)?;
        let dy = gpu.upload(&random(tokens * d, 1.0, 7))?;
        let dy = TensorRef::new(&dy, all)?;
        let mut gradients = GradientMemory::new(gpu, tensors)?;

        let (layer, stream) = (Layer::new(gpu.clone(), config.clone())?, gpu.stream(room)?);
        let (mut state, mut step) = (layer.state()?, layer.step(tokens, DType::Bf16, Keep::Hidden)?);
        for (_, memory) in [("y", &y)].into_iter().chain(gradients.all()) {
            self.fill(&stream, memory, 0xff)?;
        }
        layer.forward(&stream, &inputs, &weights, &mut state, &mut step, TensorMut::new(&mut y, all)?)?;
        layer.backward(&stream, &inputs, &weights, dy, &mut step, &mut gradients.view_mut(all, &weights)?)?;
        let outputs = [("y", &y)].into_iter().chain(gradients.all());
        // With one expert of one, the router decides nothing and has no gradient.
        for (name, memory) in outputs.filter(|(name, _)| *name != "d.router" || config.num_experts > 1) {
            self.expect_written(&stream, name, memory)?;
        }
        expect_rows(&config, &step, &stream.read(&y)?)?;
        let rows = step.report()?.rows;

        let mut call =
            || layer.forward(&stream, &inputs, &weights, &mut state, &mut step, TensorMut::new(&mut y, all)?);
        let forward = self.pass(&stream, rows, &mut call)?;
        let mut view = gradients.view_mut(all, &weights)?;
        let mut call = || layer.backward(&stream, &inputs, &weights, dy, &mut step, &mut view);
        let backward = self.pass(&stream, rows, &mut call)?;
        let report = step.report()?;
        let portable = self.portable(shape, tensors)?;
        Ok(Measured { rows: report.rows, mean_k: report.mean_k, forward, backward, portable })
    }

    /// Forward at several means: mean, rows and milliseconds of each.
    fn sweep(&self, shape: &Shape, means: &[f64], tensors: &Tensors) -> Result<Vec<(f64, usize, f64)>> {
        let Experts::Mean(most, _) = shape.experts else { return Err("a sweep is over means".into()) };
        let [tokens, d, ..] = shape.sizes;
        let mut y = self.gpu.zeros(DType::Bf16, tokens * d)?;
        let mut time = |mean: f64| -> Result<(f64, usize, f64)> {
            let shape = Shape { experts: Experts::Mean(most, mean), ..*shape };
            let (config, inputs) = (shape.config(), self.inputs(&shape, tensors)?);
            let weights = tensors.weights(&config)?;
            let room = self.gpu.workspace_bytes(&config, Most::of(&inputs, Keep::Nothing))?;
            let (stream, layer) = (self.gpu.stream(room)?, Layer::new(self.gpu.clone(), config)?);
            let (mut state, mut step) = (layer.state()?, layer.step(tokens, DType::Bf16, Keep::Nothing)?);
            let graph = stream.capture(|| {
                let out = TensorMut::new(&mut y, [tokens, d])?;
                layer.forward(&stream, &inputs, &weights, &mut state, &mut step, out)
            })?;
            let [median, ..] = self.replayed(&stream, &graph)?;
            let report = step.report()?;
            Ok((report.mean_k, report.rows, median))
        };
        means.iter().map(|mean| time(*mean)).collect()
    }
}

/// Prints what there is, and says whether to go on: after a device's error nothing works any more.
struct Teller {
    failed: usize,
    end: Option<Instant>,
}

impl Teller {
    fn tell(&mut self, name: &str, line: Result<String>) -> Result<()> {
        match line {
            Ok(line) => println!("{line}"),
            Err(error) => {
                self.failed += 1;
                println!("{name:<12} FAILED: {error}");
                if matches!(error.downcast_ref(), Some(Error::Cuda { .. })) {
                    return Err("stopped at a device's error".into());
                }
            }
        }
        Ok(())
    }

    fn is_late(&self, name: &str) -> bool {
        let is_late = self.end.is_some_and(|end| Instant::now() > end);
        if is_late {
            println!("{name:<12} no time");
        }
        is_late
    }
}

fn everything(bench: &Bench, teller: &mut Teller) -> Result<()> {
    let (plan, start) = (bench.plan, Instant::now());
    bench.warm_up()?;
    let ceilings = bench.ceilings()?;
    let line = |shape: &Shape, tensors: &Tensors| {
        let start = Instant::now();
        let measured = bench.measure(shape, tensors)?;
        figures::report(plan, shape, &measured, ceilings, &bench.smi.since(start))
    };
    let drawn = |shape: &Shape| Tensors::new(&bench.gpu, plan, &shape.config(), shape.sizes[0]);
    // Drawn once for all that follow one another and can share; the first once more at the end, for what the time in between does.
    for alike in plan.shapes.chunk_by(Shape::is_like).chain([&plan.shapes[..1]]) {
        if teller.is_late(alike[0].name) {
            continue;
        }
        let tensors = match drawn(&alike[0]) {
            Ok(tensors) => tensors,
            Err(error) => {
                teller.tell(alike[0].name, Err(error))?;
                continue;
            }
        };
        for shape in alike {
            teller.tell(shape.name, line(shape, &tensors))?;
        }
        let (shape, means) = &plan.sweep;
        if shape.is_like(&alike[0]) && !teller.is_late(shape.name) {
            let times = bench.sweep(shape, means, &tensors);
            teller.tell(shape.name, times.map(|times| figures::sweep(shape, &times, ceilings)))?;
        }
    }
    println!("# {:.0} s, {}", start.elapsed().as_secs_f64(), bench.smi.since(start));
    Ok(())
}

#[test]
#[ignore = "asked for by name"]
fn layer() {
    let plan = Plan::asked(env::var("DA_MOE_BENCH").ok().as_deref()).unwrap_or_else(|error| panic!("{error}"));
    let seconds = env::var("DA_MOE_BENCH_SECONDS").map(|seconds| seconds.parse().expect("a number of seconds"));
    let end = seconds.ok().map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let gpu = Cuda::open(0).unwrap_or_else(|error| panic!("{error}"));
    println!("# {}; bf16; median of {}", gpu.describe(), plan.repeats);
    println!(
        "# forward and backward as a recorded graph and as calls (eager), queued behind the filling of the cache; kernels one by one"
    );
    let bench = Bench::new(plan, gpu).unwrap_or_else(|error| panic!("{error}"));
    let mut teller = Teller { failed: 0, end };
    everything(&bench, &mut teller).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(teller.failed, 0, "measurements that failed");
}
