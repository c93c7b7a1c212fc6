//! Where a call writes, and the tensors that become of it.

use super::file::Owned;
use super::output::Output;
use super::tensors::Tensors;
use crate::Result;
use crate::target::Target;
use da_moe::{ExpertGradients, Gradients, Memory, TensorMut};

/// Room for a result, where the backend reaches it.
pub(super) struct Room<const R: usize> {
    shape: [usize; R],
    memory: Memory,
}

impl<const R: usize> Room<R> {
    /// As large as a tensor, and of its type.
    pub(super) fn like(target: &impl Target, tensor: &Owned<R>) -> Result<Self> {
        Ok(Self { shape: tensor.shape, memory: target.room(&tensor.data)? })
    }

    fn like_optional(target: &impl Target, tensor: Option<&Owned<R>>) -> Result<Option<Self>> {
        tensor.map(|tensor| Self::like(target, tensor)).transpose()
    }

    pub(super) fn view_mut(&mut self) -> Result<TensorMut<'_, R>> {
        Ok(TensorMut::new(&mut self.memory, self.shape)?)
    }

    pub(super) fn into_output(self, name: &'static str) -> Result<Output> {
        Ok(Output::new(name, &self.shape, self.memory.to_host()?))
    }
}

/// One gradient for each weight of the call.
pub(super) struct OwnedGradients {
    x: Room<2>,
    router: Option<Room<2>>,
    w_in: Room<3>,
    w_out: Room<3>,
    b_in: Option<Room<2>>,
    b_out: Option<Room<2>>,
    shared: Option<(Room<3>, Room<3>)>,
    constants: Option<Room<2>>,
    routing: Option<Room<2>>,
}

impl OwnedGradients {
    pub(super) fn new(target: &impl Target, tensors: &Tensors) -> Result<Self> {
        let shared = tensors.shared.as_ref();
        Ok(Self {
            x: Room::like(target, &tensors.x)?,
            router: Room::like_optional(target, tensors.routing.is_none().then_some(&tensors.router))?,
            w_in: Room::like(target, &tensors.w_in)?,
            w_out: Room::like(target, &tensors.w_out)?,
            b_in: Room::like_optional(target, tensors.b_in.as_ref())?,
            b_out: Room::like_optional(target, tensors.b_out.as_ref())?,
            shared: match shared {
                Some(shared) => Some((Room::like(target, &shared.w_in)?, Room::like(target, &shared.w_out)?)),
                None => None,
            },
            constants: Room::like_optional(target, tensors.constants.as_ref())?,
            routing: Room::like_optional(target, tensors.routing.as_ref().map(|(_, weights)| weights))?,
        })
    }

    pub(super) fn views(&mut self) -> Result<Gradients<'_>> {
        let shared = match &mut self.shared {
            Some((w_in, w_out)) => {
                Some(ExpertGradients { w_in: w_in.view_mut()?, w_out: w_out.view_mut()?, b_in: None, b_out: None })
            }
            None => None,
        };
        let routing = match &mut self.routing {
            Some(weights) => {
                let count = weights.memory.len();
                Some(TensorMut::new(&mut weights.memory, [count])?)
            }
            None => None,
        };
        Ok(Gradients {
            x: self.x.view_mut()?,
            router: self.router.as_mut().map(Room::view_mut).transpose()?,
            experts: ExpertGradients {
                w_in: self.w_in.view_mut()?,
                w_out: self.w_out.view_mut()?,
                b_in: self.b_in.as_mut().map(Room::view_mut).transpose()?,
                b_out: self.b_out.as_mut().map(Room::view_mut).transpose()?,
            },
            shared,
            constants: self.constants.as_mut().map(Room::view_mut).transpose()?,
            routing,
            accumulate: false,
            loss_scale: 1.0,
        })
    }

    pub(super) fn outputs(self, tensors: &Tensors) -> Result<Vec<Output>> {
        let mut outputs = vec![
            self.x.into_output("d.x")?,
            self.w_in.into_output("d.experts.w_in")?,
            self.w_out.into_output("d.experts.w_out")?,
        ];
        let mut push = |output: Option<Result<Output>>| output.transpose().map(|output| outputs.extend(output));
        push(self.router.map(|room| room.into_output("d.router.weight")))?;
        push(self.b_in.map(|room| room.into_output("d.experts.b_in")))?;
        push(self.b_out.map(|room| room.into_output("d.experts.b_out")))?;
        push(self.constants.map(|room| room.into_output("d.null.constants")))?;
        push(self.routing.map(|room| room.into_output("d.routing.weights")))?;
        if let (Some((w_in, w_out)), Some(shared)) = (self.shared, &tensors.shared) {
            // In the rank that the weight had in the file: without the leading 1 where it had none.
            let w_in_shape = w_in.shape[3 - shared.w_in_rank..].to_vec();
            let w_out_shape = w_out.shape[3 - shared.w_out_rank..].to_vec();
            outputs.push(Output::new("d.shared.w_in", &w_in_shape, w_in.memory.to_host()?));
            outputs.push(Output::new("d.shared.w_out", &w_out_shape, w_out.memory.to_host()?));
        }
        Ok(outputs)
    }
}
