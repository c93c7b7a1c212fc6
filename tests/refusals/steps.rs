//! SPEC §7 for what a call is given to write into: outputs, gradients and steps that do not fit are refused, and nothing
//! has been written then.

use da_moe::{
    BiasUpdate, Buffer, Cpu, DType, Error, Gradients, Inputs, Keep, Layer, LayerConfig, NullExpert, Step, TensorMut,
    TensorRef, Weights,
};
use da_moe_harness::case::{Case, small_config};
use da_moe_harness::data::{Data, poison};

fn case() -> Case {
    let mut config = LayerConfig { num_null_experts: 2, shared_intermediate_size: 7, ..small_config() };
    config.null_expert = NullExpert::Constant;
    Case { biases: true, ..Case::plain(config) }
}

fn layer(data: &Data) -> Layer<Cpu> {
    Layer::new(Cpu::new(), data.config.clone()).unwrap()
}

/// Whether every element still is the poison that was there.
fn is_poison(buffer: &Buffer) -> bool {
    buffer.to_f32().iter().all(|value| value.is_nan())
}

fn forward(data: &Data, step: &mut Step, y: TensorMut<'_, 2>) -> Result<(), Error> {
    let layer = layer(data);
    layer.forward(&(), &data.inputs()?, &data.weights()?, &mut layer.state()?, step, y)
}

fn good_forward(data: &Data, step: &mut Step) {
    let shape = [data.tokens, data.config.hidden_size];
    let mut y = poison(data.dtype, shape[0] * shape[1]);
    forward(data, step, TensorMut::new(&mut y, shape).unwrap()).unwrap();
}

/// Backward refuses these changed arguments with this message and leaves every gradient as it was.
fn backward_refuses(
    data: &Data,
    step: &mut Step,
    message: &str,
    change: impl Fn(&mut Inputs<'_>, &mut Weights<'_>),
    spoil: impl FnOnce(&mut Gradients<'_>),
) {
    let (mut inputs, mut weights) = (data.inputs().unwrap(), data.weights().unwrap());
    change(&mut inputs, &mut weights);
    let mut gradients = data.gradients();
    let mut view = gradients.view_mut().unwrap();
    spoil(&mut view);
    let result = layer(data).backward(&(), &inputs, &weights, data.dy().unwrap(), step, &mut view);
    assert_eq!(result.expect_err(message).to_string(), message);
    assert!(is_poison(&gradients.x) && is_poison(&gradients.experts.w_in) && is_poison(&gradients.experts.w_out));
    assert!(gradients.router.iter().chain(&gradients.constants).all(is_poison), "{message}");
    assert!(gradients.shared.iter().all(|shared| is_poison(&shared.w_in) && is_poison(&shared.w_out)), "{message}");
}

#[test]
fn steps_that_do_not_fit_the_call() {
    let data = Data::new(&case());
    let layer = layer(&data);
    let refuse = |step: &mut Step, forward_says: &str| {
        let mut y = poison(DType::F32, 14 * 12);
        let error = forward(&data, step, TensorMut::new(&mut y, [14, 12]).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), format!("forward: {forward_says}"));
        assert!(is_poison(&y), "{forward_says}");
        backward_refuses(&data, step, &format!("backward: {forward_says}"), |_, _| {}, |_| {});
        assert_eq!(step.plan().unwrap_err().to_string(), "step: no forward has run yet");
    };
    refuse(&mut layer.step(13, DType::F32, Keep::Hidden).unwrap(), "14 tokens, but the step was made for 13");
    refuse(&mut layer.step(0, DType::F32, Keep::Hidden).unwrap(), "14 tokens, but the step was made for 0");
    refuse(&mut layer.step(14, DType::Bf16, Keep::Hidden).unwrap(), "x is f32, but the step was made for bf16");
}

#[test]
fn steps_that_have_no_forward_behind_them() {
    let data = Data::new(&case());
    let layer = layer(&data);
    let none = "backward: the step's last forward was not over 14 tokens";
    for keep in [Keep::Hidden, Keep::Recompute] {
        let mut step = layer.step(14, DType::F32, keep).unwrap();
        backward_refuses(&data, &mut step, none, |_, _| {}, |_| {});
        // A forward over other tokens is not the one that is asked about.
        let other = Data::new(&Case { lengths: vec![6], ..case() });
        good_forward(&other, &mut step);
        backward_refuses(&data, &mut step, none, |_, _| {}, |_| {});
    }
    let mut step = layer.step(14, DType::F32, Keep::Nothing).unwrap();
    good_forward(&data, &mut step);
    let message = "backward: the step was made with Keep::Nothing";
    backward_refuses(&data, &mut step, message, |_, _| {}, |_| {});
}

#[test]
fn reports_of_nothing() {
    let data = Data::new(&case());
    let layer = layer(&data);
    let step = layer.step(14, DType::F32, Keep::Hidden).unwrap();
    let none = "step: no forward has run yet";
    let errors = [
        step.sizes().err(),
        step.importance().err(),
        step.logits().err(),
        step.selection().err(),
        step.plan().err(),
        step.load().err(),
        step.losses().err(),
        step.report().err(),
    ];
    assert!(errors.into_iter().all(|error| error.is_some_and(|error| error.to_string() == none)));
    let mut bias = Buffer::zeros(DType::F32, 8);
    let update = BiasUpdate::Sign { rate: 0.1 };
    let error = layer.update_bias(&(), update, &step, TensorMut::new(&mut bias, [8]).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), none);
    assert_eq!(bias.to_f32(), [0.0; 8]);
}

#[test]
fn outputs_that_do_not_fit() {
    let data = Data::new(&case());
    let mut step = layer(&data).step(14, DType::F32, Keep::Hidden).unwrap();
    for (dtype, shape, message) in [
        (DType::F32, [13, 12], "forward: `y` has shape [13, 12], expected [14, 12]"),
        (DType::F32, [14, 13], "forward: `y` has shape [14, 13], expected [14, 12]"),
        (DType::Bf16, [14, 12], "forward: `y` is bf16, expected f32"),
    ] {
        let mut y = poison(dtype, shape[0] * shape[1]);
        let error = forward(&data, &mut step, TensorMut::new(&mut y, shape).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert!(is_poison(&y));
    }
    good_forward(&data, &mut step);
    let mut bias = poison(DType::F32, 7);
    let update = BiasUpdate::Sign { rate: 0.1 };
    let error = layer(&data).update_bias(&(), update, &step, TensorMut::new(&mut bias, [7]).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "update_bias: `router.bias` has shape [7], expected [8]");
    assert!(is_poison(&bias));
}

#[test]
fn gradients_that_do_not_fit() {
    fn view<const R: usize>(dtype: DType, shape: [usize; R]) -> TensorMut<'static, R> {
        // Borrowed for as long as the gradients are, whatever their lifetime.
        TensorMut::new(Box::leak(Box::new(poison(dtype, shape.iter().product()))), shape).unwrap()
    }
    type Spoil = Box<dyn FnOnce(&mut Gradients<'_>)>;
    let data = Data::new(&case());
    let mut step = layer(&data).step(14, DType::F32, Keep::Hidden).unwrap();
    good_forward(&data, &mut step);
    let f = DType::F32;
    let refusals: Vec<(&str, Spoil)> = vec![
        ("`d.x` has shape [13, 12], expected [14, 12]", Box::new(move |g| g.x = view(f, [13, 12]))),
        ("`d.x` is f16, expected f32", Box::new(|g| g.x = view(DType::F16, [14, 12]))),
        ("`d.router.weight` has shape [8, 11], expected [8, 12]", Box::new(move |g| g.router = Some(view(f, [8, 11])))),
        ("`d.router.weight` is missing: there is such a weight in this call", Box::new(|g| g.router = None)),
        (
            "`d.experts.w_in` has shape [6, 10, 12], expected [6, 20, 12]",
            Box::new(move |g| g.experts.w_in = view(f, [6, 10, 12])),
        ),
        ("`d.experts.w_out` is bf16, expected f32", Box::new(|g| g.experts.w_out = view(DType::Bf16, [6, 12, 10]))),
        ("`d.experts.b_in` is missing: there is such a weight in this call", Box::new(|g| g.experts.b_in = None)),
        ("`d.experts.b_out` is missing: there is such a weight in this call", Box::new(|g| g.experts.b_out = None)),
        ("`d.shared.w_in` is missing: there is such a weight in this call", Box::new(|g| g.shared = None)),
        (
            "`d.shared.b_in` was given, but there is no such weight in this call",
            Box::new(move |g| g.shared.as_mut().unwrap().b_in = Some(view(f, [1, 14]))),
        ),
        ("`d.null.constants` is missing: there is such a weight in this call", Box::new(|g| g.constants = None)),
        (
            "`d.null.constants` has shape [1, 12], expected [2, 12]",
            Box::new(move |g| g.constants = Some(view(f, [1, 12]))),
        ),
        (
            "`d.routing.weights` was given, but there is no such weight in this call",
            Box::new(move |g| g.routing = Some(view(f, [14]))),
        ),
    ];
    for (message, spoil) in refusals {
        backward_refuses(&data, &mut step, &format!("backward: {message}"), |_, _| {}, spoil);
    }

    // Beside half-precision weights gradients may be f32, but nothing else, and an expert's are all of one type.
    let half = Data::new(&Case { dtype: DType::Bf16, ..case() });
    let mut half_step = layer(&half).step(14, DType::Bf16, Keep::Hidden).unwrap();
    good_forward(&half, &mut half_step);
    let refusals: Vec<(&str, Spoil)> = vec![
        ("`d.x` is f32, expected bf16", Box::new(move |g| g.x = view(f, [14, 12]))),
        ("`d.router.weight` is f16, expected bf16 or f32", Box::new(|g| g.router = Some(view(DType::F16, [8, 12])))),
        ("`d.experts.w_in` is f16, expected bf16 or f32", Box::new(|g| g.experts.w_in = view(DType::F16, [6, 20, 12]))),
        ("`d.experts.w_out` is f32, expected bf16", Box::new(move |g| g.experts.w_out = view(f, [6, 12, 10]))),
    ];
    for (message, spoil) in refusals {
        backward_refuses(&half, &mut half_step, &format!("backward: {message}"), |_, _| {}, spoil);
    }

    let given = Data::new(&Case { routing: 2, ..Case::plain(small_config()) });
    let entries = given.routing.as_ref().unwrap().entries();
    let mut step = layer(&given).step(14, DType::F32, Keep::Hidden).unwrap();
    good_forward(&given, &mut step);
    let message = format!("backward: `d.routing.weights` has shape [{}], expected [{entries}]", entries + 1);
    backward_refuses(&given, &mut step, &message, |_, _| {}, |g| g.routing = Some(view(f, [entries + 1])));
    let message = "backward: `d.router.weight` was given, but there is no such weight in this call";
    backward_refuses(&given, &mut step, message, |_, _| {}, |g| g.router = Some(view(f, [6, 12])));
}

#[test]
fn a_gradient_from_above_that_does_not_fit() {
    let data = Data::new(&case());
    let layer = layer(&data);
    let mut step = layer.step(14, DType::F32, Keep::Hidden).unwrap();
    good_forward(&data, &mut step);
    let wrong = [Buffer::zeros(DType::F32, 14 * 11), Buffer::zeros(DType::Bf16, 14 * 12)];
    let views = [TensorRef::new(&wrong[0], [14, 11]).unwrap(), TensorRef::new(&wrong[1], [14, 12]).unwrap()];
    let messages = ["backward: `dy` has shape [14, 11], expected [14, 12]", "backward: `dy` is bf16, expected f32"];
    for (dy, message) in views.into_iter().zip(messages) {
        let mut gradients = data.gradients();
        let (inputs, weights) = (data.inputs().unwrap(), data.weights().unwrap());
        let view = &mut gradients.view_mut().unwrap();
        let error = layer.backward(&(), &inputs, &weights, dy, &mut step, view).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert!(is_poison(&gradients.x) && is_poison(&gradients.experts.w_in));
    }
}
