//! What plan tells: a table for people, an object for programs.

use super::launches::{HEAD_WIDTH, SEQUENCE};
use super::{Direction, Plan, Priced};
use crate::bench::shapes::{Experts, ShapeArg};
use crate::{Error, Result};
use da_moe::cuda::cost::hopper::{Hopper, Prediction};
use da_moe::cuda::cost::{Bound, Machine, Unit};
use da_moe::cuda::{Architecture, Bytes};
use serde::Serialize;
use std::collections::BTreeMap;

const HEADINGS: [&str; 15] = [
    "stage", "kernel", "grid", "threads", "shared", "tiles", "MiB", "GFLOP", "memory", "L2", "banks", "issue", "units",
    "us", "bound by",
];

/// A table for each shape, and what the times are made of.
pub(super) fn table(plans: &[Plan], machine: &Machine, hopper: &Hopper) -> String {
    let mut text = String::new();
    for plan in plans {
        text += &heading(plan);
        text += &row(&HEADINGS.map(String::from));
        plan.directions().for_each(|direction| text += &(launches(direction) + &predictions(direction)));
        text += &memory(plan);
        text.push('\n');
    }
    text + &model(machine) + &model_of_hopper(hopper)
}

/// A line for each launch, and one for all.
fn launches(direction: &Direction) -> String {
    let mut text = String::new();
    for (place, priced) in direction.launches.iter().enumerate() {
        let repeated = place > 0 && direction.launches[place - 1].stage == priced.stage;
        text += &row(&cells(priced, if repeated { "" } else { priced.stage }));
    }
    let share = |(stage, seconds): (&str, f64)| {
        format!("{stage} {:.1} us ({:.0}%)", seconds * 1e6, 100.0 * seconds / direction.seconds())
    };
    let stages: Vec<_> = direction.stages().into_iter().map(share).collect();
    text + &format!("{} {:.1} us: {}\n", direction.name, direction.seconds() * 1e6, stages.join(", "))
}

/// What the products of Hopper's own kernels are predicted to reach, by themselves and together.
fn predictions(direction: &Direction) -> String {
    let predicted: Vec<_> =
        direction.launches.iter().filter_map(|of| Some((of.stage, of.launch.kernel, of.prediction?))).collect();
    let line = |name: &str, of: &Prediction| {
        let ([low, high], [least, most]) = (of.rates(), [of.least, of.most].map(|seconds| seconds * 1e6));
        let (low, high) = (low / 1e12, high / 1e12);
        format!("  predicted   {name:<40}  {low:>5.0} to {high:>3.0} TFLOP/s, {least:>8.1} to {most:.1} us\n")
    };
    let each: String = predicted.iter().map(|(_, kernel, of)| line(kernel, of)).collect();
    let of_experts = predicted.iter().filter(|(stage, ..)| *stage == "experts").map(|(.., of)| of);
    let together = of_experts.copied().reduce(|a, b| Prediction {
        least: a.least + b.least,
        most: a.most + b.most,
        operations: a.operations + b.operations,
    });
    each + &together.map_or(String::new(), |of| line("experts", &of))
}

/// How memory is called that is allocated with this kept for backward, in the order of [`Plan::bytes`].
const KEPT: [&str; 3] = ["forward alone", "hidden rows kept", "hidden rows computed again"];

/// What the library allocates; of what is saved also the bytes of a row.
fn memory(plan: &Plan) -> String {
    let line = |what: &str, [saved, scratch, step, workspace, peak, row]: [String; 6]| {
        format!("{what:<28}{saved:>9} {scratch:>9} {step:>9} {workspace:>9} {peak:>9} {row:>12}\n")
    };
    let mebibytes = |bytes: usize| format!("{:.1}", bytes as f64 / 1048576.0);
    let headings = ["saved", "scratch", "step", "workspace", "peak", "saved, B/row"];
    let mut text = line("memory, MiB", headings.map(String::from));
    for ((kept, bytes), row) in KEPT.into_iter().zip(&plan.bytes).zip(plan.row_bytes) {
        let Bytes { step, workspace } = bytes;
        let [saved, scratch, step, workspace, peak] =
            [step.saved, step.scratch, step.total(), *workspace, bytes.peak()].map(mebibytes);
        text += &line(&format!("  {kept}"), [saved, scratch, step, workspace, peak, row.to_string()]);
    }
    text
}

fn heading(plan: &Plan) -> String {
    let (shape, k) = (&plan.shape, experts(plan.experts));
    let activation = serde_json::to_string(&plan.activation).unwrap_or_default();
    format!(
        "{}: T {} D {} F {} E {}, {}, {}, {k}, {} rows{}\n",
        shape.name,
        shape.tokens,
        shape.hidden,
        shape.width,
        shape.experts,
        activation.trim_matches('"'),
        plan.dtype,
        plan.rows,
        if plan.arch == Architecture::Portable { ", sm_80" } else { "" }
    )
}

fn experts(experts: Experts) -> String {
    match experts {
        Experts::Fixed(k) => format!("k {k}"),
        Experts::Mean(mean) => format!("mean k {mean}"),
    }
}

fn cells(priced: &Priced, stage: &str) -> [String; 15] {
    let (launch, work) = (&priced.launch, &priced.work);
    let [memory, l2, banks, issue, units] = priced.floors.map(|(_, seconds)| format!("{:.1}", seconds * 1e6));
    [
        stage.into(),
        launch.kernel.into(),
        launch.grid.map(|blocks| blocks.to_string()).join("x"),
        launch.threads.to_string(),
        launch.shared.to_string(),
        work.tiles.to_string(),
        format!("{:.2}", work.bytes / 1048576.0),
        format!("{:.2}", work.operations / 1e9),
        memory,
        l2,
        banks,
        issue,
        units,
        format!("{:.1}", priced.seconds * 1e6),
        bound(priced.bound).into(),
    ]
}

fn row(cells: &[String; 15]) -> String {
    let [stage, kernel, grid, threads, shared, tiles, bytes, operations, memory, l2, banks, issue, units, time, bound] =
        cells;
    format!(
        "  {stage:<10}  {kernel:<40}  {grid:>11}  {threads:>7}  {shared:>6}  {tiles:>7}  {bytes:>9}  {operations:>9}  \
         {memory:>7}  {l2:>7}  {banks:>7}  {issue:>7}  {units:>7}  {time:>7}  {bound}\n"
    )
}

fn bound(bound: Bound) -> &'static str {
    match bound {
        Bound::Launch => "launch",
        Bound::Bytes => "memory",
        Bound::L2 => "L2",
        Bound::Shared => "banks",
        Bound::Issue => "issue",
        Bound::Operations => "units",
    }
}

fn model(machine: &Machine) -> String {
    let tera = |rate: f64| rate / 1e12;
    format!(
        "model, not a measurement; not yet run on a GPU\n\
         time      {:.0} us a launch, and the longest of these: its bytes through memory and through L2, where tiles of a\n          \
         product read their factors for themselves; wavefronts of shared memory (banks); instructions of main loops\n          \
         (issue); operations (units)\n\
         {:<8}  {:.1} TB/s, {:.1} TB/s of L2; {:.0} TFLOP/s in 16 bits, the {:.0}% of {:.0} that mma.sync reaches; {:.0} in TF32; {:.0} in \
         f32; {} multiprocessors\n\
         call      rows spread evenly over experts; importance is received-max of queries and keys with their\n          \
         log-sum-exp: D/{HEAD_WIDTH} heads, {HEAD_WIDTH} wide, and sequences of {SEQUENCE} tokens\n",
        machine.launch * 1e6,
        machine.name,
        tera(machine.bandwidth),
        tera(machine.l2),
        tera(machine.rate(Unit::Tensor16)),
        100.0 * machine.mma_sync,
        tera(machine.tensor),
        tera(machine.rate(Unit::Tensor32)),
        tera(machine.rate(Unit::Scalar)),
        machine.multiprocessors,
    )
}

fn model_of_hopper(hopper: &Hopper) -> String {
    let Hopper { clusters, clock, limited_clock, sustained, l2, way_out, limited_way_out, .. } = hopper;
    format!(
        "predicted clocks of {clusters} clusters, unit by unit: of tensor cores, shared memory or {:.0} TB/s of L2 in every step, and of the way\n          \
         out; at least at {:.3} GHz, {:.0} TFLOP/s and {way_out:.0} clocks a way out beyond what it moves, at most at {:.2} GHz and {limited_way_out:.0}\n",
        l2 / 1e12,
        clock / 1e9,
        sustained / 1e12,
        limited_clock / 1e9,
    )
}

/// What `--json` prints.
#[derive(Serialize)]
struct Object<'a> {
    model: Model,
    shapes: Vec<ShapePlan<'a>>,
}

#[derive(Serialize)]
struct Model {
    machine: &'static str,
    measured: bool,
    bytes_per_second: f64,
    l2_bytes_per_second: f64,
    tensor_flops: f64,
    mma_sync_share: f64,
    f32_flops: f64,
    launch_us: f64,
    multiprocessors: usize,
}

#[derive(Serialize)]
struct ShapePlan<'a> {
    #[serde(flatten)]
    shape: &'a ShapeArg,
    activation: da_moe::Activation,
    dtype: &'a str,
    mean_k: f64,
    rows: usize,
    launches: Vec<LaunchPlan>,
    stages_us: BTreeMap<&'static str, f64>,
    forward_us: f64,
    backward: Option<BackwardPlan>,
    memory: MemoryPlan,
}

#[derive(Serialize)]
struct BackwardPlan {
    launches: Vec<LaunchPlan>,
    stages_us: BTreeMap<&'static str, f64>,
    us: f64,
}

/// By what is kept for backward.
#[derive(Serialize)]
struct MemoryPlan {
    nothing: BytesPlan,
    hidden: BytesPlan,
    recompute: BytesPlan,
}

#[derive(Serialize)]
struct BytesPlan {
    saved_row_bytes: usize,
    saved_bytes: usize,
    scratch_bytes: usize,
    step_bytes: usize,
    workspace_bytes: usize,
    peak_bytes: usize,
}

#[derive(Serialize)]
struct LaunchPlan {
    stage: &'static str,
    kernel: &'static str,
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    tiles: u64,
    bytes: f64,
    operations: f64,
    l2_bytes: f64,
    wavefronts: f64,
    instructions: f64,
    /// What each part of the machine needs.
    floors_us: BTreeMap<&'static str, f64>,
    us: f64,
    bound: &'static str,
    /// By a count of clocks: seconds at least and at most, where there is one.
    predicted_us: Option<[f64; 2]>,
}

/// One line with one object.
pub(super) fn json(plans: &[Plan], machine: &Machine) -> Result<String> {
    let model = Model {
        machine: machine.name,
        measured: false,
        bytes_per_second: machine.bandwidth,
        l2_bytes_per_second: machine.l2,
        tensor_flops: machine.tensor,
        mma_sync_share: machine.mma_sync,
        f32_flops: machine.scalar,
        launch_us: machine.launch * 1e6,
        multiprocessors: machine.multiprocessors,
    };
    let object = Object { model, shapes: plans.iter().map(shape_plan).collect() };
    Ok(serde_json::to_string(&object).map_err(|error| Error::Stdout(error.into()))? + "\n")
}

fn shape_plan(plan: &Plan) -> ShapePlan<'_> {
    let shape = &plan.shape;
    ShapePlan {
        shape,
        activation: plan.activation,
        dtype: plan.dtype.name(),
        mean_k: plan.rows as f64 / shape.tokens as f64,
        rows: plan.rows,
        launches: plan.forward.launches.iter().map(launch_plan).collect(),
        stages_us: stages_us(&plan.forward),
        forward_us: plan.forward.seconds() * 1e6,
        backward: plan.backward.as_ref().map(|backward| BackwardPlan {
            launches: backward.launches.iter().map(launch_plan).collect(),
            stages_us: stages_us(backward),
            us: backward.seconds() * 1e6,
        }),
        memory: {
            let [nothing, hidden, recompute] = [0, 1, 2].map(|kept| bytes_plan(plan.bytes[kept], plan.row_bytes[kept]));
            MemoryPlan { nothing, hidden, recompute }
        },
    }
}

fn stages_us(direction: &Direction) -> BTreeMap<&'static str, f64> {
    direction.stages().into_iter().map(|(stage, seconds)| (stage, seconds * 1e6)).collect()
}

fn bytes_plan(bytes: Bytes, saved_row_bytes: usize) -> BytesPlan {
    BytesPlan {
        saved_row_bytes,
        saved_bytes: bytes.step.saved,
        scratch_bytes: bytes.step.scratch,
        step_bytes: bytes.step.total(),
        workspace_bytes: bytes.workspace,
        peak_bytes: bytes.peak(),
    }
}

fn launch_plan(priced: &Priced) -> LaunchPlan {
    let (launch, work) = (&priced.launch, &priced.work);
    LaunchPlan {
        stage: priced.stage,
        kernel: launch.kernel,
        grid: launch.grid,
        threads: launch.threads,
        shared_bytes: launch.shared,
        tiles: work.tiles,
        bytes: work.bytes,
        operations: work.operations,
        l2_bytes: work.l2_bytes,
        wavefronts: work.wavefronts,
        instructions: work.instructions,
        floors_us: priced.floors.iter().map(|(part, seconds)| (bound(*part), seconds * 1e6)).collect(),
        us: priced.seconds * 1e6,
        bound: bound(priced.bound),
        predicted_us: priced.prediction.map(|of| [of.least, of.most].map(|seconds| seconds * 1e6)),
    }
}
