//! SPEC §6: what backward has of hidden rows. Forward activates them as they are; backward has them in their own type, kept or
//! computed again.

use da_moe::{Activation, Buffer, DType, ExpertsPerToken, Keep, LayerConfig, Policy};
use da_moe_harness::bits::{assert_same_bits, bits};
use da_moe_harness::case::{Case, small_config};
use da_moe_harness::data::Data;
use da_moe_harness::{Subject, assert_data_agrees, hosts, kernels};
use da_moe_reference::{Problem, forward};

const STORAGE: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// Everything that computes, with the kernels of every architecture.
fn all() -> Vec<Box<dyn Subject>> {
    hosts().into_iter().chain(kernels::of_each_architecture()).collect()
}

#[test]
fn the_bits_do_not_depend_on_what_is_kept() {
    let with_shared = LayerConfig { shared_intermediate_size: 8, ..LayerConfig::da_moe(16, 24, 3, 2) };
    for config in [small_config(), LayerConfig { hidden_act: Activation::Silu, ..with_shared }] {
        for dtype in STORAGE {
            let case = Case { dtype, biases: true, masked_every: 5, ..Case::plain(config.clone()) };
            let data = Data::new(&case);
            for subject in all() {
                let with = |keep| subject.run(&data, &Case { keep, ..case.clone() }).unwrap();
                let (kept, what) = (with(Keep::Hidden), format!("{}, {dtype}", subject.name()));
                assert_same_bits(&what, &kept, &with(Keep::Recompute));
                let forward = bits(&with(Keep::Nothing));
                assert_eq!(forward, bits(&kept)[..forward.len()], "{what}");
            }
        }
    }
}

/// An expert of which `h` is 1 + 2⁻⁸ in gate and up projection, which bf16 rounds to 1.
#[test]
fn forward_activates_h_as_it_is_and_backward_as_it_is_kept() {
    let config = LayerConfig {
        hidden_act: Activation::Reglu,
        experts_per_token: ExpertsPerToken::new(Policy::Fixed { k: 1 }),
        ..LayerConfig::da_moe(8, 8, 1, 1)
    };
    for dtype in STORAGE {
        let case = Case { dtype, lengths: vec![1], ..Case::plain(config.clone()) };
        let first_columns = |rows: usize, columns: &[f32]| {
            let values = (0..rows * 8).map(|at| columns.get(at % 8).copied().unwrap_or(0.0));
            Buffer::from_f32(dtype, &values.collect::<Vec<f32>>())
        };
        let mut data = Data::new(&case);
        (data.x, data.dy) = (first_columns(1, &[1.0, 2f32.powi(-8)]), first_columns(1, &[1.0]));
        data.experts.w_in = first_columns(16, &[1.0, 1.0]);
        data.experts.w_out = first_columns(8, &[1.0]);
        let exact = (1.0 + 2f64.powi(-8)).powi(2);
        let of_backward = if dtype == DType::Bf16 { 1.0 } else { exact };
        for subject in all().into_iter().skip(1) {
            for keep in [Keep::Hidden, Keep::Recompute] {
                let outcome = subject.run(&data, &Case { keep, ..case.clone() }).unwrap();
                // The gradient of W_out is g·dy ⊗ a.
                let a = [outcome.y[0], outcome.gradients.unwrap().experts.w_out[0]];
                let apart = [a[0] - exact, a[1] - of_backward].map(f64::abs);
                assert!(apart.iter().all(|apart| *apart < 2f64.powi(-11)), "{}, {dtype}: {a:?}", subject.name());
            }
        }
    }
}

/// Far down an activation's tail one rounding of `h` is several of what is activated; in a layer this narrow nothing hides it.
#[test]
fn where_activations_are_steep_gradients_are_those_of_the_rounded_h() {
    for hidden_act in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        let config = LayerConfig { hidden_act, moe_intermediate_size: 1, ..small_config() };
        for dtype in STORAGE {
            for keep in [Keep::Hidden, Keep::Recompute] {
                let case = Case { dtype, keep, lengths: vec![2], biases: true, ..Case::plain(config.clone()) };
                let mut data = Data::new(&case);
                data.experts.b_in = Some(Buffer::from_f32(dtype, &[-4.5; 6]));
                for subject in all() {
                    assert_data_agrees(&*subject, &data, &case);
                }
            }
        }
    }
}

/// Gates far below zero, where f16 has no numbers: what is activated of them is 0, and so are their gradients.
#[test]
fn gates_beyond_the_range_of_f16_are_right_in_f16() {
    for dtype in STORAGE {
        for keep in [Keep::Hidden, Keep::Recompute] {
            let case = Case { dtype, keep, biases: true, ..Case::plain(small_config()) };
            let mut data = Data::new(&case);
            let (width, rows_in) = (case.config.moe_intermediate_size, case.config.rows_in());
            let is_gate = |row: usize| row % rows_in < width && row.is_multiple_of(3);
            let mut bias = data.experts.b_in.as_ref().expect("a bias").to_f32();
            let mut w_in = data.experts.w_in.to_f32();
            for (row, (bias, w)) in bias.iter_mut().zip(w_in.chunks_mut(case.config.hidden_size)).enumerate() {
                if is_gate(row) {
                    *bias = -65504.0;
                    w.iter_mut().for_each(|w| *w *= 100.0);
                }
            }
            (data.experts.b_in, data.experts.w_in) =
                (Some(Buffer::from_f32(dtype, &bias)), Buffer::from_f32(dtype, &w_in));
            let problem =
                Problem::new(data.config.clone(), &data.inputs().unwrap(), &data.weights().unwrap(), &[0.0; 4]);
            let rows = forward(&problem.unwrap()).rows;
            assert!(rows.hidden.iter().any(|h| *h < -65520.0) && rows.activated.iter().all(|a| a.abs() < 65504.0));
            for subject in all() {
                assert_data_agrees(&*subject, &data, &case);
            }
        }
    }
}
