//! Fine-tuning a trained model to name the class of a text.

use crate::data::{Example, Labelled, Tokenizer};
use crate::error::{Result, TrainError};
use crate::fine_tuning::FineTuning;
use crate::model::Transformer;
use crate::optimizer::AdamW;
use crate::random;
use crate::tokens::Tokens;
use crate::trainer::Trainer;
use candle_core::{D, DType, Device, Tensor};

/// A model with a linear map from the mean of a text's hidden states to its classes.
struct Classifier<'t> {
    model: Transformer,
    weight: Tensor,
    tokenizer: &'t Tokenizer,
    /// `S`.
    length: usize,
    seed: u64,
    device: Device,
}

/// Trains a copy of the model on the set's training texts and returns the share of its test texts that are named right; of
/// its validation texts where labels of the test are not published.
///
/// # Errors
/// A set without texts, or the device's refusal.
pub(crate) fn fine_tune(trained: &Trainer, set: &Labelled, tuning: &FineTuning) -> Result<f64> {
    let test = if set.test.is_empty() { &set.validation } else { &set.test };
    if set.train.is_empty() || test.is_empty() {
        return Err(TrainError::config(
            "fine_tuning.sets",
            format!("`{}` has no texts to train on or to test on", set.name),
        ));
    }
    let (model, variables) = trained.copy()?;
    let seed = trained.config.seed;
    let width = trained.config.model.width;
    let init = candle_nn::Init::Randn { mean: 0.0, stdev: 1.0 / (width as f64).sqrt() };
    let device = trained.device();
    let builder = variables.builder(device);
    let weight = builder.get_with_hints((set.labels.len(), width), &format!("classes.{}", set.name), init)?;
    let schedule = tuning.schedule(&trained.config.schedule);
    let mut optimizer = AdamW::new(variables.all(), &schedule)?;
    let length = trained.config.model.length;
    let classifier = Classifier { model, weight, tokenizer: trained.tokenizer(), length, seed, device: device.clone() };
    let order = Order { count: set.train.len() as u64, seed: random::bits(&[seed, random::name(&set.name)]) };
    for step in 0..tuning.steps {
        let examples: Vec<&Example> = order.batch(step, tuning.batch as u64).map(|index| &set.train[index]).collect();
        let loss =
            candle_nn::loss::cross_entropy(&classifier.logits(&examples, step, true)?, &labels(&examples, device)?)?;
        optimizer.step(&loss.backward()?, schedule.rate_at(step))?;
    }
    let mut right = 0.0;
    for (index, examples) in test.chunks(tuning.batch).enumerate() {
        let examples: Vec<&Example> = examples.iter().collect();
        let logits = classifier.logits(&examples, u64::MAX - index as u64, false)?;
        let hits = logits.argmax(D::Minus1)?.eq(&labels(&examples, device)?)?.to_dtype(DType::F32)?.sum_all()?;
        right += f64::from(hits.to_scalar::<f32>()?);
    }
    Ok(right / test.len() as f64)
}

impl Classifier<'_> {
    /// `[B, classes]`. Random decisions are a function of `key`.
    fn logits(&self, examples: &[&Example], key: u64, training: bool) -> Result<Tensor> {
        let mut ids = Vec::with_capacity(examples.len() * self.length);
        for example in examples {
            let mut text = vec![Tokenizer::START];
            text.extend(self.tokenizer.encode(&example.text));
            if let Some(pair) = &example.pair {
                // Half of the room for each: a long first text must not push out the second.
                text.truncate(text.len().min(self.length / 2));
                text.push(Tokenizer::BREAK);
                text.extend(self.tokenizer.encode(pair));
            }
            text.resize(self.length, Tokenizer::PAD);
            ids.extend(text);
        }
        let present: Vec<bool> = ids.iter().map(|&id| id != Tokenizer::PAD).collect();
        let counted: Vec<f32> = present.iter().map(|&there| f32::from(u8::from(there))).collect();
        let key = random::bits(&[self.seed, key]);
        let tokens = Tokens::new(&ids, self.length, key, &self.device)?.with_present(present)?;
        let hidden = self.model.forward(&tokens, training)?.hidden;
        let there = Tensor::from_vec(counted, (examples.len(), self.length, 1), &self.device)?;
        let mean = hidden.broadcast_mul(&there)?.sum(1)?.broadcast_div(&there.sum(1)?)?;
        Ok(mean.matmul(&self.weight.t()?)?)
    }
}

fn labels(examples: &[&Example], device: &Device) -> Result<Tensor> {
    let labels: Vec<u32> = examples.iter().map(|example| example.label as u32).collect();
    let count = labels.len();
    Ok(Tensor::from_vec(labels, count, device)?)
}

/// Which examples a step sees: drawn with replacement, so that any number of steps fits any set.
struct Order {
    count: u64,
    seed: u64,
}

impl Order {
    fn batch(&self, step: u64, size: u64) -> impl Iterator<Item = usize> {
        (0..size).map(move |index| (random::bits(&[self.seed, step, index]) % self.count) as usize)
    }
}
