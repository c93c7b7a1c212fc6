//! Where backward writes: buffers full of poison, or of what a test puts there.

use super::data::{Data, ExpertData, poison};
use da_moe::{Buffer, DType, Error, Gradients, TensorMut};

impl Data {
    /// Gradients of the weights' own types.
    pub fn gradients(&self) -> GradientData {
        self.gradients_of(None)
    }

    /// Gradients of the weights are of type `masters`, if that is given.
    pub fn gradients_of(&self, masters: Option<DType>) -> GradientData {
        let of_weights = masters.unwrap_or(self.dtype);
        GradientData {
            shape: [self.tokens, self.config.hidden_size, self.config.candidates(), self.config.num_null_experts],
            x: poison(self.dtype, self.tokens * self.config.hidden_size),
            router: self.routing.is_none().then(|| poison(masters.unwrap_or(self.router.dtype()), self.router.len())),
            experts: self.experts.poisoned(of_weights),
            shared: self.shared.as_ref().map(|shared| shared.poisoned(of_weights)),
            constants: self.constants.as_ref().map(|c| poison(of_weights, c.len())),
            routing: self.routing.as_ref().map(|routing| poison(DType::F32, routing.entries())),
            accumulate: false,
            loss_scale: 1.0,
        }
    }
}

/// Gradient buffers, poisoned.
#[derive(Clone)]
pub struct GradientData {
    shape: [usize; 4],
    pub x: Buffer,
    pub router: Option<Buffer>,
    pub experts: ExpertData,
    pub shared: Option<ExpertData>,
    pub constants: Option<Buffer>,
    pub routing: Option<Buffer>,
    pub accumulate: bool,
    pub loss_scale: f32,
}

impl GradientData {
    /// The gradients of weights, by name.
    pub fn of_weights(&mut self) -> Vec<(&'static str, &mut Buffer)> {
        let router = self.router.as_mut().map(|router| ("d.router.weight", router));
        let constants = self.constants.as_mut().map(|constants| ("d.null.constants", constants));
        let experts = self.experts.named(["d.experts.w_in", "d.experts.w_out", "d.experts.b_in", "d.experts.b_out"]);
        let names = ["d.shared.w_in", "d.shared.w_out", "d.shared.b_in", "d.shared.b_out"];
        let shared = self.shared.as_mut().map(|shared| shared.named(names));
        router.into_iter().chain(constants).chain(experts).chain(shared.into_iter().flatten()).collect()
    }

    pub fn view_mut(&mut self) -> Result<Gradients<'_>, Error> {
        let [tokens, d, candidates, nulls] = self.shape;
        Ok(Gradients {
            x: TensorMut::new(&mut self.x, [tokens, d])?,
            router: self.router.as_mut().map(|g| TensorMut::new(g, [candidates, d])).transpose()?,
            experts: self.experts.view_mut()?,
            shared: self.shared.as_mut().map(ExpertData::view_mut).transpose()?,
            constants: self.constants.as_mut().map(|g| TensorMut::new(g, [nulls, d])).transpose()?,
            routing: match self.routing.as_mut() {
                Some(gradient) => {
                    let count = gradient.len();
                    Some(TensorMut::new(gradient, [count])?)
                }
                None => None,
            },
            accumulate: self.accumulate,
            loss_scale: self.loss_scale,
        })
    }
}
