//! Where backward writes, and the tensors that become of it.

use super::file::Owned;
use super::output::Output;
use super::tensors::Tensors;
use crate::Result;
use da_moe::{ExpertGradients, Gradients, TensorMut};

/// One gradient for each weight of the call.
pub(super) struct OwnedGradients {
    x: Owned<2>,
    router: Option<Owned<2>>,
    w_in: Owned<3>,
    w_out: Owned<3>,
    b_in: Option<Owned<2>>,
    b_out: Option<Owned<2>>,
    shared: Option<(Owned<3>, Owned<3>)>,
    constants: Option<Owned<2>>,
    routing: Option<Owned<2>>,
}

impl OwnedGradients {
    pub(super) fn new(tensors: &Tensors) -> Self {
        Self {
            x: tensors.x.gradient(),
            router: tensors.routing.is_none().then(|| tensors.router.gradient()),
            w_in: tensors.w_in.gradient(),
            w_out: tensors.w_out.gradient(),
            b_in: tensors.b_in.as_ref().map(Owned::gradient),
            b_out: tensors.b_out.as_ref().map(Owned::gradient),
            shared: tensors.shared.as_ref().map(|shared| (shared.w_in.gradient(), shared.w_out.gradient())),
            constants: tensors.constants.as_ref().map(Owned::gradient),
            routing: tensors.routing.as_ref().map(|(_, weights)| weights.gradient()),
        }
    }

    pub(super) fn views(&mut self) -> Result<Gradients<'_>> {
        let shared = match &mut self.shared {
            Some((w_in, w_out)) => {
                Some(ExpertGradients { w_in: view_mut(w_in)?, w_out: view_mut(w_out)?, b_in: None, b_out: None })
            }
            None => None,
        };
        let routing = match &mut self.routing {
            Some(weights) => {
                let count = weights.data.len();
                Some(TensorMut::new(&mut weights.data, [count])?)
            }
            None => None,
        };
        Ok(Gradients {
            x: view_mut(&mut self.x)?,
            router: self.router.as_mut().map(view_mut).transpose()?,
            experts: ExpertGradients {
                w_in: view_mut(&mut self.w_in)?,
                w_out: view_mut(&mut self.w_out)?,
                b_in: self.b_in.as_mut().map(view_mut).transpose()?,
                b_out: self.b_out.as_mut().map(view_mut).transpose()?,
            },
            shared,
            constants: self.constants.as_mut().map(view_mut).transpose()?,
            routing,
        })
    }

    pub(super) fn outputs(self, tensors: &Tensors) -> Vec<Output> {
        let mut outputs = vec![
            into_output("d.x", self.x),
            into_output("d.experts.w_in", self.w_in),
            into_output("d.experts.w_out", self.w_out),
        ];
        outputs.extend(self.router.map(|tensor| into_output("d.router.weight", tensor)));
        outputs.extend(self.b_in.map(|tensor| into_output("d.experts.b_in", tensor)));
        outputs.extend(self.b_out.map(|tensor| into_output("d.experts.b_out", tensor)));
        outputs.extend(self.constants.map(|tensor| into_output("d.null.constants", tensor)));
        outputs.extend(self.routing.map(|tensor| into_output("d.routing.weights", tensor)));
        if let (Some((w_in, w_out)), Some(shared)) = (self.shared, &tensors.shared) {
            // In the rank that the weight had in the file: without the leading 1 where it had none.
            let w_in_shape = w_in.shape[3 - shared.w_in_rank..].to_vec();
            let w_out_shape = w_out.shape[3 - shared.w_out_rank..].to_vec();
            outputs.push(Output::new("d.shared.w_in", &w_in_shape, w_in.data));
            outputs.push(Output::new("d.shared.w_out", &w_out_shape, w_out.data));
        }
        outputs
    }
}

fn view_mut<const R: usize>(tensor: &mut Owned<R>) -> Result<TensorMut<'_, R>> {
    Ok(TensorMut::new(&mut tensor.data, tensor.shape)?)
}

fn into_output<const R: usize>(name: &'static str, tensor: Owned<R>) -> Output {
    Output::new(name, &tensor.shape, tensor.data)
}
