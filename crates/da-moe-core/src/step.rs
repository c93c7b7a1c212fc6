//! Buffers of a layer call: allocated once for a largest number of tokens, reused by every call.

use crate::{
    Backend, DType, Error, Memory, Plan, PlanMut, Result, Selection, SelectionMut, Sizes, Slice, TensorMut, TensorRef,
};

/// Number of f32 values carried between steps: minimum, maximum, price `λ`, training steps that moved the first two.
pub const STATE_LEN: usize = 4;

/// What `running` and `budget-running` carry between steps; part of a checkpoint. Policies that carry nothing leave it be.
#[derive(Debug)]
pub struct State {
    /// `[STATE_LEN]` f32: running minimum and maximum of importance, price `λ`, training steps that moved
    /// minimum and maximum; zeros at first.
    pub values: Memory,
}

impl State {
    pub(crate) fn view_mut(&mut self) -> Result<TensorMut<'_, 1>> {
        TensorMut::prefix(&mut self.values, [STATE_LEN])
    }
}

/// What backward needs of the experts' hidden rows (SPEC §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Only forward will be called.
    Nothing,
    /// Forward keeps `h`: `R · F` (or `2F`) elements of [`Backend::intermediate`]'s type.
    Hidden,
    /// Backward computes `h` again from `x`.
    Recompute,
}

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
    pub(crate) hidden: Memory,
    pub(crate) shared_hidden: Memory,
}

/// Scratch that means nothing between calls.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) positions: Memory,
    pub(crate) rows: Memory,
    pub(crate) shared: Memory,
    pub(crate) d_weights: Memory,
    pub(crate) d_row_weight: Memory,
    pub(crate) d_logits: Memory,
    pub(crate) dx: Memory,
    pub(crate) d_hidden: Memory,
    pub(crate) activated: Memory,
}

/// The forward call that a step's results are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Last {
    pub sizes: Sizes,
    /// Whether the routing came from outside, so that there are no importance and no logits.
    pub routed: bool,
}

/// Everything that a forward and a backward over up to `max_tokens` tokens need besides inputs, weights and outputs.
#[derive(Debug)]
pub struct Step {
    pub(crate) saved: Saved,
    pub(crate) workspace: Workspace,
    pub(crate) dtype: DType,
    pub(crate) keep: Keep,
    /// What it was made for, at its largest number of tokens.
    pub(crate) made_for: Sizes,
    /// The last forward.
    pub(crate) last: Option<Last>,
}

/// Element counts of one step's buffers: the single source for allocation and for [`Step::bytes`].
struct Counts {
    hidden: usize,
    shared_hidden: usize,
    rows: usize,
    shared: usize,
    backward: bool,
    d_hidden: usize,
    activated: usize,
}

impl Counts {
    fn new(sizes: &Sizes, keep: Keep) -> Self {
        let backward = keep != Keep::Nothing;
        let kept = |count| if keep == Keep::Hidden { count } else { 0 };
        let in_backward = |count| if backward { count } else { 0 };
        let (rows, tokens) = (sizes.rows, sizes.tokens);
        let shared_rows = if sizes.shared_width > 0 { tokens } else { 0 };
        Self {
            hidden: kept(rows * sizes.rows_in),
            shared_hidden: kept(tokens * sizes.shared_rows_in),
            rows: rows * sizes.hidden,
            shared: shared_rows * sizes.hidden,
            backward,
            d_hidden: in_backward((rows * sizes.rows_in).max(tokens * sizes.shared_rows_in)),
            // With `h` kept, `g·a` is computed from it again.
            activated: match keep {
                Keep::Recompute => (rows * sizes.width).max(tokens * sizes.shared_width),
                Keep::Nothing | Keep::Hidden => 0,
            },
        }
    }
}

impl Step {
    pub(crate) fn allocate<B: Backend>(backend: &B, sizes: &Sizes, dtype: DType, keep: Keep) -> Result<Self> {
        let counts = Counts::new(sizes, keep);
        let (t, n, e) = (sizes.tokens, sizes.candidates, sizes.experts);
        let float = |len| backend.allocate(DType::F32, len);
        let int = |len| backend.allocate(DType::I32, len);
        let intermediate = |len| backend.allocate(backend.intermediate(dtype), len);
        let in_backward = |len: usize| if counts.backward { len } else { 0 };
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
                hidden: intermediate(counts.hidden)?,
                shared_hidden: intermediate(counts.shared_hidden)?,
            },
            workspace: Workspace {
                positions: float(3 * t)?,
                rows: intermediate(counts.rows)?,
                shared: intermediate(counts.shared)?,
                d_weights: float(in_backward(sizes.rows))?,
                d_row_weight: float(in_backward(sizes.rows.max(t)))?,
                d_logits: float(in_backward(t * n))?,
                dx: float(in_backward(t * sizes.hidden))?,
                d_hidden: intermediate(counts.d_hidden)?,
                activated: intermediate(counts.activated)?,
            },
            dtype,
            keep,
            made_for: *sizes,
            last: None,
        })
    }

    /// Bytes that a step of these sizes allocates; a pure function of its arguments.
    pub(crate) fn bytes(sizes: &Sizes, intermediate: DType, keep: Keep) -> usize {
        let counts = Counts::new(sizes, keep);
        let (t, n) = (sizes.tokens, sizes.candidates);
        // Saturating: what no memory can have must not wrap around to something small.
        let sum = |counts: &[usize]| counts.iter().fold(0, |sum: usize, &count| sum.saturating_add(count));
        let forward = sum(&[5 * t, t.saturating_mul(n), sizes.rows.saturating_mul(6), 2 * n, sizes.experts, 5]);
        let width = t.saturating_mul(sizes.hidden);
        let backward = sum(&[sizes.rows, sizes.rows.max(t), t.saturating_mul(n), width]);
        let between =
            sum(&[counts.rows, counts.shared, counts.hidden, counts.shared_hidden, counts.d_hidden, counts.activated]);
        let fixed = if counts.backward { sum(&[forward, backward]) } else { forward };
        sum(&[fixed.saturating_mul(4), between.saturating_mul(intermediate.size())])
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
    /// A buffer of every call, which is where all others are.
    pub(crate) fn place(&self) -> Slice<'_> {
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
