//! When a run writes what.

/// How often a run writes, and how much held-out text it is tried on.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Steps between lines of `metrics.jsonl`.
    pub line: u64,
    /// Lines between measurements on held-out text; there is one after the last step in any case.
    pub held_out: u64,
    /// Lines between checkpoints; there is one after the last step in any case.
    pub checkpoint: u64,
    /// Batches of held-out text.
    pub batches: u64,
}
