//! SPEC §6: gradients of weights may be f32 beside half-precision weights, and may be added to what is there. Both follow
//! from one sum in f32, so both are exact, bit for bit.

use da_moe::{Backend, Buffer, Cpu, DType, Error, Keep, Layer, LayerConfig, Losses, NullExpert};
use da_moe_harness::case::{Case, small_config};
use da_moe_harness::data::{Data, Numbers};
use da_moe_harness::gradients::GradientData;
use da_moe_harness::kernels;

/// Calls with every gradient there is, experts without rows and experts with nearly all of them.
fn cases() -> Vec<Case> {
    let constants = LayerConfig {
        num_null_experts: 2,
        null_expert: NullExpert::Constant,
        shared_intermediate_size: 7,
        ..small_config()
    };
    let wide =
        LayerConfig { num_null_experts: 1, null_expert: NullExpert::Constant, ..LayerConfig::da_moe(16, 8, 40, 2) };
    let of = |dtype, config: &LayerConfig| Case { dtype, biases: true, masked_every: 4, ..Case::plain(config.clone()) };
    vec![
        of(DType::F32, &constants),
        Case { router_f32: true, skew: 9.0, ..of(DType::Bf16, &constants) },
        Case { keep: Keep::Recompute, padding: 3, ..of(DType::F16, &constants) },
        Case { lengths: vec![90], ..of(DType::Bf16, &wide) },
        Case { lengths: vec![], ..of(DType::Bf16, &constants) },
        Case { routing: 1, ..of(DType::F16, &constants) },
    ]
}

/// Backward of a call into these gradients.
fn backward<B: Backend<Stream = ()> + Clone>(backend: &B, case: &Case, data: &Data, gradients: &mut GradientData) {
    let layer = Layer::new(backend.clone(), case.config.clone()).unwrap();
    let mut step = layer.step(data.tokens, data.dtype, case.keep).unwrap();
    da_moe_harness::forward(&layer, data, &mut layer.state().unwrap(), &mut step).unwrap();
    let (inputs, weights) = (data.inputs().unwrap(), data.weights().unwrap());
    let mut view = gradients.view_mut().unwrap();
    layer.backward(&(), &inputs, &weights, data.dy().unwrap(), &mut step, &mut view).unwrap();
}

fn bits(buffer: &Buffer) -> Vec<u32> {
    buffer.to_f32().into_iter().map(f32::to_bits).collect()
}

/// The sums in f32, the gradients of the weights' types, and those added to what was there in both ways.
fn sums_are_rounded_once<B: Backend<Stream = ()> + Clone>(backend: B) {
    for case in cases() {
        let data = Data::new(&case);
        let what = |name: &str| format!("{}: {name}\n{case:#?}", backend.describe());
        let mut sums = data.gradients_of(Some(DType::F32));
        backward(&backend, &case, &data, &mut sums);
        let mut own = data.gradients();
        backward(&backend, &case, &data, &mut own);
        assert_eq!(bits(&sums.x), bits(&own.x), "{}", what("d.x"));
        for ((name, own), (_, sum)) in own.of_weights().into_iter().zip(sums.of_weights()) {
            assert!(sum.to_f32().iter().all(|sum| sum.is_finite()), "{}", what(name));
            assert_eq!(bits(own), bits(&Buffer::from_f32(own.dtype(), &sum.to_f32())), "{}", what(name));
        }
        for masters in [Some(DType::F32), None] {
            let mut total = data.gradients_of(masters);
            total.accumulate = true;
            let mut numbers = Numbers::new(case.seed);
            let there: Vec<Buffer> =
                total.of_weights().into_iter().map(|(_, total)| fill(total, &mut numbers)).collect();
            backward(&backend, &case, &data, &mut total);
            assert_eq!(bits(&total.x), bits(&own.x), "{}", what("d.x is not added to"));
            for (((name, total), there), (_, sum)) in total.of_weights().into_iter().zip(there).zip(sums.of_weights()) {
                let expected: Vec<f32> = there.to_f32().iter().zip(sum.to_f32()).map(|(a, b)| a + b).collect();
                assert_eq!(bits(total), bits(&Buffer::from_f32(total.dtype(), &expected)), "{}", what(name));
            }
        }
    }
}

/// `loss_scale` is a factor on the losses' coefficients in this call and on nothing else; with `dy` scaled by as much, a power of
/// two is a factor on every gradient.
fn losses_are_scaled_as_the_task<B: Backend<Stream = ()> + Clone>(backend: B) {
    const SCALE: f32 = 256.0;
    let scaled = |buffer: &Buffer| {
        Buffer::from_f32(buffer.dtype(), &buffer.to_f32().iter().map(|value| SCALE * value).collect::<Vec<_>>())
    };
    for mut case in cases() {
        case.config.losses = Losses { balance: 0.5, z: 0.25 };
        let data = Data::new(&case);
        let masters = Some(DType::F32);
        let gradients = |data: &Data, loss_scale| {
            let mut gradients = data.gradients_of(masters);
            gradients.loss_scale = loss_scale;
            backward(&backend, &case, data, &mut gradients);
            gradients
        };
        let mut louder = data.clone();
        louder.config.losses = Losses { balance: f64::from(SCALE) * 0.5, z: f64::from(SCALE) * 0.25 };
        let mut with_factor = gradients(&data, SCALE);
        let mut with_coefficients = {
            let case = Case { config: louder.config.clone(), ..case.clone() };
            let mut gradients = louder.gradients_of(masters);
            backward(&backend, &case, &louder, &mut gradients);
            gradients
        };
        let mut whole = gradients(&data, 1.0);
        let mut scaled_whole = gradients(&Data { dy: scaled(&data.dy), ..data.clone() }, SCALE);
        let what = |name: &str| format!("{}: {name}\n{case:#?}", backend.describe());
        assert_eq!(bits(&with_factor.x), bits(&with_coefficients.x), "{}", what("d.x"));
        for ((name, a), (_, b)) in with_factor.of_weights().into_iter().zip(with_coefficients.of_weights()) {
            assert_eq!(bits(a), bits(b), "{}", what(name));
        }
        // Half-precision has too few exponents to be scaled exactly.
        if case.dtype == DType::F32 {
            for ((name, whole), (_, of_scaled)) in whole.of_weights().into_iter().zip(scaled_whole.of_weights()) {
                assert_eq!(bits(&scaled(whole)), bits(of_scaled), "{}", what(name));
            }
        }
    }
}

/// Puts numbers where poison was; returns a copy.
fn fill(buffer: &mut Buffer, numbers: &mut Numbers) -> Buffer {
    *buffer = numbers.tensor(buffer.dtype(), buffer.len(), 1.0);
    buffer.clone()
}

#[test]
fn the_losses_have_a_factor_for_each_call() {
    losses_are_scaled_as_the_task(Cpu::new());
    kernels::on_each(losses_are_scaled_as_the_task, losses_are_scaled_as_the_task);
}

#[test]
fn a_loss_scale_that_is_no_number_is_refused() {
    let case = Case::plain(small_config());
    let data = Data::new(&case);
    let layer = Layer::new(Cpu::new(), case.config.clone()).unwrap();
    let mut step = layer.step(data.tokens, data.dtype, case.keep).unwrap();
    da_moe_harness::forward(&layer, &data, &mut layer.state().unwrap(), &mut step).unwrap();
    for loss_scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut gradients = data.gradients();
        gradients.loss_scale = loss_scale;
        let mut view = gradients.view_mut().unwrap();
        let (inputs, weights) = (data.inputs().unwrap(), data.weights().unwrap());
        let error = layer.backward(&(), &inputs, &weights, data.dy().unwrap(), &mut step, &mut view).unwrap_err();
        let expected = matches!(error, Error::Value { op: "backward", argument: "loss_scale", .. });
        assert!(expected, "{error}");
        assert!(gradients.x.to_f32().iter().all(|value| value.is_nan()), "nothing was written");
    }
}

#[test]
fn a_sum_is_rounded_once_wherever_it_goes() {
    sums_are_rounded_once(Cpu::new());
    kernels::on_each(sums_are_rounded_once, sums_are_rounded_once);
}
