//! [`Problem::new`]: the views of a call, read through their strides and widened exactly to f64 and i64.

use crate::problem::{OP, refuse};
use crate::{Attention, Experts, Problem};
use da_moe_core::{Buffer, Error, ExpertWeights, Inputs, LayerConfig, Result, Routing, TensorRef, Weights, expert_id};

impl Problem {
    /// The problem that a layer of this configuration solves when it is called with these views and this state.
    ///
    /// # Errors
    /// As [`Problem::check`], or contents that no index can be.
    pub fn new(config: LayerConfig, inputs: &Inputs<'_>, weights: &Weights<'_>, state: &[f32; 4]) -> Result<Self> {
        config.validate()?;
        let [tokens, _] = inputs.x.shape();
        // First of all, because it bounds `tokens` by memory that exists: widths are positive.
        inputs.x.expect_shape(OP, "x", [tokens, config.hidden_size])?;
        let candidates = config.candidates();
        let cu_seqlens = match inputs.cu_seqlens {
            None => vec![0, tokens],
            Some(starts) => indices("cu_seqlens", starts)?,
        };
        let problem = Self {
            tokens,
            x: values(inputs.x)?,
            cu_seqlens,
            mask: match inputs.mask {
                None => vec![true; tokens],
                Some(mask) => integers(mask)?.into_iter().map(|m| m != 0).collect(),
            },
            attention: inputs.attention.map(attention).transpose()?,
            importance: inputs.importance.map(values).transpose()?,
            token_ids: inputs.token_ids.map(integers).transpose()?,
            token_frequency: inputs.token_frequency.map(values).transpose()?,
            k_given: inputs.k_given.map(integers).transpose()?,
            routing: inputs.routing.map(|routing| read_routing(routing, tokens, candidates)).transpose()?,
            training: inputs.training,
            state: state.map(f64::from),
            router: values(weights.router)?,
            router_bias: weights.router_bias.map(values).transpose()?,
            experts: experts(weights.experts)?,
            shared: weights.shared.map(experts).transpose()?,
            constants: weights.constants.map(values).transpose()?,
            config,
        };
        problem.check()?;
        Ok(problem)
    }
}

fn attention(attention: da_moe_core::Attention<'_>) -> Result<Attention> {
    Ok(match attention {
        da_moe_core::Attention::QueryKey { q, k, lse } => {
            let ([_, heads, width], [_, key_heads, _]) = (q.shape(), k.shape());
            Attention::QueryKey {
                q: values(q)?,
                k: values(k)?,
                lse: lse.map(values).transpose()?,
                heads,
                key_heads,
                width,
            }
        }
        da_moe_core::Attention::Probabilities(p) => {
            let [_, heads, side, _] = p.shape();
            Attention::Probabilities { p: values(p)?, heads, side }
        }
    })
}

fn experts(weights: ExpertWeights<'_>) -> Result<Experts> {
    let [count, _, width] = weights.w_out.shape();
    Ok(Experts {
        w_in: values(weights.w_in)?,
        w_out: values(weights.w_out)?,
        b_in: weights.b_in.map(values).transpose()?,
        b_out: weights.b_out.map(values).transpose()?,
        count,
        width,
    })
}

/// Padded rows keep their "none" entries, as id `E + Z`, so that positions are the caller's.
fn read_routing(routing: Routing<'_>, tokens: usize, candidates: usize) -> Result<Vec<Vec<(usize, f64)>>> {
    let entry = |(&id, &weight): (&i64, &f64)| {
        let id = i32::try_from(id).ok().and_then(|id| expert_id(id, candidates));
        (id.unwrap_or(candidates), weight)
    };
    match routing {
        Routing::Padded { experts, weights } => {
            let [_, slots] = experts.shape();
            experts.expect_shape(OP, "routing.experts", [tokens, slots])?;
            weights.expect_shape(OP, "routing.weights", [tokens, slots])?;
            let (experts, weights) = (integers(experts)?, values(weights)?);
            let row = |t: usize| (t * slots..(t + 1) * slots).map(|at| entry((&experts[at], &weights[at]))).collect();
            Ok((0..tokens).map(row).collect())
        }
        Routing::Csr { offsets, experts, weights } => {
            let offsets = indices("routing.offsets", offsets)?;
            let (experts, weights) = (integers(experts)?, values(weights)?);
            let rows =
                offsets.windows(2).map(|span| match (experts.get(span[0]..span[1]), weights.get(span[0]..span[1])) {
                    (Some(experts), Some(weights)) => Ok(experts.iter().zip(weights).map(entry).collect()),
                    _ => refuse("routing.offsets", format!("{} .. {} is no span of the entries", span[0], span[1])),
                });
            rows.collect()
        }
    }
}

fn indices(argument: &'static str, tensor: TensorRef<'_, 1>) -> Result<Vec<usize>> {
    let convert = |value: i64| {
        let problem = format!("{value} is negative");
        usize::try_from(value).map_err(|_| Error::Value { op: OP, argument, problem })
    };
    integers(tensor)?.into_iter().map(convert).collect()
}

/// Elements in row-major order as f64; every element type widens exactly.
pub(crate) fn values<const R: usize>(tensor: TensorRef<'_, R>) -> Result<Vec<f64>> {
    let host = tensor.data().to_host()?;
    let pick = |at: usize| match &host {
        Buffer::F32(v) => f64::from(v[at]),
        Buffer::Bf16(v) => v[at].to_f64(),
        Buffer::F16(v) => v[at].to_f64(),
        Buffer::I32(v) => f64::from(v[at]),
        Buffer::U8(v) => f64::from(v[at]),
    };
    Ok(positions(&tensor).into_iter().map(pick).collect())
}

/// Elements in row-major order as i64; floats truncate, but no integer tensor is made of them.
pub(crate) fn integers<const R: usize>(tensor: TensorRef<'_, R>) -> Result<Vec<i64>> {
    Ok(values(tensor)?.into_iter().map(|value| value as i64).collect())
}

/// Where each element lies in memory, in row-major order of the view. The view has checked that they exist.
fn positions<const R: usize>(tensor: &TensorRef<'_, R>) -> Vec<usize> {
    if tensor.shape().contains(&0) {
        return Vec::new();
    }
    let mut positions = vec![0];
    for (extent, stride) in tensor.shape().into_iter().zip(tensor.strides()) {
        positions = positions.iter().flat_map(|base| (0..extent).map(move |i| base + i * stride)).collect();
    }
    positions
}
