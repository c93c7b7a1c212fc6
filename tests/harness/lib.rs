//! One harness for every backend: a case is run by a subject and its outcome is held against the oracle. A backend joins
//! by appearing in [`subjects`].

#![allow(missing_docs, reason = "for the tests of this repository, whose names say what they do")]

pub mod bits;
pub mod case;
pub mod data;
pub mod device;
pub mod ends;
pub mod faulty;
pub mod gradients;
pub mod kernels;
pub mod machine_code;
pub mod planted;
pub mod product;
pub mod routing;

use case::Case;
use da_moe::{Backend, Buffer, Cpu, Error, Keep, Layer, State, Step, TensorMut, TensorRef};
use da_moe_reference::check::{Figure, Mismatch, Outcome, verify};
use da_moe_reference::{Problem, backward, kept};
use data::{Data, poison};
use proptest::test_runner::{Config as ProptestConfig, FileFailurePersistence, RngSeed};

/// `count` cases, the same everywhere, so that what is green for one is green for all; with `PROPTEST_CASES` set, that many
/// new ones (`cargo xtask fuzz`); with `DA_MOE_CASES` set, at most so many, where time is short. Failures are kept beside the
/// test and tried first ever after.
pub fn cases(count: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let explore = std::env::var_os("PROPTEST_CASES").is_some();
    let most = std::env::var("DA_MOE_CASES").map(|most| most.parse().expect("DA_MOE_CASES is a number"));
    ProptestConfig {
        cases: if explore { default.cases } else { count.min(most.unwrap_or(u32::MAX)) },
        rng_seed: if explore { default.rng_seed } else { RngSeed::Fixed(20_240_906) },
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..default
    }
}

/// Something that computes a layer call.
pub trait Subject: Sync {
    fn name(&self) -> String;
    /// Forward and backward of a case.
    fn run(&self, data: &Data, case: &Case) -> Result<Outcome, Error>;
}

/// The oracle itself: shows that the properties hold of the specification.
pub struct Oracle;

impl Subject for Oracle {
    fn name(&self) -> String {
        "oracle".into()
    }

    fn run(&self, data: &Data, case: &Case) -> Result<Outcome, Error> {
        let problem = Problem::new(data.config.clone(), &data.inputs()?, &data.weights()?, &[0.0; 4])?;
        let forward = da_moe_reference::forward(&problem);
        let gradients = (case.keep != Keep::Nothing)
            .then(|| backward(&problem, &kept(&problem, &forward, data.dtype), &data.dy_values()));
        Ok(Outcome::from_forward(&problem, &forward, gradients))
    }
}

/// A backend under [`Layer`].
pub struct Through<B>(pub B);

impl<B: Backend<Stream = ()> + Clone> Through<B> {
    /// Forward, and backward unless the case keeps nothing for it, into poisoned outputs, with the state carried on.
    pub fn run_with(&self, data: &Data, case: &Case, state: Option<&mut State>) -> Result<Outcome, Error> {
        let layer = Layer::new(self.0.clone(), data.config.clone())?;
        let mut fresh = layer.state()?;
        let mut step = layer.step(data.tokens + 3, data.dtype, case.keep)?;
        let state = state.unwrap_or(&mut fresh);
        if case.keep != Keep::Nothing {
            return call(&layer, data, state, &mut step);
        }
        forward(&layer, data, state, &mut step)
    }
}

/// Forward of a layer into a poisoned output.
fn forward_into<B: Backend<Stream = ()>>(
    layer: &Layer<B>,
    data: &Data,
    state: &mut State,
    step: &mut Step,
) -> Result<Buffer, Error> {
    let shape = [data.tokens, data.config.hidden_size];
    let mut y = poison(data.dtype, shape[0] * shape[1]);
    layer.forward(&(), &data.inputs()?, &data.weights()?, state, step, TensorMut::new(&mut y, shape)?)?;
    Ok(y)
}

/// Forward alone of a layer, with everything that is carried between calls.
pub fn forward<B: Backend<Stream = ()>>(
    layer: &Layer<B>,
    data: &Data,
    state: &mut State,
    step: &mut Step,
) -> Result<Outcome, Error> {
    let y = forward_into(layer, data, state, step)?;
    Outcome::from_step(step, TensorRef::new(&y, [data.tokens, data.config.hidden_size])?, None)
}

/// Forward and backward of a layer into poisoned outputs, with everything that is carried between calls.
pub fn call<B: Backend<Stream = ()>>(
    layer: &Layer<B>,
    data: &Data,
    state: &mut State,
    step: &mut Step,
) -> Result<Outcome, Error> {
    let shape = [data.tokens, data.config.hidden_size];
    let y = forward_into(layer, data, state, step)?;
    let (inputs, weights) = (data.inputs()?, data.weights()?);
    let mut gradients = data.gradients();
    let mut gradients = gradients.view_mut()?;
    layer.backward(&(), &inputs, &weights, data.dy()?, step, &mut gradients)?;
    Outcome::from_step(step, TensorRef::new(&y, shape)?, Some(&gradients))
}

impl<B: Backend<Stream = ()> + Clone> Subject for Through<B> {
    fn name(&self) -> String {
        self.0.describe()
    }

    fn run(&self, data: &Data, case: &Case) -> Result<Outcome, Error> {
        self.run_with(data, case, None)
    }
}

/// The subjects that are quick everywhere: not the kernels.
pub fn hosts() -> Vec<Box<dyn Subject>> {
    vec![Box::new(Oracle), Box::new(Through(Cpu::new()))]
}

/// Everything that must have the properties of SPEC.md.
pub fn subjects() -> Vec<Box<dyn Subject>> {
    let mut subjects = hosts();
    subjects.extend(kernels::subjects());
    subjects
}

/// Subjects of call number `call` of very many alike: the quick ones and a GPU every time, the emulator every seventh time.
/// As long as no list of choices is a multiple of seven long, it meets every choice.
pub fn taking_turns(call: usize) -> Vec<Box<dyn Subject>> {
    let mut subjects = hosts();
    subjects.extend(kernels::gpu());
    subjects.extend(kernels::emulator().filter(|_| call.is_multiple_of(7)));
    subjects
}

/// Holds an outcome against the oracle.
pub fn judge(data: &Data, outcome: &Outcome) -> Result<Vec<Figure>, Vec<Mismatch>> {
    let problem =
        Problem::new(data.config.clone(), &data.inputs().unwrap(), &data.weights().unwrap(), &[0.0; 4]).unwrap();
    let dy = outcome.gradients.as_ref().map(|_| data.dy_values());
    verify(&problem, outcome, data.dtype, dy.as_deref())
}

/// Runs a case on a subject and fails with everything that is wrong.
pub fn assert_agrees(subject: &dyn Subject, case: &Case) {
    assert_data_agrees(subject, &Data::new(case), case);
}

/// As [`assert_agrees`], with tensors of the test's own making.
pub fn assert_data_agrees(subject: &dyn Subject, data: &Data, case: &Case) -> Outcome {
    let outcome = subject.run(data, case).unwrap_or_else(|error| panic!("{}: {error}\n{case:#?}", subject.name()));
    if let Err(mismatches) = judge(data, &outcome) {
        let list: Vec<String> = mismatches.iter().take(8).map(ToString::to_string).collect();
        panic!("{} disagrees with the oracle:\n{}\n{case:#?}", subject.name(), list.join("\n"));
    }
    outcome
}
