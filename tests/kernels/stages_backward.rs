//! Stages of the way back called one by one on the kernels, as engines that fuse their own do: contents that no stage of ours
//! would hand over are never followed, and the bits do not depend on how rows lie.

use da_moe::{
    Backend, CombineBackwardArgs, DType, Error, GateBackwardArgs, LayerConfig, Losses, NullExpert, PermuteBackwardArgs,
    Plan, RouterBackward, Routing, RoutingBackwardArgs, Selection, TensorMut, TensorRef,
};
use da_moe_harness::data::Numbers;
use da_moe_harness::kernels::emulated;

/// What a selection of two slots a token is made of.
pub struct Chosen {
    k: Vec<i32>,
    experts: Vec<i32>,
    weights: Vec<f32>,
    ranked: Vec<i32>,
}

impl Chosen {
    pub fn new(experts: &[i32]) -> Self {
        let weights = (0..experts.len()).map(|i| 1.0 + i as f32).collect();
        Self { k: vec![2; experts.len() / 2], experts: experts.to_vec(), weights, ranked: experts.to_vec() }
    }

    pub fn view(&self) -> Selection<'_> {
        let slots = [self.k.len(), 2];
        Selection {
            k: TensorRef::new(&self.k, [slots[0]]).unwrap(),
            experts: TensorRef::new(&self.experts, slots).unwrap(),
            weights: TensorRef::new(&self.weights, slots).unwrap(),
            ranked: TensorRef::new(&self.ranked, slots).unwrap(),
        }
    }
}

/// Gradients of the weights and constants of null experts 1 and 2 beside one routed expert, from rows `stride` apart.
fn combine(kind: NullExpert, experts: &[i32], width: usize, stride: usize) -> (Vec<f32>, Vec<f32>) {
    let (tokens, chosen) = (experts.len() / 2, Chosen::new(experts));
    let mut numbers = Numbers::new(7);
    let mut rows = |count: usize| {
        let mut rows = vec![f32::NAN; count * stride];
        rows.chunks_mut(stride).for_each(|row| row[..width].fill_with(|| numbers.normal(1.0)));
        rows
    };
    let (x, dy, constants) = (rows(tokens), rows(tokens), rows(2));
    let matrix = |rows, count| TensorRef::strided(rows, [count, width], [stride, 1]).unwrap();
    let (mut d_weights, mut d_constants) = (vec![f32::NAN; experts.len()], vec![f32::NAN; 2 * width]);
    let args = CombineBackwardArgs {
        experts: 1,
        null_expert: kind,
        x: matrix(&x, tokens),
        constants: (kind == NullExpert::Constant).then(|| matrix(&constants, 2)),
        selection: chosen.view(),
        dy: matrix(&dy, tokens),
        d_weights: TensorMut::new(&mut d_weights, [tokens, 2]).unwrap(),
        d_constants: Some(TensorMut::new(&mut d_constants, [2, width]).unwrap()),
        accumulate: false,
    };
    emulated(1).combine_backward(&(), args).unwrap();
    (d_weights, d_constants)
}

#[test]
fn the_bits_of_null_experts_do_not_depend_on_how_rows_lie() {
    for kind in [NullExpert::Copy, NullExpert::Constant] {
        for width in [4, 8, 132, 520] {
            let experts: Vec<i32> = (0..80).map(|slot| slot % 3).collect();
            assert_eq!(combine(kind, &experts, width, width), combine(kind, &experts, width, width + 3));
        }
    }
}

#[test]
fn null_experts_that_are_not_there_give_nothing() {
    let (d_weights, d_constants) = combine(NullExpert::Constant, &[3, i32::MAX, i32::MIN, -1, 0, 2], 5, 5);
    assert_eq!((&d_weights[..5], &d_constants[..5]), (&[0.0; 5][..], &[0.0; 5][..]));
    assert!(d_weights[5] != 0.0 && d_constants[5..].iter().all(|d| *d != 0.0), "of the second constant");
}

/// `dx` and the weights' gradients of three tokens over two rows.
fn permute(token_row: &[i32]) -> (Vec<f32>, Vec<f32>) {
    let (chosen, ints) = (Chosen::new(&[0, 1, 1, 2, 0, -1]), [0i32; 3]);
    let (rows, of_rows, dy) = ([1.0f32, 2.0, 10.0, 20.0], [5.0f32, 6.0], [100.0f32; 6]);
    let (mut d_weights, mut dx) = (vec![7.0f32; 6], vec![f32::NAN; 6]);
    let int = |count| TensorRef::prefix(&ints[..], [count]).unwrap();
    let args = PermuteBackwardArgs {
        experts: 2,
        null_expert: NullExpert::Copy,
        selection: chosen.view(),
        plan: Plan {
            counts: int(3),
            offsets: int(3),
            row_token: int(2),
            row_weight: TensorRef::new(&of_rows[..], [2]).unwrap(),
            token_row: TensorRef::new(token_row, [3, 2]).unwrap(),
            dropped: int(1),
        },
        dx_rows: TensorRef::new(&rows[..], [2, 2]).unwrap(),
        d_row_weight: TensorRef::new(&of_rows[..], [2]).unwrap(),
        shared_dx: None,
        shared_row: None,
        dy: TensorRef::new(&dy[..], [3, 2]).unwrap(),
        d_weights: TensorMut::new(&mut d_weights, [3, 2]).unwrap(),
        dx: TensorMut::new(&mut dx, [3, 2]).unwrap(),
    };
    emulated(2).permute_backward(&(), args).unwrap();
    (dx, d_weights)
}

#[test]
fn rows_that_are_not_there_give_nothing() {
    // The second token has a copy in its second slot, of weight 4.
    let (dx, d_weights) = permute(&[1, 0, -1, -1, 0, -1]);
    assert_eq!(dx, [11.0, 22.0, 400.0, 400.0, 1.0, 2.0]);
    assert_eq!(d_weights, [6.0, 5.0, 7.0, 7.0, 5.0, 7.0]);
    let (dx, d_weights) = permute(&[2, i32::MAX, i32::MIN, -7, 0, 900]);
    assert_eq!(dx, [0.0, 0.0, 400.0, 400.0, 1.0, 2.0]);
    assert_eq!(d_weights, [7.0, 7.0, 7.0, 7.0, 5.0, 7.0]);
}

/// `dz`, `dx` and `dW_r` of three tokens, the second of them masked, from ids that the gate would have written.
fn gate(experts: &[i32], load: [i32; 3], unmasked: [i32; 1]) -> Result<[Vec<f32>; 3], Error> {
    let config = LayerConfig { losses: Losses { balance: 0.5, z: 0.5 }, ..LayerConfig::da_moe(2, 2, 3, 2) };
    let chosen = Chosen::new(experts);
    let (x, logits) = ([1.0f32, 2.0, f32::NAN, f32::NAN, 3.0, 4.0], [0.5f32, 1.0, -1.0, 9.0, 9.0, 9.0, 2.0, 0.0, 1.0]);
    let (d_weights, dx_rows, weight) = ([1.0f32, -1.0, 2.0, 3.0, 0.5, 0.25], [8.0f32; 6], [0.5f32; 6]);
    let mask = [1u8, 0, 1];
    let mut out = [vec![f32::NAN; 9], vec![f32::NAN; 6], vec![f32::NAN; 6]];
    let [dz, dx, d_weight] = &mut out;
    let args = GateBackwardArgs {
        config: &config,
        x: TensorRef::new(&x[..], [3, 2])?,
        mask: Some(TensorRef::new(&mask[..], [3])?),
        selection: chosen.view(),
        d_weights: TensorRef::new(&d_weights[..], [3, 2])?,
        dx_rows: TensorRef::new(&dx_rows[..], [3, 2])?,
        loss_scale: 1.0,
        router: Some(RouterBackward {
            weight: TensorRef::new(&weight[..], [3, 2])?,
            logits: TensorRef::new(&logits[..], [3, 3])?,
            load: TensorRef::new(&load[..], [3])?,
            unmasked: TensorRef::new(&unmasked[..], [1])?,
            d_logits: TensorMut::new(dz, [3, 3])?,
            d_weight: TensorMut::new(d_weight, [3, 2])?,
            accumulate: false,
        }),
        dx: TensorMut::new(dx, [3, 2])?,
    };
    emulated(3).gate_backward(&(), args)?;
    Ok(out)
}

#[test]
fn padding_has_no_gradient_in_its_logits() {
    let [dz, dx, d_weight] = gate(&[0, 1, 0, 1, 2, 0], [2, 1, 1], [2]).unwrap();
    assert_eq!((&dz[3..6], &dx[2..4]), (&[0.0; 3][..], &[8.0; 2][..]));
    assert!(dz.iter().chain(&dx).chain(&d_weight).all(|d| d.is_finite()));
    assert!(dz[..3].iter().chain(&dz[6..]).all(|d| *d != 0.0), "{dz:?}");
}

#[test]
fn candidates_that_are_not_there_have_no_gradient() {
    let [dz, ..] = gate(&[3, i32::MAX, 0, 1, i32::MIN, -1], [0, 0, 0], [0]).unwrap();
    assert!(dz.iter().all(|d| d.is_finite()), "{dz:?}");
    // Loads and counts that cannot be are numbers like any other.
    gate(&[0, 1, 0, 1, 2, 0], [-5, -7, 3], [i32::MIN]).unwrap();
}

/// Where three tokens' gradients 1 to 6 go, by their slots' places.
fn routing(places: &[i32], routing: Routing<'_>, entries: usize) -> Vec<f32> {
    let chosen = Chosen { ranked: places.to_vec(), ..Chosen::new(&[0; 6]) };
    let d_weights = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
    let mut d_routing = vec![f32::NAN; entries];
    let args = RoutingBackwardArgs {
        routing,
        selection: chosen.view(),
        d_weights: TensorRef::new(&d_weights[..], [3, 2]).unwrap(),
        d_routing: TensorMut::new(&mut d_routing, [entries]).unwrap(),
    };
    emulated(4).routing_backward(&(), args).unwrap();
    d_routing
}

#[test]
fn gradients_go_back_to_entries_that_are_there() {
    let (ids, weights) = ([0i32; 6], [0.0f32; 6]);
    let padded = |columns| Routing::Padded {
        experts: TensorRef::prefix(&ids[..], [3, columns]).unwrap(),
        weights: TensorRef::prefix(&weights[..], [3, columns]).unwrap(),
    };
    assert_eq!(routing(&[1, 0, -1, -1, 1, -1], padded(2), 6), [2.0, 1.0, 0.0, 0.0, 0.0, 5.0]);
    assert_eq!(routing(&[1, 0, 0, -1, 0, -1], padded(1), 3), [2.0, 3.0, 5.0], "fewer columns than slots");
    assert_eq!(routing(&[2, i32::MAX, i32::MIN, 0, 900, 1], padded(2), 6), [0.0, 0.0, 4.0, 0.0, 0.0, 6.0]);
    assert_eq!(routing(&[1, 0, 0, -1, 0, -1], padded(0), 0), [0.0f32; 0]);
    let compressed = |offsets| Routing::Csr {
        offsets: TensorRef::new(offsets, [4]).unwrap(),
        experts: TensorRef::prefix(&ids[..], [3]).unwrap(),
        weights: TensorRef::prefix(&weights[..], [3]).unwrap(),
    };
    assert_eq!(routing(&[1, 0, -1, -1, 0, -1], compressed(&[0, 2, 2, 3][..]), 3), [2.0, 1.0, 5.0]);
    assert_eq!(routing(&[1, 0, 0, -1, 0, -1], compressed(&[0, 3, 3, 3][..]), 3), [2.0, 1.0, 0.0], "more than slots");
    assert_eq!(routing(&[0, 1, 0, -1, 0, -1], compressed(&[-4, 2, 900, i32::MIN][..]), 3), [1.0, 2.0, 3.0]);
}

#[test]
fn kernels_refuse_tensors_of_another_type() {
    let (chosen, bytes, dy) = (Chosen::new(&[0, 1]), [1u8; 3], [1.0f32; 3]);
    let mut d_weights = vec![f32::NAN; 2];
    let args = CombineBackwardArgs {
        experts: 1,
        null_expert: NullExpert::Copy,
        x: TensorRef::new(&bytes[..], [1, 3]).unwrap(),
        constants: None,
        selection: chosen.view(),
        dy: TensorRef::new(&dy[..], [1, 3]).unwrap(),
        d_weights: TensorMut::new(&mut d_weights, [1, 2]).unwrap(),
        d_constants: None,
        accumulate: false,
    };
    let error = emulated(5).combine_backward(&(), args).unwrap_err();
    let expected = matches!(error, Error::DType { op: "combine_backward", argument: "x", found: DType::U8, .. });
    assert!(expected && d_weights.iter().all(|d| d.is_nan()), "{error}");
}
