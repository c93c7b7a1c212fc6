//! What the demo has to tell, computed once and shown three ways: terminal, picture, page.

use super::layer::{Computed, EXPERTS, K_MAX, Setup};
use super::text::{Text, Token};
use crate::Result;
use da_moe::{DType, STATE_LEN, StageTimes};
use da_moe_reference::Problem;
use da_moe_reference::check::{Figure, Mismatch, Outcome, verify};
use std::collections::HashMap;
use std::ops::Range;

/// Rows of each of the two tables of words.
const TABLE: usize = 8;

/// How far each tensor is from the oracle, or what is wrong.
pub(super) type Verdict = Result<Vec<Figure>, Vec<Mismatch>>;

/// Everything that is shown.
pub(super) struct Findings<'a> {
    pub(super) text: &'a Text,
    pub(super) importance: Vec<f32>,
    pub(super) k: Vec<usize>,
    /// Distinct tokens, the most important first.
    pub(super) words: Vec<Word>,
    /// Tokens with 1, 2, … `K_MAX` experts.
    pub(super) histogram: [usize; K_MAX],
    /// Selections of each expert.
    pub(super) load: Vec<usize>,
    pub(super) rows: usize,
    pub(super) mean_k: f64,
    pub(super) times: StageTimes,
    pub(super) device: String,
    pub(super) verdict: Verdict,
}

/// A distinct token and the mean over its occurrences.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) importance: f64,
    pub(super) mean_k: f64,
    pub(super) count: usize,
}

/// Fixed top-k that dynamic k is compared with.
pub(super) struct Fixed {
    pub(super) k: usize,
    pub(super) rows: usize,
    /// Share of its expert work that dynamic k saves.
    pub(super) saved: f64,
}

impl<'a> Findings<'a> {
    pub(super) fn new(text: &'a Text, setup: &Setup, mut computed: Computed) -> Result<Self> {
        let verdict = check(setup, &mut computed)?;
        let k: Vec<usize> = computed.k.iter().map(|k| usize::try_from(*k).unwrap_or(0)).collect();
        let mut histogram = [0; K_MAX];
        for k in &k {
            if let Some(count) = k.checked_sub(1).and_then(|level| histogram.get_mut(level)) {
                *count += 1;
            }
        }
        Ok(Self {
            text,
            words: words(&text.tokens, &computed.importance, &k),
            histogram,
            load: computed.report.load.iter().map(|count| usize::try_from(*count).unwrap_or(0)).collect(),
            rows: computed.report.rows,
            mean_k: computed.report.mean_k,
            times: computed.times,
            device: computed.device,
            importance: computed.importance,
            k,
            verdict,
        })
    }

    /// The largest `k`, and the mean rounded up: the fixed top-k of the same quality and of the same cost.
    pub(super) fn fixed(&self) -> Vec<Fixed> {
        let mut choices = vec![K_MAX, (self.mean_k.ceil() as usize).clamp(1, K_MAX)];
        choices.dedup();
        let compare = |k: usize| {
            let rows = k * self.k.len();
            Fixed { k, rows, saved: 1.0 - self.rows as f64 / rows.max(1) as f64 }
        };
        choices.into_iter().map(compare).collect()
    }

    pub(super) fn most_important(&self) -> &[Word] {
        &self.words[..TABLE.min(self.words.len())]
    }

    /// Those not among the most important, the least important first.
    pub(super) fn least_important(&self) -> Vec<&Word> {
        let rest = &self.words[self.most_important().len()..];
        rest.iter().rev().take(TABLE).collect()
    }

    /// Up to `count` sentences in reading order that show best how `k` varies: many different `k`, far apart in
    /// importance, neither a heading nor a page long.
    pub(super) fn telling(&self, count: usize) -> Vec<Range<usize>> {
        let mut ranked: Vec<_> = self.text.sentences.iter().collect();
        ranked.sort_by(|a, b| self.interest(b).total_cmp(&self.interest(a)));
        let mut chosen: Vec<_> = ranked.into_iter().take(count).cloned().collect();
        chosen.sort_by_key(|range| range.start);
        chosen
    }

    fn interest(&self, sentence: &Range<usize>) -> f64 {
        let importance = &self.importance[sentence.clone()];
        let mean = importance.iter().sum::<f32>() / importance.len() as f32;
        let spread = importance.iter().map(|i| (i - mean).abs()).sum::<f32>() / importance.len() as f32;
        let levels = (1..=K_MAX).filter(|level| self.k[sentence.clone()].contains(level)).count();
        let length = match importance.len() {
            0..8 => importance.len() as f64 / 8.0,
            8..=32 => 1.0,
            long => 32.0 / long as f64,
        };
        (levels as f64 / K_MAX as f64 + f64::from(spread)) * length
    }

    /// Selections of each expert over what an even load would be.
    pub(super) fn even_load(&self) -> f64 {
        self.load.iter().sum::<usize>() as f64 / EXPERTS as f64
    }
}

fn words(tokens: &[Token], importance: &[f32], k: &[usize]) -> Vec<Word> {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut words: Vec<Word> = Vec::new();
    for ((token, importance), k) in tokens.iter().zip(importance).zip(k) {
        let place = *places.entry(token.folded()).or_insert(words.len());
        if place == words.len() {
            words.push(Word { text: token.text.clone(), importance: 0.0, mean_k: 0.0, count: 0 });
        }
        let word = &mut words[place];
        word.importance += f64::from(*importance);
        word.mean_k += *k as f64;
        word.count += 1;
    }
    for word in &mut words {
        word.importance /= word.count as f64;
        word.mean_k /= word.count as f64;
    }
    words.sort_by(|a, b| b.importance.total_cmp(&a.importance).then_with(|| a.text.cmp(&b.text)));
    words
}

/// Holds every figure of the call against the oracle.
fn check(setup: &Setup, computed: &mut Computed) -> Result<Verdict> {
    let (inputs, weights) = (setup.inputs()?, setup.weights()?);
    let problem = Problem::new(setup.config.clone(), &inputs, &weights, &[0.0; STATE_LEN])?;
    let gradients = computed.gradients.views()?;
    let outcome = Outcome::from_step(&computed.step, computed.y.view()?, Some(&gradients))?;
    let dy: Vec<f64> = setup.dy.iter().map(|v| f64::from(*v)).collect();
    Ok(verify(&problem, &outcome, DType::F32, Some(&dy)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::tests::emulated;

    /// As on a GPU: everything is copied to the device, runs there, and is read back.
    #[test]
    fn the_kernels_agree_with_the_oracle_too() {
        let text = Text::split("A cat sat on the mat. The mat was red; the cat, less so.", 100).unwrap();
        let setup = Setup::new(&text);
        let mut computed = setup.run_on(emulated()).unwrap();
        assert!(computed.device.contains("emulated"));
        let verdict = check(&setup, &mut computed).unwrap();
        assert!(verdict.is_ok(), "{}", verdict.unwrap_err()[0]);
    }
}
