//! One model in training: a step at a time, from anywhere to anywhere.

use crate::config::RunConfig;
use crate::corpus::{Batch, Corpus, Step};
use crate::data::Tokenizer;
use crate::error::{Result, TrainError};
use crate::identity::Identity;
use crate::metrics::{Allocated, HeldOut, Line, Tally, TokenExperts};
use crate::model::{Pass, Transformer};
use crate::model_config::Schedule;
use crate::optimizer::AdamW;
use crate::variables::Variables;
use candle_core::{D, DType, Device};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tokens with the most experts, and with the fewest, that are shown.
const SHOWN: usize = 12;
/// Places in held-out text that a token has to have to be among them.
const SEEN: f64 = 20.0;

/// A model, its optimiser, and how far they have come.
pub struct Trainer {
    pub(crate) config: RunConfig,
    pub(crate) model: Transformer,
    pub(crate) optimizer: AdamW,
    pub(crate) step: u64,
    pub(crate) identity: Identity,
    /// What a run has said of itself so far.
    pub(crate) lines: Vec<Line>,
    corpus: Arc<Corpus>,
    device: Device,
    variables: Variables,
}

/// What happened since it was last asked.
#[derive(Default)]
pub(crate) struct Since {
    tally: Tally,
    loss: f64,
    steps: f64,
    pub rate: f64,
    pub gradient_norm: f64,
}

impl Since {
    /// Mean loss and allocation.
    pub fn finish(&self) -> (f64, Allocated) {
        (self.loss / self.steps.max(1.0), self.tally.finish())
    }
}

impl Trainer {
    /// Before its first step.
    ///
    /// # Errors
    /// What the configuration or the device refuses, or a vocabulary that is not the corpus's.
    pub fn new(config: RunConfig, corpus: Arc<Corpus>, device: &Device) -> Result<Self> {
        config.validate()?;
        let vocabulary = corpus.tokenizer.vocabulary();
        if config.model.vocabulary != vocabulary {
            let problem = format!("is {}, the tokeniser has {vocabulary}", config.model.vocabulary);
            return Err(TrainError::config("model.vocabulary", problem));
        }
        let length = corpus.train.length();
        if config.model.length != length {
            let problem = format!("is {}, the text is in blocks of {length} tokens", config.model.length);
            return Err(TrainError::config("model.length", problem));
        }
        let variables = Variables::new(config.seed);
        let model = Transformer::new(&config.model, &config.variant, &corpus.rarity, variables.builder(device))?;
        let optimizer = AdamW::new(variables.all(), &config.schedule)?;
        let identity = corpus.identity(device);
        let (device, lines) = (device.clone(), Vec::new());
        Ok(Self { config, model, optimizer, step: 0, identity, lines, corpus, device, variables })
    }

    /// Learned numbers.
    pub fn parameters(&self) -> usize {
        self.variables.count()
    }

    /// What the model reads its text with.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.corpus.tokenizer
    }

    /// The lines of its run, from the first; none of a model that is trained outside of a run.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Where it is trained.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// How rare each token is in the training text.
    pub(crate) fn rarity(&self) -> &[f32] {
        &self.corpus.rarity
    }

    /// Another model with the same weights and the same state, to be trained on without touching this one.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn copy(&self) -> Result<(Transformer, Variables)> {
        let variables = self.variables.copy()?;
        let builder = variables.builder(&self.device);
        let model = Transformer::new(&self.config.model, &self.config.variant, self.rarity(), builder)?;
        model.set_states(&self.model.states()?)?;
        Ok((model, variables))
    }

    /// Tokens of a step.
    pub fn tokens_per_step(&self) -> u64 {
        (self.config.schedule.batch * self.config.model.length) as u64
    }

    /// One step; what it saw is added to `since`.
    ///
    /// # Errors
    /// [`TrainError::Diverged`], or the device's.
    pub(crate) fn step(&mut self, since: &mut Since) -> Result<()> {
        let schedule = &self.config.schedule;
        let (batch, mask_rate) = (schedule.batch, schedule.mask_rate);
        let at = Step { step: self.step, batch, seed: self.config.seed, mask_rate };
        let batch = self.corpus.training(&self.config.model, at, &self.device)?;
        let pass = self.model.forward(&batch.tokens, true)?;
        let logits = self.asked(&pass, &batch)?;
        let loss = candle_nn::loss::cross_entropy(&logits, &batch.targets)?;
        let gradients = loss.backward()?;
        since.rate = schedule.rate_at(self.step);
        since.gradient_norm = self.optimizer.step(&gradients, since.rate)?;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        if !(loss.is_finite() && since.gradient_norm.is_finite()) {
            return Err(TrainError::Diverged { step: self.step, loss });
        }
        for record in &pass.records {
            since.tally.add(record, &batch.tokens.masked, |t| batch.tokens.is_present(t))?;
            since.tally.add_gradients(record)?;
        }
        since.loss += loss;
        since.steps += 1.0;
        self.step += 1;
        Ok(())
    }

    /// Loss and allocation on the first `batches` batches of held-out text; nothing moves.
    ///
    /// # Errors
    /// The device's.
    pub fn held_out(&self, batches: u64) -> Result<HeldOut> {
        let (mut loss, mut right, mut asked, mut tally) = (0.0, 0.0, 0.0, Tally::default());
        let Schedule { batch, mask_rate, .. } = self.config.schedule;
        for index in 0..batches {
            let next = self.corpus.held_out(&self.config.model, index, batch, mask_rate, &self.device)?;
            let Some(batch) = next else { break };
            let pass = self.model.forward(&batch.tokens, false)?;
            let logits = self.asked(&pass, &batch)?;
            let count = batch.targets.dim(0)? as f64;
            loss += count * f64::from(candle_nn::loss::cross_entropy(&logits, &batch.targets)?.to_scalar::<f32>()?);
            let hits = logits.argmax(D::Minus1)?.eq(&batch.targets)?.to_dtype(DType::F32)?.sum_all()?;
            right += f64::from(hits.to_scalar::<f32>()?);
            asked += count;
            for record in &pass.records {
                tally.add(record, &batch.tokens.masked, |t| batch.tokens.is_present(t))?;
            }
        }
        Ok(HeldOut { loss: loss / asked, accuracy: right / asked, allocated: tally.finish() })
    }

    /// Mean experts of each token of the vocabulary that held-out text shows often enough, masks left out: the tokens with
    /// the most, then those with the fewest.
    ///
    /// # Errors
    /// The device's.
    pub fn experts_by_token(&self, batches: u64) -> Result<Vec<TokenExperts>> {
        let mut sums: BTreeMap<u32, [f64; 2]> = BTreeMap::new();
        let Schedule { batch, mask_rate, .. } = self.config.schedule;
        for index in 0..batches {
            let next = self.corpus.held_out(&self.config.model, index, batch, mask_rate, &self.device)?;
            let Some(batch) = next else { break };
            for record in self.model.forward(&batch.tokens, false)?.records {
                for (&id, k) in batch.tokens.host_ids.iter().zip(record.experts_per_token()?) {
                    let sum = sums.entry(id).or_default();
                    *sum = [sum[0] + f64::from(k), sum[1] + 1.0];
                }
            }
        }
        let layers = self.config.model.layers as f64;
        let often = sums.into_iter().filter(|(id, sum)| *id >= Tokenizer::SPECIALS && sum[1] >= SEEN * layers);
        let mut tokens: Vec<TokenExperts> = often
            .map(|(id, [k, times])| TokenExperts {
                token: self.corpus.tokenizer.token(id),
                mean_k: k / times,
                count: (times / layers) as u64,
            })
            .collect();
        tokens.sort_by(|a, b| b.mean_k.total_cmp(&a.mean_k));
        let kept = tokens.len().saturating_sub(2 * SHOWN);
        tokens.drain(SHOWN.min(tokens.len())..(SHOWN + kept).min(tokens.len()));
        Ok(tokens)
    }

    /// Logits of the tokens that are to be predicted.
    fn asked(&self, pass: &Pass, batch: &Batch) -> Result<candle_core::Tensor> {
        let hidden = pass.hidden.flatten_to(D::Minus2)?;
        Ok(self.model.logits(&hidden.index_select(&batch.positions, 0)?)?)
    }
}
