//! f32 scratch of each worker thread: grows to what a task needs, then is reused by every later task and call.

use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `body` with `lengths.len()` disjoint slices of those lengths; their contents are whatever the last task left.
pub(crate) fn with<const N: usize, R>(lengths: [usize; N], body: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    // Taken out while in use, so that a task which itself runs other tasks of the pool meanwhile gets another one.
    let mut memory = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    let total = lengths.iter().sum();
    if memory.len() < total {
        memory.resize(total, 0.0);
    }
    let mut rest = memory.as_mut_slice();
    let slices = lengths.map(|length| {
        let (slice, tail) = std::mem::take(&mut rest).split_at_mut(length);
        rest = tail;
        slice
    });
    let result = body(slices);
    FREE.with_borrow_mut(|free| free.push(memory));
    result
}
