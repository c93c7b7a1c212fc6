//! What becomes of the gradients of a call: a tensor for each, by its name in the file.

use super::output::Output;
use super::tensors::Tensors;
use crate::Result;
use crate::gradient_buffers::GradientBuffers;
use crate::result_buffer::ResultBuffer;

pub(super) fn outputs(gradients: GradientBuffers, tensors: &Tensors) -> Result<Vec<Output>> {
    let GradientBuffers { x, router, experts, shared, constants, routing } = gradients;
    let mut outputs = vec![
        Output::of("d.x", x)?,
        Output::of("d.experts.w_in", experts.w_in)?,
        Output::of("d.experts.w_out", experts.w_out)?,
    ];
    let mut push = |name, buffer: Option<ResultBuffer<2>>| -> Result<()> {
        outputs.extend(buffer.map(|buffer| Output::of(name, buffer)).transpose()?);
        Ok(())
    };
    push("d.router.weight", router)?;
    push("d.experts.b_in", experts.b_in)?;
    push("d.experts.b_out", experts.b_out)?;
    push("d.null.constants", constants)?;
    push("d.routing.weights", routing)?;
    if let (Some(gradients), Some(shared)) = (shared, &tensors.shared) {
        // In the rank that the weight had in the file: without the leading 1 where it had none.
        let mut push = |name, buffer, rank: usize| -> Result<()> {
            let mut output = Output::of(name, buffer)?;
            output.shape.drain(..3 - rank);
            outputs.push(output);
            Ok(())
        };
        push("d.shared.w_in", gradients.w_in, shared.w_in_rank)?;
        push("d.shared.w_out", gradients.w_out, shared.w_out_rank)?;
    }
    Ok(outputs)
}
