//! What a call needs and leaves nothing in: one is enough for all layers of a model that run one after another.

use crate::{Backend, DType, Error, Keep, Memory, Result, Sizes};

/// Buffers that mean nothing between calls: what stages hand each other within a forward or a backward.
///
/// A [`Step`](crate::Step) has its own, or is lent one with [`Step::with_scratch`](crate::Step::with_scratch).
#[derive(Debug, Default)]
pub struct Scratch(Option<Box<Buffers>>);

/// The buffers.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// `o` of every row in forward, its `dx` in backward.
    pub(crate) rows: Memory,
    /// The same of the shared expert.
    pub(crate) shared: Memory,
    pub(crate) d_weights: Memory,
    pub(crate) d_row_weight: Memory,
    pub(crate) d_logits: Memory,
    pub(crate) dx: Memory,
    /// What a stage needs for itself.
    pub(crate) stage: Memory,
}

/// Element counts of the buffers: the single source for allocating them, for their bytes and for whether they suffice.
struct Counts {
    /// In the backend's row type.
    rows: usize,
    shared: usize,
    /// In f32.
    d_weights: usize,
    d_row_weight: usize,
    d_logits: usize,
    dx: usize,
    stage: usize,
}

impl Counts {
    /// `stage` is [`Backend::stage_scratch`].
    fn new(sizes: &Sizes, stage: usize, keep: Keep) -> Self {
        let in_backward = |count| if keep == Keep::Nothing { 0 } else { count };
        let (tokens, rows) = (sizes.tokens, sizes.rows);
        let shared_rows = if sizes.shared_width > 0 { tokens } else { 0 };
        Self {
            rows: rows * sizes.hidden,
            shared: shared_rows * sizes.hidden,
            d_weights: in_backward(rows),
            d_row_weight: in_backward(rows.max(shared_rows)),
            d_logits: in_backward(tokens * sizes.candidates),
            dx: in_backward(tokens * sizes.hidden),
            stage,
        }
    }
}

impl Scratch {
    pub(crate) fn allocate<B: Backend>(backend: &B, sizes: &Sizes, dtype: DType, keep: Keep) -> Result<Self> {
        let counts = Counts::new(sizes, backend.stage_scratch(sizes, keep), keep);
        let of_rows = |len| backend.allocate(backend.row_type(dtype), len);
        let float = |len| backend.allocate(DType::F32, len);
        Ok(Self(Some(Box::new(Buffers {
            rows: of_rows(counts.rows)?,
            shared: of_rows(counts.shared)?,
            d_weights: float(counts.d_weights)?,
            d_row_weight: float(counts.d_row_weight)?,
            d_logits: float(counts.d_logits)?,
            dx: float(counts.dx)?,
            stage: float(counts.stage)?,
        }))))
    }

    /// Bytes that [`Scratch::allocate`] allocates.
    pub(crate) fn bytes(sizes: &Sizes, row_type: DType, stage: usize, keep: Keep) -> usize {
        let counts = Counts::new(sizes, stage, keep);
        let floats = [counts.d_weights, counts.d_row_weight, counts.d_logits, counts.dx, counts.stage];
        total([(&[counts.rows, counts.shared], row_type), (&floats, DType::F32)])
    }

    /// Refuses scratch that a call of these sizes does not fit into.
    pub(crate) fn check<B: Backend>(
        &self,
        op: &'static str,
        backend: &B,
        sizes: &Sizes,
        dtype: DType,
        keep: Keep,
    ) -> Result<()> {
        let buffers = self.0.as_ref().ok_or_else(|| none(op))?;
        backend.check_location(op, "scratch", (&buffers.d_weights).into())?;
        let needed = Counts::new(sizes, backend.stage_scratch(sizes, keep), keep);
        let row_type = backend.row_type(dtype);
        let all = [
            ("rows", &buffers.rows, needed.rows, row_type),
            ("shared", &buffers.shared, needed.shared, row_type),
            ("d_weights", &buffers.d_weights, needed.d_weights, DType::F32),
            ("d_row_weight", &buffers.d_row_weight, needed.d_row_weight, DType::F32),
            ("d_logits", &buffers.d_logits, needed.d_logits, DType::F32),
            ("dx", &buffers.dx, needed.dx, DType::F32),
            ("stage", &buffers.stage, needed.stage, DType::F32),
        ];
        for (name, buffer, needed, dtype) in all {
            if buffer.len() < needed || buffer.dtype() != dtype {
                let (room, found) = (buffer.len(), buffer.dtype());
                let problem =
                    format!("the scratch's `{name}` has room for {room} {found}, {needed} {dtype} are needed");
                return Err(Error::Workspace { op, problem });
            }
        }
        Ok(())
    }

    pub(crate) fn d_logits(&self) -> Option<&Memory> {
        self.0.as_ref().map(|buffers| &buffers.d_logits)
    }

    /// The buffers of a call that has been checked.
    pub(crate) fn buffers(&mut self, op: &'static str) -> Result<&mut Buffers> {
        self.0.as_deref_mut().ok_or_else(|| none(op))
    }
}

fn none(op: &'static str) -> Error {
    Error::Workspace { op, problem: "the step was made without scratch and is lent none".into() }
}

/// Bytes of some numbers of elements. Saturating: what no memory can have must not wrap around to something small.
pub(crate) fn total<const N: usize>(counts: [(&[usize], DType); N]) -> usize {
    let each = counts.into_iter().flat_map(|(counts, dtype)| counts.iter().map(move |count| (count, dtype.size())));
    each.fold(0usize, |sum, (count, size)| sum.saturating_add(count.saturating_mul(size)))
}
