//! SPEC §5 and §6: the two matrices of every expert, over exactly the rows that were routed to it.
//!
//! Work is cut into tasks by row counts alone, never by the number of threads, so any pool computes the same bits.

mod backward;
mod forward;
mod weight_gradients;

pub(crate) use backward::{backward, scratch_len};
pub(crate) use forward::forward;

use crate::views::{optional, vector};
use da_moe_core::{Error, Result, Rows};
use std::ops::Range;

/// Rows of one expert that one task takes at most: enough for the product to run at full speed, few enough to balance.
const BLOCK: usize = 256;

/// Where the rows of the plan come from.
#[derive(Clone, Copy)]
struct RowMap<'a> {
    /// Absent: one expert owns all tokens.
    routed: Option<Routed<'a>>,
    tokens: usize,
}

/// Rows of a plan: expert `e` owns `offsets[e] .. offsets[e + 1]`.
#[derive(Clone, Copy)]
struct Routed<'a> {
    offsets: &'a [i32],
    tokens: &'a [i32],
    /// Absent: 1.
    weights: Option<&'a [f32]>,
}

impl<'a> RowMap<'a> {
    /// Refuses a plan that would read out of bounds: engines may hand in their own.
    fn new(op: &'static str, rows: &Rows<'a>, tokens: usize, experts: usize, room: usize) -> Result<Self> {
        let Rows::Routed { offsets, row_token, row_weight } = rows else {
            return Ok(Self { routed: None, tokens });
        };
        let offsets: &[i32] = vector(op, "offsets", offsets)?;
        let row_token: &[i32] = vector(op, "row_token", row_token)?;
        let row_weight = optional::<f32>(op, "row_weight", row_weight)?;
        let refuse = |argument, problem| Err(Error::Value { op, argument, problem });
        if offsets.len() != experts + 1 || offsets[0] != 0 || offsets.windows(2).any(|pair| pair[0] > pair[1]) {
            return refuse("offsets", format!("not {} ascending numbers from 0", experts + 1));
        }
        let used = offsets[experts] as usize;
        if used > room.min(row_token.len()) {
            return refuse("offsets", format!("{used} rows, but there is room for {room}"));
        }
        if let Some(row) = row_token[..used].iter().position(|&t| usize::try_from(t).map_or(true, |t| t >= tokens)) {
            return refuse("row_token", format!("row {row} names token {} of {tokens}", row_token[row]));
        }
        Ok(Self { routed: Some(Routed { offsets, tokens: row_token, weights: row_weight }), tokens })
    }

    fn experts(&self) -> usize {
        self.routed.map_or(1, |routed| routed.offsets.len() - 1)
    }

    fn range(&self, expert: usize) -> Range<usize> {
        let Some(Routed { offsets, .. }) = self.routed else { return 0..self.tokens };
        offsets[expert] as usize..offsets[expert + 1] as usize
    }

    #[inline(always)]
    fn token(&self, row: usize) -> usize {
        self.routed.map_or(row, |routed| routed.tokens[row] as usize)
    }

    #[inline(always)]
    fn weight(&self, row: usize) -> f32 {
        self.routed.and_then(|routed| routed.weights).map_or(1.0, |weights| weights[row])
    }

    /// The tokens of some rows, in order.
    fn tokens_of(self, rows: Range<usize>) -> impl Iterator<Item = usize> + use<'a> {
        rows.map(move |row| self.token(row))
    }

    /// Every expert's rows in equal blocks of at most [`BLOCK`], in row order.
    fn blocks(&self) -> Vec<(usize, Range<usize>)> {
        (0..self.experts())
            .flat_map(|expert| {
                let rows = self.range(expert);
                let count = rows.len().div_ceil(BLOCK);
                let bound = move |i: usize| rows.start + rows.len() * i / count.max(1);
                (0..count).map(move |i| (expert, bound(i)..bound(i + 1)))
            })
            .collect()
    }
}

/// Cuts the first `count` elements off `rest`.
pub(crate) fn take<'a, T>(rest: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    let (head, tail) = std::mem::take(rest).split_at_mut(count);
    *rest = tail;
    head
}
