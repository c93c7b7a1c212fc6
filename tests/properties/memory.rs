//! What is allocated is what was announced, and layers that run one after another share what means nothing between calls.

use da_moe::cuda::{self, Bytes, Device, Kernels, Most, Staged, StandIn, Target};
use da_moe::{
    Activation, Backend, Cpu, DType, Error, ExpertsPerToken, Keep, Layer, LayerConfig, NullExpert, Policy, Scratch,
    Sizes, Step, StepBytes, TensorMut,
};
use da_moe_harness::case::{Case, small_config};
use da_moe_harness::data::{Data, poison};
use da_moe_harness::kernels;
use std::sync::Arc;

fn configs() -> [LayerConfig; 3] {
    let rich = LayerConfig {
        num_null_experts: 2,
        null_expert: NullExpert::Constant,
        shared_intermediate_size: 5,
        ..small_config()
    };
    [small_config(), rich, LayerConfig::da_moe(64, 24, 9, 2)]
}

/// Storage types, and the bytes of an element of `h` beside each.
const HIDDEN_BYTES: [(DType, usize); 3] = [(DType::F32, 4), (DType::Bf16, 2), (DType::F16, 4)];

const KEEPS: [Keep; 3] = [Keep::Nothing, Keep::Hidden, Keep::Recompute];

/// Bytes that `work` allocates on a device.
fn allocated<D: Device, T>(kernels: &Kernels<StandIn<D>>, work: impl FnOnce() -> Result<T, Error>) -> usize {
    let before = kernels.device().counts().bytes;
    work().unwrap();
    kernels.device().counts().bytes - before
}

fn announced_bytes_are_allocated<D: Device>(staged: Staged<D>) {
    let kernels = Kernels::new(Arc::new(StandIn::new(staged.kernels().device().clone(), None)));
    for config in configs() {
        let layer = Layer::new(kernels.clone(), config.clone()).unwrap();
        for keep in KEEPS {
            for (tokens, dtype) in [(0, DType::F32), (1, DType::F16), (37, DType::Bf16), (500, DType::F32)] {
                let bytes = layer.step_bytes(tokens, dtype, keep).unwrap();
                assert_eq!(allocated(&kernels, || layer.step(tokens, dtype, keep)), bytes.total());
                assert_eq!(allocated(&kernels, || layer.step_without_scratch(tokens, dtype, keep)), bytes.saved);
                assert_eq!(allocated(&kernels, || layer.scratch(tokens, dtype, keep)), bytes.scratch);
                let most = Most { tokens, dtype, heads: 2, keep };
                let workspace = kernels.workspace_bytes(&config, most).unwrap();
                assert_eq!(allocated(&kernels, || kernels.stream(workspace)), workspace);
                // Without a device the same is known.
                assert_eq!(cuda::bytes(kernels.target(), &config, most).unwrap(), Bytes { step: bytes, workspace });
            }
        }
    }
}

#[test]
fn as_many_bytes_are_allocated_as_announced() {
    kernels::on_each(announced_bytes_are_allocated, announced_bytes_are_allocated);
}

#[test]
fn without_backward_there_is_nothing_for_it_and_recomputing_saves_the_hidden_rows() {
    for config in configs() {
        let layer = Layer::new(Cpu::new(), config.clone()).unwrap();
        for (dtype, size) in HIDDEN_BYTES {
            let [nothing, hidden, recompute] = KEEPS.map(|keep| layer.step_bytes(100, dtype, keep).unwrap());
            assert_eq!(nothing.saved, recompute.saved);
            assert!(nothing.scratch < recompute.scratch);
            let elements = 100 * config.k_max() * config.rows_in() + 100 * config.shared_rows_in();
            assert_eq!(hidden.saved, recompute.saved + size * elements);
        }
    }
}

/// With a gate `4·F` bytes of a row in bf16: twice `F` elements of two.
#[test]
fn a_row_keeps_its_hidden_elements_and_its_places_in_the_plan() {
    let saved = |config: &LayerConfig, tokens, dtype, keep| {
        cuda::bytes(Target::H100, config, Most { tokens, dtype, heads: 0, keep }).unwrap().step.saved
    };
    for (dtype, size) in HIDDEN_BYTES {
        for activation in [Activation::Gelu, Activation::Swiglu] {
            let config = LayerConfig { hidden_act: activation, ..LayerConfig::da_moe(64, 24, 9, 2) };
            let of_row = |keep| StepBytes::of_row(&Sizes::new(&config, 100).unwrap(), dtype, keep);
            assert_eq!(of_row(Keep::Hidden), of_row(Keep::Recompute) + size * activation.rows_in(24));
            assert_eq!(of_row(Keep::Nothing), of_row(Keep::Recompute));
            // One row a token more, and what a token has once.
            let wider = LayerConfig {
                experts_per_token: ExpertsPerToken::between(Policy::Budget { mean_k: 2.0 }, 0, 3),
                ..config.clone()
            };
            for keep in KEEPS {
                let more = saved(&wider, 100, dtype, keep) - saved(&config, 100, dtype, keep);
                assert_eq!(more, 100 * of_row(keep), "{dtype}, {keep:?}");
            }
        }
    }
}

#[test]
fn kernels_hand_rows_on_in_half_the_bytes_where_their_type_has_the_range() {
    const TOKENS: usize = 100;
    for config in configs() {
        for keep in KEEPS {
            let step = |dtype| {
                cuda::bytes(Target::H100, &config, Most { tokens: TOKENS, dtype, heads: 0, keep }).unwrap().step
            };
            let of_f32 = step(DType::F32);
            let shared = usize::from(config.shared_intermediate_size > 0);
            let elements = TOKENS * (config.k_max() + shared) * config.hidden_size;
            assert_eq!(step(DType::Bf16).scratch, of_f32.scratch - 2 * elements);
            assert_eq!(step(DType::F16), of_f32);
        }
    }
}

/// Bits of a forward and a backward of every case, with one scratch for all or with each its own: forward in order,
/// backward in reverse, as through a model.
fn through_a_model<B: Backend<Stream = ()> + Clone>(backend: &B, cases: &[Case], shared: bool) -> Vec<Vec<u32>> {
    let data: Vec<Data> = cases.iter().map(Data::new).collect();
    let layers: Vec<_> = cases.iter().map(|case| Layer::new(backend.clone(), case.config.clone()).unwrap()).collect();
    let mut one = layers[0].scratch(data[0].tokens, data[0].dtype, cases[0].keep).unwrap();
    let mut steps: Vec<Step> = Vec::new();
    let mut bits = Vec::new();
    for ((layer, data), case) in layers.iter().zip(&data).zip(cases) {
        let mut step = if shared {
            layer.step_without_scratch(data.tokens, data.dtype, case.keep).unwrap()
        } else {
            layer.step(data.tokens, data.dtype, case.keep).unwrap()
        };
        let mut state = layer.state().unwrap();
        let mut forward = |step: &mut Step| da_moe_harness::forward(layer, data, &mut state, step).unwrap();
        let outcome = if shared { step.with_scratch(&mut one, forward) } else { forward(&mut step) };
        bits.push(outcome.y.iter().map(|y| (*y as f32).to_bits()).collect());
        steps.push(step);
    }
    for ((layer, data), step) in layers.iter().zip(&data).zip(&mut steps).rev() {
        let mut gradients = data.gradients();
        let mut view = gradients.view_mut().unwrap();
        let (inputs, weights, dy) = (data.inputs().unwrap(), data.weights().unwrap(), data.dy().unwrap());
        let mut backward = |step: &mut Step| layer.backward(&(), &inputs, &weights, dy, step, &mut view).unwrap();
        if shared {
            step.with_scratch(&mut one, backward)
        } else {
            backward(step)
        }
        assert_eq!(step.router_gradient().is_ok(), !shared, "the logits' gradient is in scratch");
        bits.push(gradients.x.to_f32().into_iter().map(f32::to_bits).collect());
        bits.push(gradients.experts.w_in.to_f32().into_iter().map(f32::to_bits).collect());
    }
    bits
}

fn layers_share_scratch<B: Backend<Stream = ()> + Clone>(backend: B) {
    let [small, rich, _] = configs();
    let of = |config: &LayerConfig, seed, tokens| Case { seed, lengths: vec![tokens], ..Case::plain(config.clone()) };
    let cases = [of(&rich, 1, 20), of(&small, 2, 11), of(&rich, 3, 7)];
    for keep in [Keep::Hidden, Keep::Recompute] {
        let cases = cases.clone().map(|case| Case { keep, ..case });
        assert_eq!(through_a_model(&backend, &cases, true), through_a_model(&backend, &cases, false));
    }
}

#[test]
fn layers_of_a_model_share_one_scratch() {
    layers_share_scratch(Cpu::new());
    kernels::on_each(layers_share_scratch, layers_share_scratch);
}

#[test]
fn scratch_that_is_missing_or_too_small_is_refused_before_anything_is_written() {
    let [_, rich, _] = configs();
    let data = Data::new(&Case::plain(rich));
    let layer = Layer::new(Cpu::new(), data.config.clone()).unwrap();
    let mut step = layer.step_without_scratch(14, DType::F32, Keep::Hidden).unwrap();
    let mut refused = |scratch: Option<Scratch>, expected: &str| {
        let mut y = poison(DType::F32, 14 * 12);
        let mut forward = |step: &mut Step| {
            let (inputs, weights) = (data.inputs().unwrap(), data.weights().unwrap());
            let y = TensorMut::new(&mut y, [14, 12]).unwrap();
            layer.forward(&(), &inputs, &weights, &mut layer.state().unwrap(), step, y)
        };
        let result = match scratch {
            Some(mut scratch) => step.with_scratch(&mut scratch, forward),
            None => forward(&mut step),
        };
        assert_eq!(result.unwrap_err().to_string(), expected);
        assert!(y.to_f32().iter().all(|y| y.is_nan()));
    };
    refused(None, "forward: the step was made without scratch and is lent none");
    refused(Some(Scratch::default()), "forward: the step was made without scratch and is lent none");
    let small = layer.scratch(13, DType::F32, Keep::Hidden).unwrap();
    refused(Some(small), "forward: the scratch's `rows` has room for 624 f32, 672 f32 are needed");
    let forward_only = layer.scratch(14, DType::F32, Keep::Nothing).unwrap();
    refused(Some(forward_only), "forward: the scratch's `d_weights` has room for 0 f32, 56 f32 are needed");
}
