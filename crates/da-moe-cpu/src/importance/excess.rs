//! Log-sum-exps from the caller that cannot be ones: a score above its own row's would be a probability above 1.

use da_moe_core::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// Beyond rounding: relative to the log-sum-exp, and at least of a number near 1.
const ROUNDING: f32 = 1e-3;

/// By how much one head's largest score exceeds its log-sum-exp, and the query it is of: the largest of all, whichever thread
/// finds it. The excess is in the upper half, as the bits of a positive float, whose order is that of the integers.
#[derive(Default)]
pub(super) struct Excess(AtomicU64);

impl Excess {
    /// Takes in a query's largest score, by its packed position. What is infinite or NaN follows IEEE into its own row.
    #[inline(always)]
    pub fn see(&self, packed: usize, score: f32, lse: f32) {
        let excess = score - lse;
        if excess > ROUNDING * lse.abs().max(1.0) && excess.is_finite() {
            self.0.fetch_max(u64::from(excess.to_bits()) << 32 | packed as u64, Ordering::Relaxed);
        }
    }

    /// Refuses what was found; `tokens` are those of the packed positions.
    pub fn check(&self, head: usize, tokens: &[u32]) -> Result<()> {
        let found = self.0.load(Ordering::Relaxed);
        if found == 0 {
            return Ok(());
        }
        let (excess, packed) = (f32::from_bits((found >> 32) as u32), found as u32 as usize);
        let problem = format!(
            "of head {head} and token {} is {excess} below a score of its row, a probability of e^{excess}: it must be the \
             natural logarithm of the sum over the same queries, keys, mask and scale",
            tokens[packed]
        );
        Err(Error::Value { op: "importance", argument: "lse", problem })
    }
}
