//! A layer, a forward and a backward.

use da_moe::{Attention, Cpu, DType, Inputs, Keep, Layer, LayerConfig, Parameters, TensorMut, TensorRef};

fn main() -> da_moe::Result<()> {
    let (tokens, width) = (6, 64);
    let x: Vec<f32> = (0..tokens * width).map(|i| (i as f32 * 0.7).sin()).collect();
    let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);

    let layer = Layer::new(Cpu::new(), LayerConfig::da_moe(width, 128, 8, 4))?; // D, F, E, k_max
    let weights = Parameters::random(layer.config(), DType::F32, 1);
    let mut gradients = Parameters::zeros(layer.config(), DType::F32);
    let (mut state, mut step) = (layer.state()?, layer.step(tokens, DType::F32, Keep::Hidden)?);
    let heads = TensorRef::new(&x, [tokens, 4, 16])?; // stands for an attention layer's queries and keys
    let inputs = Inputs::new(TensorRef::new(&x, [tokens, width])?).with_attention(Attention::query_key(heads, heads));
    let out = TensorMut::new(&mut y, [tokens, width])?;
    layer.forward(&(), &inputs, &weights.weights()?, &mut state, &mut step, out)?;
    println!("{:.2} experts per token, {} rows", step.report()?.mean_k, step.report()?.rows);

    let dy = TensorRef::new(&x, [tokens, width])?;
    let to = &mut gradients.gradients(TensorMut::new(&mut dx, [tokens, width])?)?;
    layer.backward(&(), &inputs, &weights.weights()?, dy, &mut step, to)
}
