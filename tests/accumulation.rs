//! SPEC §6: gradients of weights may be f32 beside half-precision weights, and may be added to what is there. Both follow
//! from one sum in f32, so both are exact, bit for bit.

mod harness;

use da_moe::{Backend, Buffer, Cpu, DType, Keep, Layer, LayerConfig, NullExpert};
use harness::case::{Case, small_config};
use harness::data::{Data, Numbers};
use harness::gradients::GradientData;
use harness::kernels;

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
    harness::forward(&layer, data, &mut layer.state().unwrap(), &mut step).unwrap();
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

/// Puts numbers where poison was; returns a copy.
fn fill(buffer: &mut Buffer, numbers: &mut Numbers) -> Buffer {
    *buffer = numbers.tensor(buffer.dtype(), buffer.len(), 1.0);
    buffer.clone()
}

#[test]
fn a_sum_is_rounded_once_wherever_it_goes() {
    sums_are_rounded_once(Cpu::new());
    kernels::on_each(sums_are_rounded_once, sums_are_rounded_once);
}
