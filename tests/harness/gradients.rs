//! Where backward writes: buffers full of poison.

use super::data::{Data, ExpertData, poison};
use da_moe::{Buffer, DType, Error, Gradients, TensorMut};

impl Data {
    pub fn gradients(&self) -> GradientData {
        GradientData {
            shape: [self.tokens, self.config.hidden_size, self.config.candidates(), self.config.num_null_experts],
            x: poison(self.dtype, self.tokens * self.config.hidden_size),
            router: self.routing.is_none().then(|| poison(self.router.dtype(), self.router.len())),
            experts: self.experts.poisoned(self.dtype),
            shared: self.shared.as_ref().map(|shared| shared.poisoned(self.dtype)),
            constants: self.constants.as_ref().map(|c| poison(self.dtype, c.len())),
            routing: self.routing.as_ref().map(|routing| poison(DType::F32, routing.entries())),
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
}

impl GradientData {
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
        })
    }
}
