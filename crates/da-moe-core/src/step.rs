//! Buffers of a layer call: allocated once for a largest number of tokens, reused by every call.

use crate::scratch::{Scratch, total};
use crate::{
    Backend, DType, Error, Keep, Memory, Plan, PlanMut, Result, Selection, SelectionMut, SharedPlan, SharedPlanMut,
    Sizes, Slice, TensorMut, TensorRef, hidden_type,
};

/// Elements of four bytes that a row has in the selection and in the plan.
const ROW_WORDS: usize = 6;

/// The results of a forward call that backward and reports read.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) importance: Memory,
    pub(crate) logits: Memory,
    pub(crate) selection: SelectionBuffers,
    pub(crate) load: Memory,
    pub(crate) unmasked: Memory,
    pub(crate) losses: Memory,
    pub(crate) plan: PlanBuffers,
    pub(crate) shared_plan: SharedPlanBuffers,
    pub(crate) hidden: Memory,
    pub(crate) shared_hidden: Memory,
}

/// The forward call that a step's results are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Last {
    pub sizes: Sizes,
    /// Whether the routing came from outside, so that there are no importance and no logits.
    pub routed: bool,
    /// Whether there was a mask.
    pub masked: bool,
    /// Whether the step's own scratch holds what a backward of it wrote.
    pub backward: bool,
}

/// What a forward over up to `max_tokens` tokens leaves for backward and for reports, and [`Scratch`] for both.
#[derive(Debug)]
pub struct Step {
    pub(crate) saved: Saved,
    pub(crate) scratch: Scratch,
    pub(crate) dtype: DType,
    pub(crate) keep: Keep,
    /// What it was made for, at its largest number of tokens.
    pub(crate) made_for: Sizes,
    /// The last forward.
    pub(crate) last: Option<Last>,
}

/// Bytes of a step's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepBytes {
    /// What a forward leaves: each call in flight, so each layer of a model between its forward and its backward, has its own.
    pub saved: usize,
    /// [`Scratch`]: one is enough for calls that run one after another.
    pub scratch: usize,
}

impl StepBytes {
    /// Of a backend that is not at hand, in a storage type: its [`Backend::row_type`] and its [`Backend::stage_scratch`].
    pub fn of(sizes: &Sizes, dtype: DType, row_type: DType, stage_scratch: usize, keep: Keep) -> Self {
        Self { saved: Step::bytes(sizes, dtype, keep), scratch: Scratch::bytes(sizes, row_type, stage_scratch, keep) }
    }

    /// Those of `saved` that there are for each routed row: of `h`, where it is kept, and of its places in the selection and the plan.
    pub fn of_row(sizes: &Sizes, dtype: DType, keep: Keep) -> usize {
        let hidden = if keep == Keep::Hidden { sizes.rows_in } else { 0 };
        total([(&[ROW_WORDS], DType::F32), (&[hidden], hidden_type(dtype))])
    }

    /// Of a step with scratch of its own.
    pub fn total(&self) -> usize {
        self.saved.saturating_add(self.scratch)
    }
}

/// Elements of the hidden rows that are kept: of routed experts and of the shared one.
fn kept(sizes: &Sizes, keep: Keep) -> [usize; 2] {
    match keep {
        Keep::Hidden => [sizes.rows * sizes.rows_in, sizes.tokens * sizes.shared_rows_in],
        Keep::Nothing | Keep::Recompute => [0, 0],
    }
}

/// Tokens that a shared expert may take.
fn shared_tokens(sizes: &Sizes) -> usize {
    if sizes.shared_width > 0 { sizes.tokens } else { 0 }
}

impl Step {
    /// A step that is lent its scratch.
    pub(crate) fn allocate<B: Backend>(backend: &B, sizes: &Sizes, dtype: DType, keep: Keep) -> Result<Self> {
        let (t, n, e) = (sizes.tokens, sizes.candidates, sizes.experts);
        let float = |len| backend.allocate(DType::F32, len);
        let int = |len| backend.allocate(DType::I32, len);
        let hidden_rows = |len| backend.allocate(hidden_type(dtype), len);
        let [hidden, shared_hidden] = kept(sizes, keep);
        Ok(Self {
            saved: Saved {
                importance: float(t)?,
                logits: float(t * n)?,
                selection: SelectionBuffers {
                    k: int(t)?,
                    experts: int(sizes.rows)?,
                    weights: float(sizes.rows)?,
                    ranked: int(sizes.rows)?,
                },
                load: int(n)?,
                unmasked: int(1)?,
                losses: float(2)?,
                plan: PlanBuffers {
                    counts: int(n)?,
                    offsets: int(e + 1)?,
                    row_token: int(sizes.rows)?,
                    row_weight: float(sizes.rows)?,
                    token_row: int(sizes.rows)?,
                    dropped: int(1)?,
                },
                shared_plan: SharedPlanBuffers {
                    offsets: int(2)?,
                    row_token: int(shared_tokens(sizes))?,
                    token_row: int(shared_tokens(sizes))?,
                },
                hidden: hidden_rows(hidden)?,
                shared_hidden: hidden_rows(shared_hidden)?,
            },
            scratch: Scratch::default(),
            dtype,
            keep,
            made_for: *sizes,
            last: None,
        })
    }

    /// Bytes that [`Step::allocate`] allocates.
    fn bytes(sizes: &Sizes, dtype: DType, keep: Keep) -> usize {
        let (t, n) = (sizes.tokens, sizes.candidates);
        let shared = 2 * shared_tokens(sizes) + 2;
        let plan = [2 * t, t.saturating_mul(n), sizes.rows.saturating_mul(ROW_WORDS), 2 * n, sizes.experts, 5, shared];
        total([(&plan, DType::F32), (&kept(sizes, keep), hidden_type(dtype))])
    }

    /// Calls `call` with this step using `scratch`, which may be another layer's as long as it is large enough: calls that
    /// run one after another need only one. On a device that is the order of one stream.
    pub fn with_scratch<T>(&mut self, scratch: &mut Scratch, call: impl FnOnce(&mut Self) -> T) -> T {
        self.exchange(scratch);
        let result = call(self);
        self.exchange(scratch);
        result
    }

    fn exchange(&mut self, scratch: &mut Scratch) {
        std::mem::swap(&mut self.scratch, scratch);
        self.last = self.last.map(|last| Last { backward: false, ..last });
    }

    /// The sizes of the last forward; an error before the first.
    ///
    /// # Errors
    /// [`Error::Workspace`] when no forward has run.
    pub fn sizes(&self) -> Result<Sizes> {
        let none = || Error::Workspace { op: "step", problem: "no forward has run yet".into() };
        self.last.map(|last| last.sizes).ok_or_else(none)
    }

    /// As [`Step::sizes`], for results that a routing from outside does not have.
    fn gated(&self, result: &'static str) -> Result<Sizes> {
        match self.last {
            Some(Last { routed: true, .. }) => {
                let problem = format!("the last forward had a routing from outside, so there is no {result}");
                Err(Error::Workspace { op: "step", problem })
            }
            _ => self.sizes(),
        }
    }

    /// `I[T]` f32 of the last forward.
    ///
    /// # Errors
    /// [`Error::Workspace`] when no forward has run, or with a routing from outside.
    pub fn importance(&self) -> Result<TensorRef<'_, 1>> {
        let sizes = self.gated("importance")?;
        view(&self.saved.importance, [sizes.tokens])
    }

    /// `z[T, E + Z]` f32 of the last forward.
    ///
    /// # Errors
    /// [`Error::Workspace`] when no forward has run, or with a routing from outside.
    pub fn logits(&self) -> Result<TensorRef<'_, 2>> {
        let sizes = self.gated("logits")?;
        view(&self.saved.logits, [sizes.tokens, sizes.candidates])
    }

    /// `dz[T, E + Z]` f32: the gradient of the logits, that of the losses included, as the last backward left it in scratch.
    ///
    /// # Errors
    /// [`Error::Workspace`] when no backward has followed the last forward, with a routing from outside, or when that backward
    /// used scratch that the step was lent.
    pub fn router_gradient(&self) -> Result<TensorRef<'_, 2>> {
        let sizes = self.gated("gradient of logits")?;
        match (self.last, self.scratch.d_logits()) {
            (Some(Last { backward: true, .. }), Some(d_logits)) => view(d_logits, [sizes.tokens, sizes.candidates]),
            _ => {
                let problem = "no backward has followed the last forward, or it used scratch that was lent".into();
                Err(Error::Workspace { op: "step", problem })
            }
        }
    }

    /// What the gate decided in the last forward.
    ///
    /// # Errors
    /// [`Error::Workspace`] when no forward has run.
    pub fn selection(&self) -> Result<Selection<'_>> {
        self.saved.selection.view(&self.sizes()?)
    }

    /// The dispatch plan of the last forward.
    ///
    /// # Errors
    /// [`Error::Workspace`] when no forward has run.
    pub fn plan(&self) -> Result<Plan<'_>> {
        self.saved.plan.view(&self.sizes()?)
    }

    /// `[E + Z]` i32: selections of each candidate before any drop.
    ///
    /// # Errors
    /// [`Error::Workspace`] when no forward has run.
    pub fn load(&self) -> Result<TensorRef<'_, 1>> {
        let sizes = self.sizes()?;
        view(&self.saved.load, [sizes.candidates])
    }

    /// `[1]` i32: unmasked tokens.
    ///
    /// # Errors
    /// [`Error::Workspace`] when no forward has run.
    pub fn unmasked(&self) -> Result<TensorRef<'_, 1>> {
        self.sizes()?;
        view(&self.saved.unmasked, [1])
    }

    /// `[2]` f32: balance loss and z-loss, without their coefficients.
    ///
    /// # Errors
    /// [`Error::Workspace`] when no forward has run.
    pub fn losses(&self) -> Result<TensorRef<'_, 1>> {
        self.sizes()?;
        view(&self.saved.losses, [2])
    }
}

impl Step {
    /// A buffer that every call has: the others are on the same device.
    pub(crate) fn any_buffer(&self) -> Slice<'_> {
        (&self.saved.load).into()
    }
}

/// A dense view of a buffer's first elements.
pub(crate) fn view<const R: usize>(buffer: &Memory, shape: [usize; R]) -> Result<TensorRef<'_, R>> {
    TensorRef::prefix(buffer, shape)
}

/// A writable dense view of a buffer's first elements.
pub(crate) fn view_mut<const R: usize>(buffer: &mut Memory, shape: [usize; R]) -> Result<TensorMut<'_, R>> {
    TensorMut::prefix(buffer, shape)
}

/// The gate's outputs.
#[derive(Debug)]
pub(crate) struct SelectionBuffers {
    k: Memory,
    experts: Memory,
    weights: Memory,
    ranked: Memory,
}

impl SelectionBuffers {
    pub(crate) fn view(&self, sizes: &Sizes) -> Result<Selection<'_>> {
        let slots = [sizes.tokens, sizes.k_max];
        Ok(Selection {
            k: view(&self.k, [sizes.tokens])?,
            experts: view(&self.experts, slots)?,
            weights: view(&self.weights, slots)?,
            ranked: view(&self.ranked, slots)?,
        })
    }

    pub(crate) fn view_mut(&mut self, sizes: &Sizes) -> Result<SelectionMut<'_>> {
        let slots = [sizes.tokens, sizes.k_max];
        Ok(SelectionMut {
            k: view_mut(&mut self.k, [sizes.tokens])?,
            experts: view_mut(&mut self.experts, slots)?,
            weights: view_mut(&mut self.weights, slots)?,
            ranked: view_mut(&mut self.ranked, slots)?,
        })
    }
}

/// The dispatch plan.
#[derive(Debug)]
pub(crate) struct PlanBuffers {
    counts: Memory,
    offsets: Memory,
    row_token: Memory,
    row_weight: Memory,
    token_row: Memory,
    dropped: Memory,
}

impl PlanBuffers {
    pub(crate) fn view(&self, sizes: &Sizes) -> Result<Plan<'_>> {
        Ok(Plan {
            counts: view(&self.counts, [sizes.candidates])?,
            offsets: view(&self.offsets, [sizes.experts + 1])?,
            row_token: view(&self.row_token, [sizes.rows])?,
            row_weight: view(&self.row_weight, [sizes.rows])?,
            token_row: view(&self.token_row, [sizes.tokens, sizes.k_max])?,
            dropped: view(&self.dropped, [1])?,
        })
    }

    pub(crate) fn view_mut(&mut self, sizes: &Sizes) -> Result<PlanMut<'_>> {
        Ok(PlanMut {
            counts: view_mut(&mut self.counts, [sizes.candidates])?,
            offsets: view_mut(&mut self.offsets, [sizes.experts + 1])?,
            row_token: view_mut(&mut self.row_token, [sizes.rows])?,
            row_weight: view_mut(&mut self.row_weight, [sizes.rows])?,
            token_row: view_mut(&mut self.token_row, [sizes.tokens, sizes.k_max])?,
            dropped: view_mut(&mut self.dropped, [1])?,
        })
    }
}

/// The rows of the shared expert.
#[derive(Debug)]
pub(crate) struct SharedPlanBuffers {
    offsets: Memory,
    row_token: Memory,
    token_row: Memory,
}

impl SharedPlanBuffers {
    pub(crate) fn view(&self, sizes: &Sizes) -> Result<SharedPlan<'_>> {
        Ok(SharedPlan {
            offsets: view(&self.offsets, [2])?,
            row_token: view(&self.row_token, [sizes.tokens])?,
            token_row: view(&self.token_row, [sizes.tokens])?,
        })
    }

    pub(crate) fn view_mut(&mut self, sizes: &Sizes) -> Result<SharedPlanMut<'_>> {
        Ok(SharedPlanMut {
            offsets: view_mut(&mut self.offsets, [2])?,
            row_token: view_mut(&mut self.row_token, [sizes.tokens])?,
            token_row: view_mut(&mut self.token_row, [sizes.tokens])?,
        })
    }
}
