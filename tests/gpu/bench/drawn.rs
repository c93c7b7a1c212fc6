//! The numbers that a benchmark's tensors are drawn from, each of which can be drawn again, and what a few outputs must be.

use super::Result;
use da_moe::{
    Activation, Buffer, Cpu, DType, ExpertsPerToken, Inputs, Keep, Layer, LayerConfig, Policy, Source, Step, TensorMut,
    TensorRef, Weights, bf16,
};
use std::thread;

/// Number `i` of a tensor: random with deviation about `scale`; never zeros, whose products are faster.
fn element(i: usize, scale: f32, seed: u64) -> bf16 {
    let mut z = (i as u64).wrapping_add(seed << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let unit = (z >> 40) as f32 / (1 << 24) as f32;
    bf16::from_f32((unit - 0.5) * 3.46 * scale)
}

/// So many of them.
pub(super) fn random(len: usize, scale: f32, seed: u64) -> Buffer {
    let mut all = vec![bf16::ZERO; len];
    let share = len.div_ceil(thread::available_parallelism().map_or(1, usize::from)).max(1);
    thread::scope(|scope| {
        for (n, part) in all.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                let first = n * share;
                part.iter_mut().enumerate().for_each(|(i, number)| *number = element(first + i, scale, seed));
            });
        }
    });
    all.into()
}

/// Deviation of weights that a sum over `n` is made with.
pub(super) fn fan(n: usize) -> f32 {
    1.0 / (n as f32).sqrt()
}

/// Seeds of what [`row`] draws once more.
pub(super) const X: u64 = 1;
pub(super) const W_IN: u64 = 5;
pub(super) const W_OUT: u64 = 6;

/// An expert's output for a token, in f32, from the numbers as they were drawn.
fn row(config: &LayerConfig, token: usize, expert: usize) -> Vec<f32> {
    let (d, f, rows_in) = (config.hidden_size, config.moe_intermediate_size, config.rows_in());
    let x: Vec<f32> = (0..d).map(|i| element(token * d + i, 1.0, X).to_f32()).collect();
    let product = |first: usize, of: &[f32], scale: f32, seed: u64| -> f32 {
        of.iter().enumerate().map(|(i, value)| element(first + i, scale, seed).to_f32() * value).sum()
    };
    let h: Vec<f32> = (0..rows_in).map(|r| product((expert * rows_in + r) * d, &x, fan(d), W_IN)).collect();
    let a: Vec<f32> = match config.hidden_act {
        Activation::Swiglu => (0..f).map(|i| h[i] / (1.0 + (-h[i]).exp()) * h[f + i]).collect(),
        _ => h.iter().map(|h| h.max(0.0)).collect(),
    };
    (0..d).map(|i| product((expert * d + i) * f, &a, fan(f), W_OUT)).collect()
}

/// Holds the first, a middle and the last token's output against plain loops over the experts that were chosen for it.
pub(super) fn expect_rows(config: &LayerConfig, step: &Step, y: &Buffer) -> Result<()> {
    let (d, slots, selection) = (config.hidden_size, config.k_max(), step.selection()?);
    let (experts, weights) = (selection.experts.data().to_host()?, selection.weights.data().to_host()?.to_f32());
    let (experts, y) = (experts.as_slice::<i32>().ok_or("experts are i32")?, y.to_f32());
    let tokens = y.len() / d;
    for token in [0, tokens / 2, tokens - 1] {
        let mut expected = vec![0.0; d];
        for slot in token * slots..(token + 1) * slots {
            let expert = usize::try_from(experts[slot]).ok().filter(|expert| *expert < config.num_experts);
            let row = expert.map(|expert| row(config, token, expert)).unwrap_or_default();
            expected.iter_mut().zip(row).for_each(|(sum, value)| *sum += weights[slot] * value);
        }
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
        let mut apart = y[token * d..][..d].iter().zip(&expected).map(|(y, e)| y - e);
        let error = norm(&mut apart) / norm(&mut expected.iter().copied());
        // SPEC §8 for bf16: `a` and `y` are rounded. What is not a number is not within it.
        if error.is_nan() || error > 8e-3 {
            return Err(format!("token {token} is off by {error:e}").into());
        }
    }
    Ok(())
}

/// The loops above are those of the layer, and see what is wrong.
#[test]
fn rows_are_those_of_the_layer() {
    let [tokens, d, f, e] = [9, 16, 24, 3];
    for hidden_act in [Activation::Swiglu, Activation::Relu] {
        let mut config = LayerConfig { hidden_act, ..LayerConfig::da_moe(d, f, e, 2) };
        config.importance.source = Source::External;
        config.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 2 });
        let (x, router) = (random(tokens * d, 1.0, X), random(e * d, fan(d), 4));
        let (w_in, w_out) = (random(e * config.rows_in() * d, fan(d), W_IN), random(e * d * f, fan(f), W_OUT));
        let weights = Weights::new(
            TensorRef::new(&router, [e, d]).unwrap(),
            TensorRef::new(&w_in, [e, config.rows_in(), d]).unwrap(),
            TensorRef::new(&w_out, [e, d, f]).unwrap(),
        );
        let importance = vec![0.5f32; tokens];
        let inputs = Inputs::new(TensorRef::new(&x, [tokens, d]).unwrap());
        let inputs = inputs.with_importance(TensorRef::new(&importance, [tokens]).unwrap());
        let layer = Layer::new(Cpu::new(), config.clone()).unwrap();
        let (mut state, mut step) = (layer.state().unwrap(), layer.step(tokens, DType::Bf16, Keep::Nothing).unwrap());
        let mut y = Buffer::zeros(DType::Bf16, tokens * d);
        let out = TensorMut::new(&mut y, [tokens, d]).unwrap();
        layer.forward(&(), &inputs, &weights, &mut state, &mut step, out).unwrap();
        expect_rows(&config, &step, &y).unwrap();
        y.as_mut_slice::<bf16>().unwrap()[tokens * d - 1] += bf16::ONE;
        assert!(expect_rows(&config, &step, &y).is_err(), "the last token's");
    }
}
