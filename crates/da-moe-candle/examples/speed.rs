//! Tokens per second of forward and backward of one layer: this library's, and the same layer written with candle's own
//! operations. `cargo run --release --example speed -- --help`
//!
//! Both take the same weights, activations and numbers of experts, and are checked to give the same `y` and `dx` before they
//! are timed. They take turns in every round; the median round counts.

use candle_core::{D, DType, Device, Result, Tensor, Var, bail};
use candle_nn::ops::{silu, softmax};
use candle_nn::{VarBuilder, VarMap};
use da_moe::{
    ExpertsPerToken, ImportanceConfig, LayerConfig, Losses, Normalize, NormalizeWeights, Policy, RouterConfig, Source,
};
use da_moe_candle::{DaMoe, Inputs, Output, Record};
use std::time::Instant;

const HELP: &str = "tokens per second of forward and backward, this library's layer beside candle's own operations

  --tokens N      1024      --hidden N   256      --width N   512      --experts N   8
  --mean-k X      2         --k-max N    8, or as many as there are experts
  --rounds N      9         --json       one JSON object instead of a table";

struct Options {
    tokens: usize,
    hidden: usize,
    width: usize,
    experts: usize,
    mean_k: f64,
    k_max: usize,
    rounds: usize,
    json: bool,
}

impl Options {
    /// Nothing when only help was asked for.
    fn parse() -> Result<Option<Self>> {
        let (tokens, hidden, width, experts) = (1024, 256, 512, 8);
        let mut options = Self { tokens, hidden, width, experts, mean_k: 2.0, k_max: 8, rounds: 9, json: false };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut number = || match words.next().and_then(|value| value.parse::<f64>().ok()) {
                Some(number) if number >= 1.0 => Ok(number),
                _ => bail!("{word} takes a number from 1 on"),
            };
            match word.as_str() {
                "--tokens" => options.tokens = number()? as usize,
                "--hidden" => options.hidden = number()? as usize,
                "--width" => options.width = number()? as usize,
                "--experts" => options.experts = number()? as usize,
                "--mean-k" => options.mean_k = number()?,
                "--k-max" => options.k_max = number()? as usize,
                "--rounds" => options.rounds = number()? as usize,
                "--json" => options.json = true,
                "--help" | "-h" => return Ok(None),
                other => bail!("`{other}` is no option; --help lists them"),
            }
        }
        options.k_max = options.k_max.min(options.experts);
        Ok(Some(options))
    }

    fn config(&self) -> LayerConfig {
        LayerConfig {
            importance: ImportanceConfig {
                source: Source::External,
                normalize: Normalize::None,
                ..ImportanceConfig::default()
            },
            experts_per_token: ExpertsPerToken::between(Policy::Budget { mean_k: self.mean_k }, 1, self.k_max),
            router: RouterConfig { normalize: NormalizeWeights::Selected, ..RouterConfig::default() },
            losses: Losses::default(),
            ..LayerConfig::da_moe(self.hidden, self.width, self.experts, self.k_max)
        }
    }
}

/// The layer with candle's own operations, as an engine would write it: the matrices of an expert (gate, up and down) are
/// variables of their own, so that none pays for the others' gradients; only the choice of experts is made on the host.
struct Plain {
    router: Var,
    experts: Vec<[Var; 3]>,
    k: Vec<i32>,
}

impl Plain {
    fn new(weights: &VarMap, k: Vec<i32>) -> Result<Self> {
        let Ok(all) = weights.data().lock() else { bail!("the weights' lock is poisoned") };
        let variable = |tensor: Tensor| Var::from_tensor(&tensor.contiguous()?.copy()?);
        let (w_in, w_out) = (&all["experts.w_in"], &all["experts.w_out"]);
        let width = w_out.dim(2)?;
        let matrices = |e| {
            let [gate, up] = [0, width].map(|first| variable(w_in.get(e)?.narrow(0, first, width)?));
            Ok([gate?, up?, variable(w_out.get(e)?)?])
        };
        let experts = (0..w_in.dim(0)?).map(matrices).collect::<Result<_>>()?;
        Ok(Self { router: variable(all["router.weight"].as_tensor().clone())?, experts, k })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, experts) = (x.dim(0)?, self.experts.len());
        let scores = softmax(&x.matmul(&self.router.t()?)?, D::Minus1)?;
        let rows = self.rows(&scores.detach().to_vec2()?);
        let mut mask = vec![0f32; tokens * experts];
        let (mut outputs, mut row_tokens, mut row_gates) = (Vec::new(), Vec::new(), Vec::new());
        for (e, ([gate, up, down], rows)) in self.experts.iter().zip(rows).enumerate() {
            if rows.is_empty() {
                continue;
            }
            let x = x.index_select(&Tensor::new(&*rows, x.device())?, 0)?;
            let activated = silu(&x.matmul(&gate.t()?)?)?.mul(&x.matmul(&up.t()?)?)?;
            outputs.push(activated.matmul(&down.t()?)?);
            let places = rows.iter().map(|row| row * experts as u32 + e as u32);
            places.clone().for_each(|place| mask[place as usize] = 1.0);
            row_gates.extend(places);
            row_tokens.extend(rows);
        }
        let selected = scores.mul(&Tensor::from_vec(mask, (tokens, experts), x.device())?)?;
        let gates = selected.broadcast_div(&selected.sum_keepdim(D::Minus1)?)?.flatten_all()?;
        let gates = gates.index_select(&Tensor::new(row_gates, x.device())?, 0)?.unsqueeze(1)?;
        let outputs = Tensor::cat(&outputs, 0)?.broadcast_mul(&gates)?;
        x.zeros_like()?.index_add(&Tensor::new(row_tokens, x.device())?, &outputs, 0)
    }

    /// Tokens of each expert: the `k_t` best of token `t`.
    fn rows(&self, scores: &[Vec<f32>]) -> Vec<Vec<u32>> {
        let mut rows = vec![Vec::new(); self.experts.len()];
        for (t, (scores, &k)) in scores.iter().zip(&self.k).enumerate() {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            order[..k as usize].iter().for_each(|&e| rows[e].push(t as u32));
        }
        rows
    }
}

/// `y` and `dx` after a backward that leaves every gradient where an optimiser reads it.
fn backward(x: &Var, dy: &Tensor, y: &Tensor, record: Option<&Record>) -> Result<[Tensor; 2]> {
    let mut gradients = y.mul(dy)?.sum_all()?.backward()?;
    if let Some(record) = record {
        record.collect_gradients(&mut gradients)?;
    }
    match gradients.get(x) {
        Some(dx) => Ok([y.detach(), dx.clone()]),
        None => bail!("x has no gradient"),
    }
}

fn expect_same(ours: &[Tensor; 2], plain: &[Tensor; 2]) -> Result<()> {
    for (name, (a, b)) in ["y", "dx"].into_iter().zip(ours.iter().zip(plain)) {
        let norm = |tensor: &Tensor| tensor.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
        let distance = norm(&(a - b)?)? / norm(b)?;
        if distance.is_nan() || distance > 1e-5 {
            bail!("the two layers differ: {name} by {distance:e}");
        }
    }
    Ok(())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn seconds(work: impl FnOnce() -> Result<[Tensor; 2]>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn main() -> Result<()> {
    let Some(options) = Options::parse()? else {
        println!("{HELP}");
        return Ok(());
    };
    let (device, shape) = (Device::Cpu, (options.tokens, options.hidden));
    let weights = VarMap::new();
    let layer = DaMoe::new(options.config(), VarBuilder::from_varmap(&weights, DType::F32, &device))?;
    let layer = layer.with_collected_gradients();
    let x = Var::from_tensor(&Tensor::randn(0f32, 1f32, shape, &device)?)?;
    let dy = Tensor::randn(0f32, 1f32, shape, &device)?;
    let importance = Tensor::rand(0f32, 1f32, options.tokens, &device)?;
    let inputs = Inputs::new(&x).with_importance(&importance);

    let record = layer.forward(&inputs, true)?.record;
    let rows = record.report()?.rows;
    let plain = Plain::new(&weights, record.experts_per_token()?)?;
    drop(record);
    let ours = || {
        let Output { y, record } = layer.forward(&inputs, true)?;
        backward(&x, &dy, &y, Some(&record))
    };
    let candles = || backward(&x, &dy, &plain.forward(&x)?, None);
    expect_same(&ours()?, &candles()?)?;

    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..options.rounds.max(5) {
        times[0].push(seconds(ours)?);
        times[1].push(seconds(candles)?);
    }
    report(&options, rows, times.map(median));
    Ok(())
}

fn report(options: &Options, rows: usize, seconds: [f64; 2]) {
    let Options { tokens, hidden, width, experts, mean_k, .. } = *options;
    // Backward takes two products for each of forward's.
    let operations = 3.0 * rows as f64 * options.config().hidden_act.row_operations(hidden, width);
    let [ours, candles] = seconds.map(|seconds| (tokens as f64 / seconds, operations / seconds / 1e9));
    if options.json {
        println!(
            "{{\"tokens\": {tokens}, \"hidden\": {hidden}, \"width\": {width}, \"experts\": {experts}, \"mean_k\": {mean_k}, \
             \"rows\": {rows}, \"tokens_per_second\": {{\"da_moe\": {:.0}, \"candle\": {:.0}}}, \
             \"gflops\": {{\"da_moe\": {:.2}, \"candle\": {:.2}}}}}",
            ours.0, candles.0, ours.1, candles.1
        );
        return;
    }
    println!("T {tokens}, D {hidden}, F {width}, E {experts}, {rows} rows, f32, forward and backward");
    println!("{:24}{:>12}{:>12}", "", "tokens/s", "GFLOP/s");
    for (name, (tokens, gflops)) in [("da-moe", ours), ("candle's operations", candles)] {
        println!("{name:24}{tokens:>12.0}{gflops:>12.1}");
    }
    println!("{:24}{:>11.2}x", "da-moe is faster by", ours.0 / candles.0);
}
