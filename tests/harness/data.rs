//! The tensors of a case: owned here, lent to a subject.

use super::case::{Attend, Case};
use super::routing::RoutingData;
use da_moe::{
    Activation, Attention, Buffer, DType, Error, ExpertGradients, ExpertWeights, Inputs, LayerConfig, NullExpert,
    TensorMut, TensorRef, Weights,
};

/// Deterministic numbers: the same seed gives the same tensors on every machine.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9E37_79B9_7F4A_7C15)
    }

    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Any integer.
    pub fn any(&mut self) -> i32 {
        self.next() as i32
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Roughly normal with deviation `scale`.
    pub fn normal(&mut self, scale: f32) -> f32 {
        ((0..6).map(|_| self.unit()).sum::<f32>() - 3.0) * std::f32::consts::SQRT_2 * scale
    }

    pub fn tensor(&mut self, dtype: DType, len: usize, scale: f32) -> Buffer {
        let values: Vec<f32> = (0..len).map(|_| self.normal(scale)).collect();
        Buffer::from_f32(dtype, &values)
    }
}

/// The two matrices and biases of some experts.
#[derive(Clone)]
pub struct ExpertData {
    count: usize,
    rows_in: usize,
    width: usize,
    hidden: usize,
    pub w_in: Buffer,
    pub w_out: Buffer,
    pub b_in: Option<Buffer>,
    pub b_out: Option<Buffer>,
}

impl ExpertData {
    fn new(numbers: &mut Numbers, case: &Case, count: usize, act: Activation, width: usize, biases: bool) -> Self {
        let (hidden, rows_in) = (case.config.hidden_size, act.rows_in(width));
        let fan = |n: usize| 1.5 / (n as f32).sqrt();
        Self {
            count,
            rows_in,
            width,
            hidden,
            w_in: numbers.tensor(case.dtype, count * rows_in * hidden, fan(hidden)),
            w_out: numbers.tensor(case.dtype, count * hidden * width, fan(width)),
            b_in: biases.then(|| numbers.tensor(case.dtype, count * rows_in, 0.5)),
            b_out: biases.then(|| numbers.tensor(case.dtype, count * hidden, 0.5)),
        }
    }

    fn view(&self) -> Result<ExpertWeights<'_>, Error> {
        Ok(ExpertWeights {
            w_in: TensorRef::new(&self.w_in, [self.count, self.rows_in, self.hidden])?,
            w_out: TensorRef::new(&self.w_out, [self.count, self.hidden, self.width])?,
            b_in: self.b_in.as_ref().map(|b| TensorRef::new(b, [self.count, self.rows_in])).transpose()?,
            b_out: self.b_out.as_ref().map(|b| TensorRef::new(b, [self.count, self.hidden])).transpose()?,
        })
    }

    /// Gradient buffers full of NaN.
    pub fn poisoned(&self, dtype: DType) -> ExpertData {
        let like = |buffer: &Buffer| poison(dtype, buffer.len());
        ExpertData {
            w_in: like(&self.w_in),
            w_out: like(&self.w_out),
            b_in: self.b_in.as_ref().map(like),
            b_out: self.b_out.as_ref().map(like),
            ..*self
        }
    }

    /// The buffers that there are, by these names of `w_in`, `w_out`, `b_in` and `b_out`.
    pub fn named(&mut self, names: [&'static str; 4]) -> Vec<(&'static str, &mut Buffer)> {
        let all = [Some(&mut self.w_in), Some(&mut self.w_out), self.b_in.as_mut(), self.b_out.as_mut()];
        names.into_iter().zip(all).filter_map(|(name, buffer)| Some((name, buffer?))).collect()
    }

    pub fn view_mut(&mut self) -> Result<ExpertGradients<'_>, Error> {
        let (count, rows_in, hidden) = (self.count, self.rows_in, self.hidden);
        Ok(ExpertGradients {
            w_in: TensorMut::new(&mut self.w_in, [count, rows_in, hidden])?,
            w_out: TensorMut::new(&mut self.w_out, [count, hidden, self.width])?,
            b_in: self.b_in.as_mut().map(|b| TensorMut::new(b, [count, rows_in])).transpose()?,
            b_out: self.b_out.as_mut().map(|b| TensorMut::new(b, [count, hidden])).transpose()?,
        })
    }
}

/// Biases that allow, forbid and force, in half of the cases with others among them.
fn far_biases(n: &mut Numbers, candidates: usize) -> Buffer {
    let other = if n.below(2) == 0 { 0.0 } else { 0.3 };
    let of_candidate = |_| [0.0, 0.0, 0.0, other, f32::NEG_INFINITY, f32::INFINITY][n.below(6)];
    (0..candidates).map(of_candidate).collect::<Vec<f32>>().into()
}

/// NaN for floats: whatever is not overwritten shows.
pub fn poison(dtype: DType, len: usize) -> Buffer {
    Buffer::from_f32(dtype, &vec![f32::NAN; len])
}

/// Every tensor of a case.
#[derive(Clone)]
pub struct Data {
    pub tokens: usize,
    pub config: LayerConfig,
    pub dtype: DType,
    pub padding: usize,
    pub x: Buffer,
    pub dy: Buffer,
    /// None: one sequence.
    pub cu_seqlens: Option<Buffer>,
    pub mask: Option<Buffer>,
    pub heads: [usize; 3],
    pub attend: Attend,
    pub q: Buffer,
    pub k: Buffer,
    pub lse: Buffer,
    pub side: usize,
    pub probabilities: Buffer,
    pub importance: Buffer,
    pub token_ids: Buffer,
    pub token_frequency: Buffer,
    pub k_given: Buffer,
    pub routing: Option<RoutingData>,
    pub router: Buffer,
    pub router_bias: Option<Buffer>,
    pub experts: ExpertData,
    pub shared: Option<ExpertData>,
    pub constants: Option<Buffer>,
    pub training: bool,
}

impl Data {
    pub fn new(case: &Case) -> Self {
        let (config, dtype, tokens) = (&case.config, case.dtype, case.tokens());
        let mut n = Numbers::new(case.seed);
        let (d, candidates) = (config.hidden_size, config.candidates());
        let mut bounds = vec![0i32];
        for length in &case.lengths {
            bounds.push(bounds[bounds.len() - 1] + *length as i32);
        }
        let [heads, key_heads, width] = case.heads;
        let q = n.tensor(dtype, tokens * heads * width, 1.5);
        let k = n.tensor(dtype, tokens * key_heads * width, 1.0);
        let mask: Option<Vec<u8>> = (case.masked_every > 0)
            .then(|| (0..tokens).map(|_| u8::from(n.below(case.masked_every + 1) != 0)).collect());
        let side = case.lengths.iter().copied().max().unwrap_or(0) + 1;
        let (lse, probabilities) = attention(case, &q.to_f32(), &k.to_f32(), &bounds, mask.as_deref(), side);
        let vocabulary = 7;
        let router_dtype = if case.router_f32 { DType::F32 } else { dtype };
        let spread = if case.far { 80.0 } else { 2.0 };
        let mut router = n.tensor(router_dtype, candidates * d, spread / (d as f32).sqrt()).to_f32();
        // x has a constant first column, so that this shifts expert 0's logit for every token.
        router[0] += case.skew;
        let stride = d + case.padding;
        let mut x: Vec<f32> = (0..tokens * stride).map(|_| n.normal(1.0)).collect();
        x.chunks_mut(stride.max(1)).for_each(|row| row[0] = 1.0);
        Self {
            tokens,
            config: config.clone(),
            dtype,
            padding: case.padding,
            x: Buffer::from_f32(dtype, &x),
            dy: n.tensor(dtype, tokens * stride, 1.0),
            cu_seqlens: Some(bounds.into()),
            mask: mask.map(Buffer::from),
            heads: case.heads,
            attend: case.attend,
            q,
            k,
            lse: lse.into(),
            side,
            probabilities: Buffer::from_f32(dtype, &probabilities),
            importance: (0..tokens).map(|_| n.unit()).collect::<Vec<f32>>().into(),
            token_ids: (0..tokens).map(|_| n.below(vocabulary) as i32).collect::<Vec<i32>>().into(),
            token_frequency: (0..vocabulary).map(|_| n.unit()).collect::<Vec<f32>>().into(),
            k_given: (0..tokens).map(|_| n.below(candidates + 2) as i32 - 1).collect::<Vec<i32>>().into(),
            routing: RoutingData::new(case, &mut n),
            router: Buffer::from_f32(router_dtype, &router),
            router_bias: case.router_bias.then(|| match case.far {
                true => far_biases(&mut n, candidates),
                false => n.tensor(DType::F32, candidates, 0.2),
            }),
            experts: ExpertData::new(
                &mut n,
                case,
                config.num_experts,
                config.hidden_act,
                config.moe_intermediate_size,
                case.biases,
            ),
            shared: (config.shared_intermediate_size > 0)
                .then(|| ExpertData::new(&mut n, case, 1, config.hidden_act, config.shared_intermediate_size, false)),
            constants: (config.null_expert == NullExpert::Constant && config.num_null_experts > 0)
                .then(|| n.tensor(dtype, config.num_null_experts * d, 1.0)),
            training: case.training,
        }
    }

    fn rows<'a>(&self, buffer: &'a Buffer) -> Result<TensorRef<'a, 2>, Error> {
        let d = self.config.hidden_size;
        TensorRef::strided(buffer, [self.tokens, d], [d + self.padding, 1])
    }

    pub fn dy(&self) -> Result<TensorRef<'_, 2>, Error> {
        self.rows(&self.dy)
    }

    /// `dy` widened and dense, as the oracle takes it.
    pub fn dy_values(&self) -> Vec<f64> {
        let (d, stride) = (self.config.hidden_size, self.config.hidden_size + self.padding);
        self.dy.to_f32().chunks(stride).flat_map(|row| row[..d].iter().map(|v| f64::from(*v))).collect()
    }

    pub fn inputs(&self) -> Result<Inputs<'_>, Error> {
        let t = self.tokens;
        let [heads, key_heads, width] = self.heads;
        let sequences = self.cu_seqlens.as_ref().map_or(1, |starts| starts.len() - 1);
        let attention = match self.attend {
            Attend::Probabilities => {
                Attention::Probabilities(TensorRef::new(&self.probabilities, [sequences, heads, self.side, self.side])?)
            }
            kind => Attention::QueryKey {
                q: TensorRef::new(&self.q, [t, heads, width])?,
                k: TensorRef::new(&self.k, [t, key_heads, width])?,
                lse: if kind == Attend::WithLse { Some(TensorRef::new(&self.lse, [heads, t])?) } else { None },
            },
        };
        Ok(Inputs {
            cu_seqlens: self.cu_seqlens.as_ref().map(|c| TensorRef::new(c, [c.len()])).transpose()?,
            mask: self.mask.as_ref().map(|mask| TensorRef::new(mask, [t])).transpose()?,
            attention: Some(attention),
            importance: Some(TensorRef::new(&self.importance, [t])?),
            token_ids: Some(TensorRef::new(&self.token_ids, [t])?),
            token_frequency: Some(TensorRef::new(&self.token_frequency, [self.token_frequency.len()])?),
            k_given: Some(TensorRef::new(&self.k_given, [t])?),
            routing: self.routing.as_ref().map(|routing| routing.view(t)).transpose()?,
            training: self.training,
            ..Inputs::new(self.rows(&self.x)?)
        })
    }

    pub fn weights(&self) -> Result<Weights<'_>, Error> {
        let (candidates, d) = (self.config.candidates(), self.config.hidden_size);
        Ok(Weights {
            router: TensorRef::new(&self.router, [candidates, d])?,
            router_bias: self.router_bias.as_ref().map(|b| TensorRef::new(b, [candidates])).transpose()?,
            experts: self.experts.view()?,
            shared: self.shared.as_ref().map(ExpertData::view).transpose()?,
            constants: self
                .constants
                .as_ref()
                .map(|c| TensorRef::new(c, [self.config.num_null_experts, d]))
                .transpose()?,
        })
    }
}

/// Log-sum-exp and probabilities of the case's attention, by plain loops.
fn attention(
    case: &Case,
    q: &[f32],
    k: &[f32],
    bounds: &[i32],
    mask: Option<&[u8]>,
    side: usize,
) -> (Vec<f32>, Vec<f32>) {
    let [heads, key_heads, width] = case.heads;
    let tokens = case.tokens();
    let scale = case.scale().unwrap_or(1.0 / (width as f64).sqrt());
    let mut lse = vec![0.0f32; heads * tokens];
    // What nobody sees may be anything.
    let mut probabilities = vec![0.75f32; (bounds.len() - 1) * heads * side * side];
    for (b, pair) in bounds.windows(2).enumerate() {
        let (first, n) = (pair[0] as usize, (pair[1] - pair[0]) as usize);
        for h in 0..heads {
            for i in 0..n {
                let seen = |j: usize| {
                    (!case.config.importance.causal || j <= i) && mask.is_none_or(|mask| mask[first + j] != 0)
                };
                let score = |j: usize| -> f64 {
                    let q = &q[((first + i) * heads + h) * width..][..width];
                    let k = &k[((first + j) * key_heads + h / (heads / key_heads)) * width..][..width];
                    scale * q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
                };
                let total: f64 = (0..n).filter(|j| seen(*j)).map(|j| score(j).exp()).sum();
                lse[h * tokens + first + i] = total.ln() as f32;
                for j in (0..n).filter(|j| seen(*j)) {
                    probabilities[((b * heads + h) * side + i) * side + j] = (score(j).exp() / total) as f32;
                }
            }
        }
    }
    (lse, probabilities)
}
