//! Calls that follow one another on the same buffers, and sizes far from the usual.

use da_moe::{Cpu, DType, Error, Gradients, Inputs, Keep, Layer, LayerConfig, Policy, Step, TensorMut};
use da_moe::{ExpertsPerToken, Source};
use da_moe_harness::case::{Case, small_config};
use da_moe_harness::data::{Data, poison};
use da_moe_harness::{Subject, assert_agrees, hosts, kernels, subjects};

/// A forward and, if asked, a backward of some inputs on a step that others use too.
fn call(layer: &Layer<Cpu>, data: &Data, inputs: &Inputs<'_>, step: &mut Step, back: bool) -> Result<(), Error> {
    let shape = [data.tokens, data.config.hidden_size];
    let mut y = poison(data.dtype, shape[0] * shape[1]);
    if back {
        let mut gradients = data.gradients();
        let mut gradients: Gradients<'_> = gradients.view_mut()?;
        return layer.backward(&(), inputs, &data.weights()?, data.dy()?, step, &mut gradients);
    }
    layer.forward(&(), inputs, &data.weights()?, &mut layer.state()?, step, TensorMut::new(&mut y, shape)?)
}

/// The same layer with the gate's routing and with one from outside.
fn both() -> (Layer<Cpu>, Data, Data) {
    let gated = Case::plain(small_config());
    let routed = Case { routing: 1, ..gated.clone() };
    (Layer::new(Cpu::new(), small_config()).unwrap(), Data::new(&gated), Data::new(&routed))
}

#[test]
fn backward_wants_the_kind_of_routing_that_forward_had() {
    let (layer, gated, routed) = both();
    for (first, second) in [(&gated, &routed), (&routed, &gated)] {
        let mut step = layer.step(gated.tokens, DType::F32, Keep::Hidden).unwrap();
        call(&layer, first, &first.inputs().unwrap(), &mut step, false).unwrap();
        let error = call(&layer, second, &second.inputs().unwrap(), &mut step, true).unwrap_err();
        assert!(matches!(error, Error::Workspace { op: "backward", .. }), "{error}");
        call(&layer, first, &first.inputs().unwrap(), &mut step, true).unwrap();
    }
}

#[test]
fn a_routing_from_outside_leaves_no_losses_of_the_call_before() {
    let (layer, gated, routed) = both();
    let mut step = layer.step(gated.tokens, DType::F32, Keep::Hidden).unwrap();
    call(&layer, &gated, &gated.inputs().unwrap(), &mut step, false).unwrap();
    assert!(step.report().unwrap().balance_loss > 0.0 && step.importance().is_ok() && step.logits().is_ok());
    call(&layer, &routed, &routed.inputs().unwrap(), &mut step, false).unwrap();
    let report = step.report().unwrap();
    assert_eq!((report.balance_loss, report.z_loss), (0.0, 0.0));
    assert!(step.importance().is_err() && step.logits().is_err());
}

#[test]
fn a_step_of_another_layer_is_refused() {
    let (layer, data, _) = both();
    let other = Layer::new(Cpu::new(), LayerConfig::da_moe(12, 9, 6, 4)).unwrap();
    let mut step = other.step(data.tokens, DType::F32, Keep::Hidden).unwrap();
    let error = call(&layer, &data, &data.inputs().unwrap(), &mut step, false).unwrap_err();
    assert!(matches!(error, Error::Workspace { op: "forward", .. }), "{error}");
}

#[test]
fn rows_wider_than_any_panel() {
    assert_wide_rows_agree(131_073, &hosts());
    // The emulator takes minutes for as much; this is many times what a kernel holds at once.
    assert_wide_rows_agree(2_049, &kernels::subjects());
}

fn assert_wide_rows_agree(width: usize, subjects: &[Box<dyn Subject>]) {
    for (d, f) in [(width, 1), (1, width)] {
        let mut config = LayerConfig::da_moe(d, f, 1, 1);
        config.importance.source = Source::External;
        config.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 1 });
        for dtype in [DType::F32, DType::Bf16] {
            for subject in subjects {
                assert_agrees(&**subject, &Case { dtype, lengths: vec![2], ..Case::plain(config.clone()) });
            }
        }
    }
}

#[test]
fn padding_takes_no_part_in_the_routers_gradient() {
    let case = Case { masked_every: 3, lengths: vec![40], ..Case::plain(small_config()) };
    let mut data = Data::new(&case);
    let mask = data.mask.as_ref().and_then(|mask| mask.as_slice::<u8>()).unwrap().to_vec();
    let d = data.config.hidden_size;
    let x = data.x.as_mut_slice::<f32>().unwrap();
    for (t, row) in x.chunks_mut(d).enumerate() {
        if mask[t] == 0 {
            row.fill(f32::NAN);
        }
    }
    assert!(mask.contains(&0) && mask.contains(&1));
    for subject in subjects() {
        let outcome = subject.run(&data, &case).unwrap();
        let router = outcome.gradients.unwrap().router.unwrap();
        assert!(router.iter().all(|gradient| gradient.is_finite()), "{}", subject.name());
    }
}
