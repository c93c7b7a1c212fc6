//! What a run says of itself: one JSON object a line, one line every few steps.

use candle_core::Result;
use da_moe_candle::Record;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many experts a token of the vocabulary got.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenExperts {
    /// Its text.
    pub token: String,
    /// Mean over its places and all layers.
    pub mean_k: f64,
    /// Its places.
    pub count: u64,
}

/// How experts were given to the tokens of one or more batches, over all layers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocated {
    /// Mean experts of a token.
    pub mean_k: f64,
    /// Mean experts of a token that had to be predicted, and of the others; absent where there are none.
    pub mean_k_masked: Option<f64>,
    /// See [`Allocated::mean_k_masked`].
    pub mean_k_unmasked: Option<f64>,
    /// Tokens with each number of experts, from 0.
    pub histogram: Vec<u64>,
    /// Rows that went through an expert, of each token.
    pub rows_per_token: f64,
    /// Selections dropped by capacity, of each token.
    pub dropped_per_token: f64,
    /// Entropy of the load over its largest possible value: 1 when even.
    pub load_evenness: f64,
    /// Balance loss without its coefficient, mean over layers.
    pub balance_loss: f64,
    /// Root mean square over tokens of the norm of the router's gradient, by number of experts. After a backward only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub router_gradient_by_k: BTreeMap<usize, f64>,
}

/// Adds up [`Allocated`].
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Tokens and their experts: unmasked, masked.
    sides: [[f64; 2]; 2],
    histogram: Vec<u64>,
    rows: f64,
    dropped: f64,
    evenness: f64,
    balance: f64,
    layers: f64,
    /// By number of experts: tokens, sum of squares.
    gradients: BTreeMap<usize, [f64; 2]>,
}

impl Tally {
    /// Counts one layer's call; `masked` says which tokens had to be predicted, `present` which are no padding.
    pub fn add(&mut self, record: &Record, masked: &[bool], present: impl Fn(usize) -> bool) -> Result<()> {
        let report = record.report()?;
        let k = record.experts_per_token()?;
        for (_, (&k, &masked)) in k.iter().zip(masked).enumerate().filter(|(t, _)| present(*t)) {
            let k = k.max(0) as usize;
            let side = &mut self.sides[usize::from(masked)];
            side[0] += 1.0;
            side[1] += k as f64;
            if self.histogram.len() <= k {
                self.histogram.resize(k + 1, 0);
            }
            self.histogram[k] += 1;
        }
        self.rows += report.rows as f64;
        self.dropped += report.dropped as f64;
        self.evenness += report.load_entropy / (report.load.len().max(2) as f64).ln();
        self.balance += f64::from(report.balance_loss);
        self.layers += 1.0;
        Ok(())
    }

    /// Counts the router's gradients of a call that backward has gone through.
    pub fn add_gradients(&mut self, record: &Record) -> Result<()> {
        let (k, gradient) = (record.experts_per_token()?, record.router_gradient()?);
        let candidates = gradient.len() / k.len().max(1);
        for (k, row) in k.iter().zip(gradient.chunks(candidates.max(1))) {
            let sums = self.gradients.entry((*k).max(0) as usize).or_default();
            sums[0] += 1.0;
            sums[1] += row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
        }
        Ok(())
    }

    /// The figures.
    pub fn finish(&self) -> Allocated {
        let [tokens, experts] = [0, 1].map(|part| self.sides[0][part] + self.sides[1][part]);
        let mean = |[tokens, experts]: [f64; 2]| (tokens > 0.0).then(|| experts / tokens);
        let root = |(&k, &[tokens, squares]): (&usize, &[f64; 2])| (k, (squares / tokens).sqrt());
        let masked = mean(self.sides[1]);
        Allocated {
            mean_k: experts / tokens.max(1.0),
            mean_k_masked: masked,
            mean_k_unmasked: masked.and(mean(self.sides[0])),
            histogram: self.histogram.clone(),
            rows_per_token: self.rows / tokens.max(1.0),
            dropped_per_token: self.dropped / tokens.max(1.0),
            load_evenness: self.evenness / self.layers.max(1.0),
            balance_loss: self.balance / self.layers.max(1.0),
            router_gradient_by_k: self.gradients.iter().map(root).collect(),
        }
    }
}

/// One line of a run's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Steps taken.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Mean training loss since the last line, in nats a predicted token.
    pub loss: f64,
    /// Learning rate of the last step.
    pub rate: f64,
    /// Norm of all gradients at the last step, before clipping.
    pub gradient_norm: f64,
    /// Seconds since the last line, by the clock.
    pub seconds: f64,
    /// How experts were given.
    pub allocated: Allocated,
    /// On held-out text, where it was measured at this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOut>,
}

/// A model on held-out text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Nats a predicted token.
    pub loss: f64,
    /// Share of predicted tokens that were the likeliest.
    pub accuracy: f64,
    /// How experts were given, with everything carried between steps frozen.
    pub allocated: Allocated,
}
