//! `da-moe plan`: every launch of a layer call on a GPU, what it does and how long a model says that takes, and the memory
//! that it needs.

mod backward;
mod launches;
mod report;

use crate::args::PlanArgs;
use crate::bench::shapes::{Experts, ShapeArg};
use crate::{Error, Result};
use da_moe::cuda::cost::hopper::{Hopper, Prediction};
use da_moe::cuda::cost::{Bound, Contents, Machine, Work};
use da_moe::cuda::launch::prediction;
use da_moe::cuda::{self, Architecture, Bytes, Call, Launch, Most, Target};
use da_moe::{Activation, DType, ExpertsPerToken, Keep, LayerConfig, Policy, Shape, Sizes, StepBytes};
use std::io::{self, Write};

/// The machine of the model, and of the predictions for what Hopper alone runs.
const MACHINE: Machine = Machine::H100;
const HOPPER: Hopper = Hopper::H100;

pub(crate) fn execute(arguments: &PlanArgs) -> Result<()> {
    let shapes = match &arguments.shape {
        Some(shape) => vec![shape.clone()],
        None => Shape::ALL.map(ShapeArg::from).to_vec(),
    };
    let plans: Vec<Plan> = shapes.into_iter().map(|shape| Plan::new(shape, arguments)).collect::<Result<_>>()?;
    let text = match arguments.json {
        true => report::json(&plans, &MACHINE)?,
        false => report::table(&plans, &MACHINE, &HOPPER),
    };
    io::stdout().write_all(text.as_bytes()).map_err(Error::Stdout)
}

/// The launches of one shape.
struct Plan {
    shape: ShapeArg,
    arch: Architecture,
    activation: Activation,
    dtype: DType,
    experts: Experts,
    /// R, where tokens get their mean number of experts.
    rows: usize,
    forward: Direction,
    backward: Option<Direction>,
    /// With nothing kept for backward, with the hidden rows kept, and with them computed again: of everything, and of what is saved
    /// for each row.
    bytes: [Bytes; 3],
    row_bytes: [usize; 3],
}

/// In the order of [`Plan::bytes`].
const KEEPS: [Keep; 3] = [Keep::Nothing, Keep::Hidden, Keep::Recompute];

/// The launches of a forward or of a backward.
struct Direction {
    name: &'static str,
    launches: Vec<Priced>,
}

/// A launch with its work and its time.
struct Priced {
    stage: &'static str,
    launch: Launch,
    work: Work,
    floors: [(Bound, f64); 5],
    seconds: f64,
    bound: Bound,
    /// By a count of clocks, where there is one.
    prediction: Option<Prediction>,
}

impl Plan {
    fn new(shape: ShapeArg, arguments: &PlanArgs) -> Result<Self> {
        let experts = Experts::asked(arguments.k, arguments.mean_k, shape.usual);
        let activation = arguments.act.unwrap_or(shape.activation);
        let config = config(&shape, experts, activation)?;
        let sizes = sizes(&config, shape.tokens)?;
        let mean = match experts {
            Experts::Fixed(k) => k as f64,
            Experts::Mean(mean) => mean,
        };
        let rows = (shape.tokens as f64 * mean).round() as usize;
        let contents = Contents { rows, pairs: launches::pairs(shape.tokens) };
        let priced = |(stage, call): (&'static str, Call)| {
            let work = call.work(&contents);
            let (seconds, bound) = MACHINE.time(&work);
            let prediction = prediction(&HOPPER, &call, &contents);
            Priced { stage, launch: call.launch, work, floors: MACHINE.floors(&work), seconds, bound, prediction }
        };
        let (tokens, dtype) = (shape.tokens, arguments.dtype);
        let target = Target { architecture: arguments.arch, multiprocessors: MACHINE.multiprocessors };
        let calls = launches::forward(&config, tokens, dtype, target)?;
        let forward = Direction { name: "forward", launches: calls.into_iter().map(priced).collect() };
        let backward = arguments.backward.then(|| {
            let calls = backward::backward(&config, tokens, dtype, target);
            Direction { name: "backward", launches: calls.into_iter().map(priced).collect() }
        });
        let heads = launches::heads(&config);
        let bytes = |keep| cuda::bytes(target, &config, Most { tokens, dtype, heads, keep });
        let [nothing, hidden, recompute] = KEEPS.map(bytes);
        let bytes = [nothing?, hidden?, recompute?];
        let row_bytes = KEEPS.map(|keep| StepBytes::of_row(&sizes, dtype, keep));
        Ok(Self { shape, arch: arguments.arch, activation, dtype, experts, rows, forward, backward, bytes, row_bytes })
    }

    fn directions(&self) -> impl Iterator<Item = &Direction> {
        [&self.forward].into_iter().chain(&self.backward)
    }
}

impl Direction {
    fn seconds(&self) -> f64 {
        self.launches.iter().map(|priced| priced.seconds).sum()
    }

    /// Seconds of each stage, in their order.
    fn stages(&self) -> Vec<(&'static str, f64)> {
        let mut stages: Vec<(&'static str, f64)> = Vec::new();
        for priced in &self.launches {
            match stages.last_mut() {
                Some((stage, seconds)) if *stage == priced.stage => *seconds += priced.seconds,
                _ => stages.push((priced.stage, priced.seconds)),
            }
        }
        stages
    }
}

fn config(shape: &ShapeArg, experts: Experts, activation: Activation) -> Result<LayerConfig> {
    let most = experts.most(shape.experts)?;
    let config = LayerConfig {
        hidden_act: activation,
        experts_per_token: match experts {
            Experts::Fixed(k) => ExpertsPerToken::new(Policy::Fixed { k }),
            Experts::Mean(_) => ExpertsPerToken::between(Policy::Proportional { scale: None }, 1, most),
        },
        ..LayerConfig::da_moe(shape.hidden, shape.width, shape.experts, most)
    };
    config.validate()?;
    Ok(config)
}

/// Kernels count in i32: what does not fit would be planned as something else.
fn sizes(config: &LayerConfig, tokens: usize) -> Result<Sizes> {
    let sizes = Sizes::new(config, tokens)?;
    match [sizes.hidden, sizes.rows_in, tokens].into_iter().find(|size| i32::try_from(*size).is_err()) {
        Some(size) => Err(Error::Usage(format!("a size of {size} is more than kernels count to"))),
        None => Ok(sizes),
    }
}
