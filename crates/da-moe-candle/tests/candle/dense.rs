//! The layer written with candle's own operations, every expert on every token, for the routing that a record tells.

use crate::common::weight;
use candle_core::{D, Device, Result, Tensor};
use candle_nn::VarMap;
use candle_nn::ops::{sigmoid, silu, softmax};
use da_moe::{Activation, LayerConfig, NormalizeWeights, NullExpert, Scoring};
use da_moe_candle::Record;

pub struct Dense<'a> {
    pub config: &'a LayerConfig,
    pub weights: &'a VarMap,
    /// 1 for a token and 0 for padding, `[T]`.
    pub mask: Option<&'a Tensor>,
}

impl Dense<'_> {
    /// `y[T, D]` of `x[T, D]`.
    pub fn forward(&self, x: &Tensor, record: &Record) -> Result<Tensor> {
        let experts = self.config.num_experts;
        let gates = self.gates(x, record)?;
        let mut y = x.zeros_like()?;
        for e in 0..experts {
            let o = self.expert(x, "experts", e)?;
            y = (y + o.broadcast_mul(&gates.narrow(1, e, 1)?)?)?;
        }
        for null in 0..self.config.num_null_experts {
            let gate = gates.narrow(1, experts + null, 1)?;
            y = match self.config.null_expert {
                NullExpert::Zero => y,
                NullExpert::Copy => (y + x.broadcast_mul(&gate)?)?,
                NullExpert::Constant => (y + gate.matmul(&self.weight("null.constants")?.narrow(0, null, 1)?)?)?,
            };
        }
        match self.config.shared_intermediate_size {
            0 => Ok(y),
            _ => y + self.expert(x, "shared", 0)?,
        }
    }

    /// `balance · E · Σ f_e p_e + z · mean (logsumexp z_t)²` (SPEC §3).
    pub fn losses(&self, x: &Tensor, record: &Record) -> Result<Tensor> {
        let logits = self.logits(x)?;
        let mean = |rows: Tensor| match self.mask {
            Some(mask) => rows.broadcast_mul(&mask.unsqueeze(1)?)?.sum(0)?.broadcast_div(&mask.sum_all()?),
            None => rows.mean(0),
        };
        let scores = self.scores(&logits)?;
        let shares = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        let report = record.report()?;
        let selections: i32 = report.load.iter().sum();
        let fractions: Vec<f32> = report.load.iter().map(|&count| count as f32 / selections as f32).collect();
        let fractions = Tensor::from_vec(fractions, report.load.len(), &Device::Cpu)?;
        let balance = (mean(shares)?.mul(&fractions)?.sum_all()? * self.config.num_experts as f64)?;
        let z = mean(logits.log_sum_exp(D::Minus1)?.sqr()?.unsqueeze(1)?)?.sum_all()?;
        (balance * self.config.losses.balance)? + (z * self.config.losses.z)?
    }

    fn weight(&self, name: &str) -> Result<Tensor> {
        weight(self.weights, name).to_dtype(candle_core::DType::F32)
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight("router.weight")?.t()?)
    }

    fn scores(&self, logits: &Tensor) -> Result<Tensor> {
        match self.config.router.scoring {
            Scoring::Softmax => softmax(logits, D::Minus1),
            Scoring::Sigmoid => sigmoid(logits),
            Scoring::Relu => logits.relu(),
        }
    }

    /// `g[T, E + Z]`, 0 where not selected.
    fn gates(&self, x: &Tensor, record: &Record) -> Result<Tensor> {
        let (candidates, k_max) = (self.config.candidates(), self.config.k_max());
        let scores = self.scores(&self.logits(x)?)?;
        let chosen = rows(&record.experts()?, k_max, candidates)?;
        let selected = scores.mul(&chosen)?;
        let divided = match self.config.router.normalize {
            NormalizeWeights::None => selected,
            NormalizeWeights::Selected => over(selected, &scores.mul(&chosen)?)?,
            NormalizeWeights::Candidates => over(selected, &scores.mul(&largest(record, candidates, k_max)?)?)?,
        };
        divided * self.config.router.routed_scaling
    }

    fn expert(&self, x: &Tensor, kind: &str, e: usize) -> Result<Tensor> {
        let [w_in, w_out] =
            ["w_in", "w_out"].map(|matrix| self.weight(&format!("{kind}.{matrix}")).and_then(|all| all.get(e)));
        let h = x.matmul(&w_in?.t()?)?;
        let halves = |act: fn(&Tensor) -> Result<Tensor>| {
            let halves = h.chunk(2, D::Minus1)?;
            act(&halves[0])?.mul(&halves[1])
        };
        let a = match self.config.hidden_act {
            Activation::Relu => h.relu(),
            Activation::Gelu => h.gelu_erf(),
            Activation::GeluTanh => h.gelu(),
            Activation::Silu => silu(&h),
            Activation::Swiglu => halves(silu),
            Activation::Geglu => halves(Tensor::gelu_erf),
            Activation::Reglu => halves(Tensor::relu),
        };
        a?.matmul(&w_out?.t()?)
    }
}

/// A row whose divisor is 0 has weights 0: there nothing is selected, and any divisor will do.
fn over(selected: Tensor, parts: &Tensor) -> Result<Tensor> {
    let sum = parts.sum_keepdim(D::Minus1)?;
    let none = sum.eq(0.0)?.to_dtype(candle_core::DType::F32)?;
    selected.broadcast_div(&(sum + none)?)
}

/// 1 where an id is listed, `[T, E + Z]`.
fn rows(ids: &[i32], slots: usize, candidates: usize) -> Result<Tensor> {
    let tokens = ids.len() / slots;
    let mut marks = vec![0f32; tokens * candidates];
    for (slot, &id) in ids.iter().enumerate().filter(|(_, id)| **id >= 0) {
        marks[slot / slots * candidates + id as usize] = 1.0;
    }
    Tensor::from_vec(marks, (tokens, candidates), &Device::Cpu)
}

/// 1 at the `k_max` largest logits of each token: scores grow with logits.
fn largest(record: &Record, candidates: usize, k_max: usize) -> Result<Tensor> {
    let logits = record.logits()?;
    let best = |row: &[f32]| {
        let mut order: Vec<i32> = (0..candidates as i32).collect();
        order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
        order.truncate(k_max);
        order
    };
    rows(&logits.chunks(candidates).flat_map(best).collect::<Vec<_>>(), k_max, candidates)
}
