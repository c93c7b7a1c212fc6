//! SPEC §6 without the oracle: what backward says of a direction is what forward does along it. Each gradient of a backend is
//! held against differences of the same backend's own forward, so it must be the derivative of what really runs, in f32.

use da_moe::{
    Activation, Buffer, Cpu, Error, Keep, LayerConfig, Losses, NormalizeWeights, NullExpert, Policy, Scoring,
};
use da_moe_harness::case::{Case, small_config};
use da_moe_harness::data::{Data, Numbers};
use da_moe_harness::faulty::{Fault, Faulty};
use da_moe_harness::routing::RoutingData;
use da_moe_harness::{Subject, Through, kernels};
use da_moe_reference::Gradients;
use da_moe_reference::check::Outcome;
use std::sync::atomic::{AtomicU64, Ordering};

/// A tensor that a layer reads, and its gradient.
struct Differentiated {
    name: &'static str,
    tensor: fn(&mut Data) -> Option<&mut Buffer>,
    gradient: fn(&Gradients) -> Option<&Vec<f64>>,
}

macro_rules! differentiated {
    ($($name:literal: $tensor:expr, $gradient:expr;)*) => {
        &[$(Differentiated { name: $name, tensor: $tensor, gradient: $gradient }),*]
    };
}

const ALL: &[Differentiated] = differentiated! {
    "x": |data| Some(&mut data.x), |d| Some(&d.x);
    "router.weight": |data| Some(&mut data.router), |d| d.router.as_ref();
    "experts.w_in": |data| Some(&mut data.experts.w_in), |d| Some(&d.experts.w_in);
    "experts.w_out": |data| Some(&mut data.experts.w_out), |d| Some(&d.experts.w_out);
    "experts.b_in": |data| data.experts.b_in.as_mut(), |d| d.experts.b_in.as_ref();
    "experts.b_out": |data| data.experts.b_out.as_mut(), |d| d.experts.b_out.as_ref();
    "shared.w_in": |data| Some(&mut data.shared.as_mut()?.w_in), |d| Some(&d.shared.as_ref()?.w_in);
    "shared.w_out": |data| Some(&mut data.shared.as_mut()?.w_out), |d| Some(&d.shared.as_ref()?.w_out);
    "null.constants": |data| data.constants.as_mut(), |d| d.constants.as_ref();
    "routing.weights": routing_weights, |d| d.routing.as_ref();
};

fn routing_weights(data: &mut Data) -> Option<&mut Buffer> {
    match data.routing.as_mut()? {
        RoutingData::Padded { weights, .. } | RoutingData::Csr { weights, .. } => Some(weights),
    }
}

/// How far a number of a tensor moves, times a normal draw. What rounding adds to a difference falls with the step and what
/// curvature adds rises with its fourth power; at 1/64 both are about 1e-5 of a gradient here, and rounding the moved tensor
/// itself is 2⁻²⁴ · 64, less than that.
const STEP: f32 = 1.0 / 64.0;

/// How far an element of `y` may be off, of its size: 2⁻²⁴ for each of the 20 terms of the longest sum here, which are as often
/// up as down; and six times the deviation that follows.
const ROUNDING: f64 = 6.0 * 2.7e-7;

/// What curvature may leave, of the gradient's norm: of the fifth derivative along the direction, `STEP⁴ / 30` of it, where
/// hidden rows and logits move by about 4 steps (√12 columns) and functions change over about 1: 4⁵ · 64⁻⁴ / 30 = 2e-6,
/// with room for directions and rows that are several times as steep.
const CURVATURE: f64 = 1e-4;

/// Layers with every gradient between them: gated and not, kept and computed again, each score, divisor and null expert.
fn cases() -> Vec<Case> {
    let losses = Losses { balance: 0.5, z: 0.1 };
    let shared = LayerConfig { losses, shared_intermediate_size: 5, ..small_config() };
    let mut constant = LayerConfig {
        losses,
        num_null_experts: 2,
        null_expert: NullExpert::Constant,
        hidden_act: Activation::Gelu,
        ..small_config()
    };
    (constant.router.scoring, constant.router.normalize) = (Scoring::Sigmoid, NormalizeWeights::Selected);
    let mut copy = LayerConfig { losses, num_null_experts: 2, hidden_act: Activation::Geglu, ..small_config() };
    (copy.null_expert, copy.router.normalize) = (NullExpert::Copy, NormalizeWeights::None);
    copy.experts_per_token.policy = Policy::TopP { p: 0.6 };
    let plain = |config: &LayerConfig| Case { lengths: vec![4, 3], ..Case::plain(config.clone()) };
    vec![
        Case { biases: true, ..plain(&shared) },
        Case { keep: Keep::Recompute, biases: true, masked_every: 4, ..plain(&constant) },
        Case { keep: Keep::Recompute, ..plain(&copy) },
        Case { routing: 1, ..plain(&copy) },
        Case { routing: 2, ..plain(&constant) },
    ]
}

/// What is differentiated: `⟨y, dy⟩` and the losses.
fn objective(data: &Data, outcome: &Outcome) -> f64 {
    let Losses { balance, z } = data.config.losses;
    let along: f64 = outcome.y.iter().zip(data.dy_values()).map(|(y, dy)| y * dy).sum();
    // A routing from outside has no losses, and leaves zeros.
    along + balance * outcome.losses[0] + z * outcome.losses[1]
}

/// Everything discrete: which experts a token has, and among which they were normalised. Their order decides nothing.
fn choices(outcome: &Outcome) -> (Vec<i64>, Vec<Vec<i64>>) {
    let slots = outcome.experts.len() / outcome.k.len();
    let sets = outcome.experts.chunks(slots).chain(outcome.ranked.chunks(slots));
    let sorted = |set: &[i64]| {
        let mut set = set.to_vec();
        set.sort_unstable();
        set
    };
    (outcome.k.clone(), sets.map(sorted).collect())
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// A tensor moved so many steps along a direction.
fn moved(data: &Data, of: &Differentiated, direction: &[f32], steps: f32) -> Option<Data> {
    let mut data = data.clone();
    let values = (of.tensor)(&mut data)?.as_mut_slice::<f32>().expect("f32");
    values.iter_mut().zip(direction).for_each(|(value, along)| *value += steps * STEP * along);
    Some(data)
}

/// Along a direction: what the forward passes differ by, what backward says, and by how much the two may be apart. None where
/// somewhere along it other experts are chosen.
fn along(
    subject: &dyn Subject,
    case: &Case,
    of: &Differentiated,
    direction: &[f32],
) -> Result<Option<[f64; 3]>, Error> {
    let data = Data::new(case);
    let outcome = subject.run(&data, case)?;
    let gradients = outcome.gradients.as_ref().expect("backward");
    let gradient = (of.gradient)(gradients).expect("as there is a tensor");
    let forward_alone = Case { keep: Keep::Nothing, ..case.clone() };
    let mut at = [0.0; 4];
    for (at, steps) in at.iter_mut().zip([-2.0, -1.0, 1.0, 2.0]) {
        let data = moved(&data, of, direction, steps).expect("a tensor");
        let passed = subject.run(&data, &forward_alone)?;
        if choices(&passed) != choices(&outcome) {
            return Ok(None);
        }
        *at = objective(&data, &passed);
    }
    let step = f64::from(STEP);
    // Central differences at one and two steps, combined so that third derivatives cancel.
    let difference = (8.0 * (at[2] - at[1]) - (at[3] - at[0])) / (12.0 * step);
    let said = gradient.iter().zip(direction).map(|(g, along)| g * f64::from(*along)).sum();
    // Elements are off independently, so squares add up: of the products with `dy`, and of the four weights to 130 / 12².
    let products: Vec<f64> = outcome.y.iter().zip(data.dy_values()).map(|(y, dy)| y * dy).collect();
    let rounding = ROUNDING * norm(&products) * 130f64.sqrt() / 12.0 / step;
    Ok(Some([difference, said, rounding + CURVATURE * norm(gradient)]))
}

/// Every gradient that is not the derivative.
fn wrong(subject: &dyn Subject, case: &Case) -> Result<Vec<String>, Error> {
    let mut wrong = Vec::new();
    for of in ALL {
        let Some(count) = (of.tensor)(&mut Data::new(case)).map(|tensor| tensor.len()) else { continue };
        // A finished routing leaves the router out.
        if case.routing != 0 && of.name == "router.weight" {
            continue;
        }
        let draws = (0..60).map(|draw| {
            let case = Case { seed: case.seed + draw, ..case.clone() };
            let mut numbers = Numbers::new(1000 + draw);
            let direction: Vec<f32> = (0..count).map(|_| numbers.normal(1.0)).collect();
            along(subject, &case, of, &direction)
        });
        let kept = draws.filter_map(Result::transpose).next();
        let [difference, said, bound] = kept.expect("a direction along which the same experts are chosen")?;
        let apart = (difference - said).abs();
        if apart.is_nan() || apart > bound {
            wrong.push(format!("{}: {difference} by differences, {said} by backward, {bound:.1e} apart", of.name));
        }
    }
    Ok(wrong)
}

/// The emulated kernels, every call in another order of execution.
#[derive(Default)]
struct EveryOrder(AtomicU64);

impl Subject for EveryOrder {
    fn name(&self) -> String {
        "emulated kernels in changing orders".into()
    }

    fn run(&self, data: &Data, case: &Case) -> Result<Outcome, Error> {
        Through(kernels::emulated(self.0.fetch_add(1, Ordering::Relaxed))).run(data, case)
    }
}

fn assert_derivatives(subject: &dyn Subject) {
    for case in cases() {
        let wrong = wrong(subject, &case).unwrap();
        assert!(wrong.is_empty(), "{}:\n{}\n{case:#?}", subject.name(), wrong.join("\n"));
    }
}

#[test]
fn backward_is_the_derivative_of_forward_on_the_cpu() {
    assert_derivatives(&Through(Cpu::new()));
}

#[test]
fn backward_is_the_derivative_of_forward_on_the_kernels() {
    if kernels::is_emulator_wanted() {
        assert_derivatives(&EveryOrder::default());
    }
    if let Some(gpu) = kernels::on_gpu() {
        assert_derivatives(&Through(gpu));
    }
}

/// The bounds above are tight enough to see what is slightly wrong with a gradient.
#[test]
fn what_is_not_the_derivative_is_seen() {
    let faults = [
        Fault::ConstantsGradientMissing,
        Fault::NullWeightGradientMissing,
        Fault::RowGradientMissing,
        Fault::EmptyExpertUnwritten,
        Fault::WOutGradientUnweighted,
        Fault::WeightGradientSign,
        Fault::SharedDxForgotten,
        Fault::CopyDxForgotten,
        Fault::ZLossGradientMissing,
        Fault::BalanceGradientMissing,
        Fault::DivisorGradientMissing,
        Fault::RouterGradientOfWrongToken,
        Fault::RoutingGradientShifted,
    ];
    let is_seen = |fault| {
        let subject = Through(Faulty::new(Some(fault)));
        cases().iter().any(|case| !wrong(&subject, case).unwrap().is_empty())
    };
    let missed: Vec<_> = faults.into_iter().filter(|fault| !is_seen(*fault)).collect();
    assert!(missed.is_empty(), "not seen: {missed:?}");
}
