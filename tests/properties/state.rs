//! SPEC §1 `running`, §2 `budget-running`, §3 bias update: what moves between steps, when, and where it goes.

use da_moe::{
    Backend, BiasUpdate, Buffer, DType, ExpertsPerToken, ImportanceArgs, Keep, Layer, LayerConfig, Normalize, Policy,
    STATE_LEN, Source, State, TensorMut, TensorRef,
};
use da_moe_harness::Through;
use da_moe_harness::case::{Case, small_config};
use da_moe_harness::data::{Data, Numbers};
use da_moe_reference::{Problem, forward};

fn config(normalize: Normalize, policy: Policy) -> LayerConfig {
    let mut config = small_config();
    config.importance.source = Source::External;
    config.importance.normalize = normalize;
    config.experts_per_token = ExpertsPerToken::between(policy, 0, 6);
    config
}

fn values(state: &State) -> [f32; STATE_LEN] {
    state.values.to_host().unwrap().as_slice::<f32>().unwrap().try_into().unwrap()
}

const RUNNING: Normalize = Normalize::Running { momentum: 0.75 };
const PRICED: Policy = Policy::BudgetRunning { mean_k: 2.5, momentum: 0.8 };

/// Configurations that carry something, and one that does not.
fn configs() -> [LayerConfig; 4] {
    let plain = Policy::Proportional { scale: None };
    [
        config(RUNNING, plain.clone()),
        config(Normalize::None, PRICED),
        config(RUNNING, PRICED),
        config(Normalize::Max, plain),
    ]
}

fn training_steps_move_the_state_as_specified<B: Backend<Stream = ()> + Clone>(backend: B) {
    for config in configs() {
        let layer = Layer::new(backend.clone(), config.clone()).unwrap();
        let mut state = layer.state().unwrap();
        let mut expected = [0.0f64; STATE_LEN];
        assert_eq!(values(&state), [0.0; STATE_LEN]);
        for seed in 0..6 {
            let case =
                Case { seed, training: true, masked_every: 3, keep: Keep::Nothing, ..Case::plain(config.clone()) };
            let data = Data::new(&case);
            let before = expected.map(|value| value as f32);
            let problem = Problem::new(config.clone(), &data.inputs().unwrap(), &data.weights().unwrap(), &before);
            let oracle = forward(&problem.unwrap());
            expected = oracle.next_state.unwrap();
            let outcome = Through(backend.clone()).run_with(&data, &case, Some(&mut state)).unwrap();
            let k: Vec<i64> = oracle.k.iter().map(|k| *k as i64).collect();
            assert_eq!(outcome.k, k, "step {seed}: decided with the statistics of earlier steps");
            for (found, expected) in values(&state).into_iter().zip(expected) {
                let close = (f64::from(found) - expected).abs() <= 1e-5 * expected.abs().max(1e-3);
                assert!(close, "step {seed}: {:?}, expected {expected:?}", values(&state));
            }
        }
        let runs = config.importance.normalize == RUNNING;
        assert_eq!(values(&state)[3], if runs { 6.0 } else { 0.0 }, "training steps that moved minimum and maximum");
    }
}

fn evaluation_and_fully_masked_batches_leave_the_state_alone<B: Backend<Stream = ()> + Clone>(backend: B) {
    for config in configs() {
        let case = Case { training: true, keep: Keep::Nothing, ..Case::plain(config.clone()) };
        let through = Through(backend.clone());
        let layer = Layer::new(backend.clone(), config.clone()).unwrap();
        let mut state = layer.state().unwrap();
        let evaluation = Case { training: false, seed: 5, ..case.clone() };
        through.run_with(&Data::new(&evaluation), &evaluation, Some(&mut state)).unwrap();
        assert_eq!(values(&state), [0.0; STATE_LEN], "evaluation before any training");
        through.run_with(&Data::new(&case), &case, Some(&mut state)).unwrap();
        let trained = values(&state);

        through.run_with(&Data::new(&evaluation), &evaluation, Some(&mut state)).unwrap();
        assert_eq!(values(&state), trained, "evaluation");

        let mut masked = Data::new(&Case { seed: 9, ..case.clone() });
        masked.mask = Some(vec![0u8; masked.tokens].into());
        through.run_with(&masked, &case, Some(&mut state)).unwrap();
        assert_eq!(values(&state), trained, "nothing but padding");

        let empty = Case { lengths: vec![0], ..case.clone() };
        through.run_with(&Data::new(&empty), &empty, Some(&mut state)).unwrap();
        assert_eq!(values(&state), trained, "no tokens");
    }
}

/// An average never leaves infinity again, so that what is infinite is left out of it.
fn infinite_importance_leaves_no_trace<B: Backend<Stream = ()> + Clone>(backend: B) {
    let config = config(RUNNING, PRICED);
    let case = Case { training: true, keep: Keep::Nothing, ..Case::plain(config.clone()) };
    let layer = Layer::new(backend.clone(), config.clone()).unwrap();
    let through = Through(backend);
    let after = |replace: &dyn Fn(&mut Vec<f32>)| {
        let mut state = layer.state().unwrap();
        for seed in 0..4 {
            let mut data = Data::new(&Case { seed, ..case.clone() });
            let mut importance = data.importance.to_f32();
            if seed == 1 {
                replace(&mut importance);
            }
            data.importance = importance.into();
            through.run_with(&data, &case, Some(&mut state)).unwrap();
        }
        values(&state)
    };
    // Neither the smallest nor the largest of its batch.
    let middle = |importance: &mut Vec<f32>| importance[3] = 0.5;
    let infinite = |importance: &mut Vec<f32>| importance[3] = f32::INFINITY;
    assert_eq!(after(&infinite)[..2], after(&middle)[..2], "statistics of the others");
    let finite = after(&infinite).iter().all(|value| value.is_finite());
    assert!(finite, "{:?}", after(&infinite));
    let all_infinite = |importance: &mut Vec<f32>| importance.fill(f32::INFINITY);
    let [low, high, price, steps] = after(&all_infinite);
    assert!(low < high && high <= 1.0 && price.is_finite() && steps == 3.0, "{:?}", [low, high, price, steps]);
    let largest = |importance: &mut Vec<f32>| importance.fill(f32::MAX);
    assert!(after(&largest).iter().all(|value| value.is_finite()), "{:?}", after(&largest));
}

fn a_state_that_no_step_leaves_is_refused<B: Backend<Stream = ()> + Clone>(backend: B) {
    let config = config(RUNNING, PRICED);
    let case = Case { training: true, keep: Keep::Nothing, ..Case::plain(config.clone()) };
    let layer = Layer::new(backend.clone(), config).unwrap();
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    for (wrong, message) in [
        ([inf, inf, 0.1, 3.0], "its minimum is inf"),
        ([0.0, nan, 0.1, 3.0], "its maximum is NaN"),
        ([0.0, 1.0, -0.5, 3.0], "its price is -0.5"),
        ([0.0, 1.0, 0.5, -1.0], "its number of steps is -1"),
        ([0.75, 0.25, 0.5, 2.0], "its minimum 0.75 is above its maximum 0.25"),
    ] {
        let mut state = layer.state().unwrap();
        state.values = Buffer::from(wrong.to_vec()).into();
        let error = Through(backend.clone()).run_with(&Data::new(&case), &case, Some(&mut state)).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(values(&state).map(f32::to_bits), wrong.map(f32::to_bits), "nothing is written");
    }
}

/// Stages called one by one, and states on a device, are not checked: what is no number is nothing there.
fn statistics_that_are_no_numbers_count_as_none<B: Backend<Stream = ()> + Clone>(backend: B) {
    let config = config(RUNNING, PRICED);
    let case = Case { training: true, ..Case::plain(config.clone()) };
    let data = Data::new(&case);
    let after = |mut state: Vec<f32>| {
        let (tokens, candidates) = (data.tokens, config.candidates());
        let logits = vec![0.0f32; tokens * candidates];
        let mut importance = vec![f32::NAN; tokens];
        let mut scratch = vec![0.0f32; 4 * tokens];
        let count = scratch.len();
        let args = ImportanceArgs {
            config: Some(&config.importance),
            cu_seqlens: None,
            mask: None,
            attention: None,
            external: Some(TensorRef::new(&data.importance, [tokens]).unwrap()),
            token_ids: None,
            token_frequency: None,
            logits: TensorRef::new(&logits, [tokens, candidates]).unwrap(),
            experts: config.num_experts,
            state: TensorMut::new(&mut state, [STATE_LEN]).unwrap(),
            training: true,
            scratch: TensorMut::new(&mut scratch, [count]).unwrap(),
            importance: TensorMut::new(&mut importance, [tokens]).unwrap(),
        };
        backend.importance(&(), args).unwrap();
        (importance, [state[0], state[1], state[3]])
    };
    let fresh = after(vec![0.0; STATE_LEN]);
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    for [low, high, steps] in [
        [0.2, inf, 5.0],
        [nan, 0.5, 5.0],
        [0.1, 0.2, nan],
        [0.1, 0.2, inf],
        [0.1, 0.2, -3.0],
        [-0.1, 0.2, 5.0],
        [0.75, 0.25, 5.0],
    ] {
        assert_eq!(after(vec![low, high, 0.0, steps]), fresh, "{low} {high} {steps}");
    }
}

fn before_the_first_step_running_is_the_unit_interval<B: Backend<Stream = ()> + Clone>(backend: B) {
    let config = config(RUNNING, Policy::Proportional { scale: None });
    let case = Case { lengths: vec![4], ..Case::plain(config) };
    let mut data = Data::new(&case);
    data.importance = vec![-0.5f32, 0.25, 0.5, 7.0].into();
    let outcome = Through(backend.clone()).run_with(&data, &case, None).unwrap();
    assert_eq!(outcome.importance, [0.0, 0.25, 0.5, 1.0], "minimum 0, maximum 1, clamped");
}

fn the_running_price_reaches_its_mean<B: Backend<Stream = ()> + Clone>(backend: B) {
    for (mean_k, power) in [(1.0, 1), (2.5, 1), (2.5, 3), (4.0, 2)] {
        let config = config(Normalize::None, Policy::BudgetRunning { mean_k, momentum: 0.5 });
        let layer = Layer::new(backend.clone(), config.clone()).unwrap();
        let mut state = layer.state().unwrap();
        let mut step = layer.step(400, DType::F32, Keep::Nothing).unwrap();
        let mut last = Vec::new();
        for seed in 0..50 {
            let case = Case { seed, lengths: vec![400], training: true, ..Case::plain(config.clone()) };
            let mut data = Data::new(&case);
            let mut n = Numbers::new(seed);
            // Far from uniform, so that the starting price is wrong.
            data.importance = (0..400).map(|_| n.unit().powi(power)).collect::<Vec<f32>>().into();
            let outcome = da_moe_harness::forward(&layer, &data, &mut state, &mut step).unwrap();
            last.push(outcome.k.iter().sum::<i64>() as f64 / 400.0);
        }
        let mean = last[40..].iter().sum::<f64>() / 10.0;
        assert!((mean - mean_k).abs() < 0.1 * mean_k, "asked for {mean_k}, reached {mean}: {last:?}");
    }
}

fn under_a_running_price_tokens_are_independent_of_their_batch<B: Backend<Stream = ()> + Clone>(backend: B) {
    let config = config(Normalize::None, PRICED);
    let layer = Layer::new(backend.clone(), config.clone()).unwrap();
    let case = |lengths: Vec<usize>, training| Case { lengths, training, ..Case::plain(config.clone()) };
    let (alone, together) = (case(vec![5], true), case(vec![5, 40], true));
    let (small, mut large) = (Data::new(&alone), Data::new(&together));
    let mut importance = small.importance.to_f32();
    importance.extend(&large.importance.to_f32()[5..]);
    large.importance = importance.into();
    let price = 0.17;
    let k = |data: &Data| {
        let mut state = layer.state().unwrap();
        state.values = Buffer::from(vec![0.0, 1.0, price, 8.0]).into();
        let mut step = layer.step(data.tokens, data.dtype, Keep::Nothing).unwrap();
        da_moe_harness::forward(&layer, data, &mut state, &mut step).unwrap().k
    };
    assert_eq!(k(&small), k(&large)[..5]);
    for (k, importance) in k(&large).into_iter().zip(large.importance.to_f32()) {
        assert_eq!(k, ((importance / price).floor() as i64).min(6), "floor(I / price)");
    }
}

/// One forward with this bias; the load, and the bias after an update.
fn step_bias<B: Backend<Stream = ()>>(
    layer: &Layer<B>,
    data: &mut Data,
    bias: Vec<f32>,
    update: BiasUpdate,
) -> (Vec<i64>, Vec<f32>) {
    data.router_bias = Some(bias.clone().into());
    let mut step = layer.step(data.tokens, data.dtype, Keep::Nothing).unwrap();
    let outcome = da_moe_harness::forward(layer, data, &mut layer.state().unwrap(), &mut step).unwrap();
    let mut bias = Buffer::from(bias);
    let count = bias.len();
    layer.update_bias(&(), update, &step, TensorMut::new(&mut bias, [count]).unwrap()).unwrap();
    (outcome.load, bias.to_f32())
}

fn imbalance(load: &[i64]) -> f64 {
    let mean = load.iter().sum::<i64>() as f64 / load.len() as f64;
    load.iter().map(|count| (*count as f64 - mean).abs()).sum::<f64>() / mean
}

fn bias_updates_follow_their_formula_toward_balance<B: Backend<Stream = ()> + Clone>(backend: B) {
    let mut config = small_config();
    config.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 2 });
    let case = Case { lengths: vec![300], skew: 1.5, ..Case::plain(config.clone()) };
    let layer = Layer::new(backend, config).unwrap();
    for update in [BiasUpdate::Sign { rate: 0.02 }, BiasUpdate::Proportional { rate: 0.05 }] {
        let mut data = Data::new(&case);
        let mut bias = vec![0.0f32; 6];
        let mut loads = Vec::new();
        for _ in 0..60 {
            let (load, after) = step_bias(&layer, &mut data, bias.clone(), update);
            let mean = load.iter().sum::<i64>() as f32 / 6.0;
            for e in 0..6 {
                let lack = mean - load[e] as f32;
                let expected = bias[e]
                    + match update {
                        BiasUpdate::Sign { .. } if lack == 0.0 => 0.0,
                        BiasUpdate::Sign { rate } => rate * lack.signum(),
                        BiasUpdate::Proportional { rate } => rate * lack / mean,
                    };
                assert!((after[e] - expected).abs() < 1e-6, "{update:?}: {} for {expected}", after[e]);
            }
            bias = after;
            loads.push(imbalance(&load));
        }
        let (first, last) = (loads[0], loads[59]);
        assert!(first > 0.5 && last < first / 3.0, "{update:?}: imbalance from {first} to {last}");
    }
}

fn a_batch_without_selections_moves_no_bias<B: Backend<Stream = ()> + Clone>(backend: B) {
    let mut config = config(Normalize::None, Policy::Proportional { scale: None });
    config.num_null_experts = 1;
    let case = Case::plain(config.clone());
    let layer = Layer::new(backend, config).unwrap();
    let mut data = Data::new(&case);
    data.importance = vec![0.0f32; data.tokens].into();
    for update in [BiasUpdate::Sign { rate: 0.5 }, BiasUpdate::Proportional { rate: 0.5 }] {
        let bias: Vec<f32> = (0..7).map(|e| e as f32).collect();
        let (load, after) = step_bias(&layer, &mut data, bias.clone(), update);
        assert_eq!((load, after), (vec![0; 7], bias));
    }
}

/// Every property above, on the CPU backend and on the kernels wherever they run.
macro_rules! on_every_backend {
    ($($property:ident),* $(,)?) => {
        mod cpu {
            $(
                #[test]
                fn $property() {
                    super::$property(da_moe::Cpu::new());
                }
            )*
        }

        mod kernels {
            $(
                #[test]
                fn $property() {
                    da_moe_harness::kernels::on_each(super::$property, super::$property);
                }
            )*
        }
    };
}

on_every_backend!(
    training_steps_move_the_state_as_specified,
    evaluation_and_fully_masked_batches_leave_the_state_alone,
    infinite_importance_leaves_no_trace,
    a_state_that_no_step_leaves_is_refused,
    statistics_that_are_no_numbers_count_as_none,
    before_the_first_step_running_is_the_unit_interval,
    the_running_price_reaches_its_mean,
    under_a_running_price_tokens_are_independent_of_their_batch,
    bias_updates_follow_their_formula_toward_balance,
    a_batch_without_selections_moves_no_bias,
);
