//! How a call is made.

use crate::carried::Carried;

/// How a call is made, beside what it is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct How {
    pub(crate) start: Start,
    pub(crate) training: bool,
    pub(crate) loss_scale: f32,
}

/// What a call begins with of what is carried between calls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Start {
    /// What the layer carries now.
    Now,
    /// The same, and the call tells what that was.
    Told,
    /// What it carried at an earlier call.
    Earlier(Carried),
}

impl How {
    /// In training: what `running` and `budget-running` carry moves, and every weight has a gradient that is not
    /// [frozen](crate::DaMoe::with_frozen).
    pub fn training() -> Self {
        Self { start: Start::Now, training: true, loss_scale: 1.0 }
    }

    /// In evaluation: nothing moves.
    pub fn evaluation() -> Self {
        Self { training: false, ..Self::training() }
    }

    /// A call that was made before, in training or not, with what the layer carried then: of the same inputs and weights the bits are
    /// the same, whatever calls there were in between. Nothing moves again.
    pub fn again(carried: Carried) -> Self {
        Self { start: Start::Earlier(carried), ..Self::evaluation() }
    }

    /// With a factor on the gradients of the balance and z losses, usually 1: what the task's loss is multiplied by before
    /// backward, for loss scaling, or for the mean over micro-batches. Finite.
    pub fn with_loss_scale(self, loss_scale: f32) -> Self {
        Self { loss_scale, ..self }
    }
}
