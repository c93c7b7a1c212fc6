//! What is learned, where its gradients go, and the checks that happen before anything is written (SPEC §7).

use crate::inputs::See;
use crate::{
    DType, Error, ExpertGradients, ExpertWeights, Inputs, LayerConfig, NullExpert, Result, TensorMut, TensorRef,
};

const EXPERTS: [&str; 4] = ["experts.w_in", "experts.w_out", "experts.b_in", "experts.b_out"];
const SHARED: [&str; 4] = ["shared.w_in", "shared.w_out", "shared.b_in", "shared.b_out"];
const D_EXPERTS: [&str; 4] = ["d.experts.w_in", "d.experts.w_out", "d.experts.b_in", "d.experts.b_out"];
const D_SHARED: [&str; 4] = ["d.shared.w_in", "d.shared.w_out", "d.shared.b_in", "d.shared.b_out"];

/// Everything that is learned.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// `W_r[E + Z, D]`, the storage type or f32.
    pub router: TensorRef<'a, 2>,
    /// `b[E + Z]` f32: added to the scores for selection only.
    pub router_bias: Option<TensorRef<'a, 1>>,
    /// The routed experts.
    pub experts: ExpertWeights<'a>,
    /// The shared expert, as one expert of its own width.
    pub shared: Option<ExpertWeights<'a>>,
    /// `[Z, D]` storage, for null experts of kind `constant`.
    pub constants: Option<TensorRef<'a, 2>>,
}

impl<'a> Weights<'a> {
    /// Router and experts without biases; the rest is set by field.
    pub fn new(router: TensorRef<'a, 2>, w_in: TensorRef<'a, 3>, w_out: TensorRef<'a, 3>) -> Self {
        let experts = ExpertWeights { w_in, w_out, b_in: None, b_out: None };
        Self { router, router_bias: None, experts, shared: None, constants: None }
    }

    /// Checks shapes and types against `config` and the storage type of `x`.
    pub(crate) fn check(&self, op: &'static str, config: &LayerConfig, dtype: DType) -> Result<()> {
        let (d, candidates) = (config.hidden_size, config.candidates());
        self.router.expect_shape(op, "router.weight", [candidates, d])?;
        self.router.expect_dtype(op, "router.weight", &[dtype, DType::F32])?;
        if let Some(bias) = &self.router_bias {
            bias.expect_shape(op, "router.bias", [candidates])?;
            bias.expect_dtype(op, "router.bias", &[DType::F32])?;
        }
        check_experts(
            op,
            EXPERTS,
            &self.experts,
            [config.num_experts, config.rows_in(), config.moe_intermediate_size, d],
            dtype,
        )?;
        match (&self.shared, config.shared_intermediate_size) {
            (None, 0) => {}
            (Some(_), 0) => {
                let why = "`shared_intermediate_size` is 0".into();
                return Err(Error::Unexpected { op, argument: "shared.w_in", why });
            }
            (None, width) => {
                let why = format!("`shared_intermediate_size` is {width}");
                return Err(Error::Missing { op, argument: "shared.w_in", why });
            }
            (Some(shared), width) => {
                check_experts(op, SHARED, shared, [1, config.shared_rows_in(), width, d], dtype)?;
            }
        }
        check_constants(op, config, self.constants.map(|c| (c.shape(), c.dtype())), dtype)
    }
}

impl Weights<'_> {
    /// Shows every tensor that is there, by name.
    pub(crate) fn visit(&self, see: See<'_>) -> Result<()> {
        see("router.weight", self.router.data())?;
        self.router_bias.map_or(Ok(()), |bias| see("router.bias", bias.data()))?;
        self.constants.map_or(Ok(()), |constants| see("null.constants", constants.data()))?;
        visit_experts(&self.experts, EXPERTS, see)?;
        self.shared.as_ref().map_or(Ok(()), |shared| visit_experts(shared, SHARED, see))
    }
}

fn visit_experts(
    experts: &ExpertWeights<'_>,
    [w_in, w_out, b_in, b_out]: [&'static str; 4],
    see: See<'_>,
) -> Result<()> {
    see(w_in, experts.w_in.data())?;
    see(w_out, experts.w_out.data())?;
    experts.b_in.map_or(Ok(()), |bias| see(b_in, bias.data()))?;
    experts.b_out.map_or(Ok(()), |bias| see(b_out, bias.data()))
}

fn check_experts(
    op: &'static str,
    [w_in, w_out, b_in, b_out]: [&'static str; 4],
    experts: &ExpertWeights<'_>,
    [count, rows_in, width, hidden]: [usize; 4],
    dtype: DType,
) -> Result<()> {
    experts.w_in.expect_shape(op, w_in, [count, rows_in, hidden])?;
    experts.w_in.expect_dtype(op, w_in, &[dtype])?;
    experts.w_out.expect_shape(op, w_out, [count, hidden, width])?;
    experts.w_out.expect_dtype(op, w_out, &[dtype])?;
    if let Some(bias) = &experts.b_in {
        bias.expect_shape(op, b_in, [count, rows_in])?;
        bias.expect_dtype(op, b_in, &[dtype])?;
    }
    if let Some(bias) = &experts.b_out {
        bias.expect_shape(op, b_out, [count, hidden])?;
        bias.expect_dtype(op, b_out, &[dtype])?;
    }
    Ok(())
}

/// Constants are there exactly when null experts of kind `constant` are.
fn check_constants(
    op: &'static str,
    config: &LayerConfig,
    constants: Option<([usize; 2], DType)>,
    dtype: DType,
) -> Result<()> {
    let argument = "null.constants";
    let needed = config.null_expert == NullExpert::Constant && config.num_null_experts > 0;
    match constants {
        None if needed => {
            let why = "the null experts are of kind `constant`".into();
            Err(Error::Missing { op, argument, why })
        }
        Some(_) if !needed => {
            let why = "there are no null experts of kind `constant`".into();
            Err(Error::Unexpected { op, argument, why })
        }
        Some((shape, found)) => {
            let expected = vec![config.num_null_experts, config.hidden_size];
            if shape[..] != expected[..] {
                return Err(Error::Shape { op, argument, expected, found: shape.to_vec() });
            }
            if found != dtype {
                return Err(Error::DType { op, argument, expected: dtype.to_string(), found });
            }
            Ok(())
        }
        None => Ok(()),
    }
}

/// Where backward writes.
///
/// Gradients of weights are of the weight's type, or f32 for engines that keep them so beside half-precision weights (an
/// expert's are all of one type). Sums are f32 either way: a gradient is rounded once, at its end.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// `[T, D]` storage; always overwritten.
    pub x: TensorMut<'a, 2>,
    /// `[E + Z, D]`; absent exactly when the routing came from outside.
    pub router: Option<TensorMut<'a, 2>>,
    /// Of the routed experts; biases where the weights have them.
    pub experts: ExpertGradients<'a>,
    /// Of the shared expert.
    pub shared: Option<ExpertGradients<'a>>,
    /// `[Z, D]`.
    pub constants: Option<TensorMut<'a, 2>>,
    /// f32 of a routing's weights in the caller's layout, flattened; may be absent; always overwritten.
    pub routing: Option<TensorMut<'a, 1>>,
    /// Whether weights' gradients (router, experts, shared, constants) are added to what is there, in f32 and rounded once,
    /// as over the micro-batches of one step; they are overwritten otherwise, whatever they hold.
    pub accumulate: bool,
    /// Factor on the gradients of the balance loss and the z-loss in this call, usually 1: what the task's loss was multiplied
    /// by before `dy` was taken of it, so that loss scaling, or a mean over micro-batches, scales both alike. Finite.
    pub loss_scale: f32,
}

impl Gradients<'_> {
    /// Checks that there is one gradient for each weight, of its shape and of a type for it.
    pub(crate) fn check(&self, op: &'static str, inputs: &Inputs<'_>, weights: &Weights<'_>) -> Result<()> {
        self.x.expect_shape(op, "d.x", inputs.x.shape())?;
        self.x.expect_dtype(op, "d.x", &[inputs.x.dtype()])?;
        let router = inputs.routing.is_none().then_some(weights.router);
        twin(op, "d.router.weight", self.router.as_ref(), router)?;
        check_expert_gradients(op, D_EXPERTS, &self.experts, &weights.experts)?;
        match (&self.shared, &weights.shared) {
            (Some(gradients), Some(shared)) => {
                check_expert_gradients(op, D_SHARED, gradients, shared)?;
            }
            (None, None) => {}
            (given, _) => return Err(unpaired(op, "d.shared.w_in", given.is_some())),
        }
        twin(op, "d.null.constants", self.constants.as_ref(), weights.constants)?;
        match (&self.routing, &inputs.routing) {
            (Some(gradient), Some(routing)) => {
                gradient.expect_shape(op, "d.routing.weights", [routing.entries()])?;
                gradient.expect_dtype(op, "d.routing.weights", &[DType::F32])
            }
            (Some(_), None) => Err(unpaired(op, "d.routing.weights", true)),
            (None, _) => Ok(()),
        }?;
        check_loss_scale(op, self.loss_scale)
    }
}

/// Refuses a factor that would make every gradient of the losses infinite or NaN.
pub(crate) fn check_loss_scale(op: &'static str, loss_scale: f32) -> Result<()> {
    if loss_scale.is_finite() {
        return Ok(());
    }
    Err(Error::Value { op, argument: "loss_scale", problem: format!("{loss_scale} is not a finite number") })
}

impl Gradients<'_> {
    /// Shows every tensor that is there, by name.
    pub(crate) fn visit(&self, see: See<'_>) -> Result<()> {
        see("d.x", self.x.as_ref().data())?;
        self.router.as_ref().map_or(Ok(()), |router| see("d.router.weight", router.as_ref().data()))?;
        self.constants.as_ref().map_or(Ok(()), |constants| see("d.null.constants", constants.as_ref().data()))?;
        self.routing.as_ref().map_or(Ok(()), |routing| see("d.routing.weights", routing.as_ref().data()))?;
        visit_expert_gradients(&self.experts, D_EXPERTS, see)?;
        self.shared.as_ref().map_or(Ok(()), |shared| visit_expert_gradients(shared, D_SHARED, see))
    }
}

fn visit_expert_gradients(
    gradients: &ExpertGradients<'_>,
    [w_in, w_out, b_in, b_out]: [&'static str; 4],
    see: See<'_>,
) -> Result<()> {
    see(w_in, gradients.w_in.as_ref().data())?;
    see(w_out, gradients.w_out.as_ref().data())?;
    gradients.b_in.as_ref().map_or(Ok(()), |bias| see(b_in, bias.as_ref().data()))?;
    gradients.b_out.as_ref().map_or(Ok(()), |bias| see(b_out, bias.as_ref().data()))
}

fn check_expert_gradients(
    op: &'static str,
    [w_in, w_out, b_in, b_out]: [&'static str; 4],
    gradients: &ExpertGradients<'_>,
    weights: &ExpertWeights<'_>,
) -> Result<()> {
    twin(op, w_in, Some(&gradients.w_in), Some(weights.w_in))?;
    twin(op, w_out, Some(&gradients.w_out), Some(weights.w_out))?;
    twin(op, b_in, gradients.b_in.as_ref(), weights.b_in)?;
    twin(op, b_out, gradients.b_out.as_ref(), weights.b_out)?;
    gradients.check_types(op, [w_out, b_in, b_out])
}

/// A gradient has the shape of what it is the gradient of, its type or f32, and is absent with it.
fn twin<const R: usize>(
    op: &'static str,
    argument: &'static str,
    gradient: Option<&TensorMut<'_, R>>,
    of: Option<TensorRef<'_, R>>,
) -> Result<()> {
    match (gradient, of) {
        (Some(gradient), Some(of)) => {
            gradient.expect_shape(op, argument, of.shape())?;
            gradient.expect_dtype(op, argument, &[of.dtype(), DType::F32])
        }
        (None, None) => Ok(()),
        (given, _) => Err(unpaired(op, argument, given.is_some())),
    }
}

fn unpaired(op: &'static str, argument: &'static str, given: bool) -> Error {
    if given {
        Error::Unexpected { op, argument, why: "there is no such weight in this call".into() }
    } else {
        Error::Missing { op, argument, why: "there is such a weight in this call".into() }
    }
}
