//! Stage 3: the dispatch plan, capacity drops included, recomputed exactly from the outcome's own selection and weights.

use super::outcome::{Outcome, padded};
use super::report::Report;
use crate::{Problem, Slot, capacity_drops, plan};

pub(super) fn check(problem: &Problem, outcome: &Outcome, slots: &[Vec<Slot>], report: &mut Report) {
    let (config, k_max) = (&problem.config, problem.config.k_max());
    let expected = plan(config, slots, &capacity_drops(config, slots));
    let ids = |of: &[usize]| of.iter().map(|&id| id as i64).collect::<Vec<i64>>();
    let rows = expected.row_token.len();
    report.equal("counts", 1, &outcome.counts, &ids(&expected.counts));
    report.equal("offsets", 1, &outcome.offsets, &ids(&expected.offsets));
    report.equal("row_token", 1, leading(&outcome.row_token, rows), &ids(&expected.row_token));
    report.equal("row_weight", 1, leading(&outcome.row_weight, rows), &expected.row_weight);
    let row = |row: &Option<usize>| row.map_or(-1, |row| row as i64);
    let token_row = expected.token_row.iter().map(|rows| rows.iter().map(row).collect());
    report.equal("token_row", k_max, &outcome.token_row, &padded(token_row, k_max, -1));
    report.equal("dropped", 1, &outcome.dropped, &[expected.dropped as i64]);
}

/// The valid part of a buffer that has room for `T · k_max` rows.
fn leading<T>(buffer: &[T], rows: usize) -> &[T] {
    &buffer[..rows.min(buffer.len())]
}
