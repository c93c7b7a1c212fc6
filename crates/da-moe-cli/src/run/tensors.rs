//! Every tensor that one layer call reads, by its name in the file.

use super::file::Extent::{Any, Is};
use super::file::{InputFile, Owned};
use crate::{Error, Result, memory};
use da_moe::{Attention, Buffer, DType, ExpertWeights, Inputs, LayerConfig, Policy, Routing, Weights};

/// The inputs and weights of a call, owned.
pub(super) struct Tensors {
    pub(super) x: Owned<2>,
    cu_seqlens: Option<Owned<1>>,
    mask: Option<Owned<1>>,
    q: Option<Owned<3>>,
    k: Option<Owned<3>>,
    lse: Option<Owned<2>>,
    attn_probs: Option<Owned<4>>,
    importance: Option<Owned<1>>,
    token_ids: Option<Owned<1>>,
    token_frequency: Option<Owned<1>>,
    k_given: Option<Owned<1>>,
    pub(super) routing: Option<(Owned<2>, Owned<2>)>,
    router: Owned<2>,
    router_bias: Option<Owned<1>>,
    w_in: Owned<3>,
    w_out: Owned<3>,
    b_in: Option<Owned<2>>,
    b_out: Option<Owned<2>>,
    pub(super) shared: Option<Shared>,
    constants: Option<Owned<2>>,
    pub(super) dy: Option<Owned<2>>,
}

/// The shared expert as one expert, and the rank its tensors had in the file.
pub(super) struct Shared {
    w_in: Owned<3>,
    w_out: Owned<3>,
    pub(super) w_in_rank: usize,
    pub(super) w_out_rank: usize,
}

impl Tensors {
    /// Reads what `config` has a use for. Extents that decide how much memory the call takes are checked here, the
    /// others by the layer.
    pub(super) fn read(file: &InputFile<'_>, config: &LayerConfig, dtype: DType, backward: bool) -> Result<Self> {
        let (d, e, n) = (config.hidden_size, config.num_experts, config.candidates());
        let (f, rows_in) = (config.moe_intermediate_size, config.rows_in());
        let x = required(file.float("x", dtype, [Any("T"), Is(d)])?, "x", "every layer")?;
        let tokens = x.shape[0];
        let routing = match config.experts_per_token.policy {
            Policy::Given => read_routing(file, tokens)?,
            _ => None,
        };
        let router = match (file.float("router.weight", dtype, [Is(n), Is(d)])?, &routing) {
            (Some(router), _) => router,
            // A finished routing never asks the router.
            (None, Some(_)) => {
                memory::expect_room("router.weight", n.saturating_mul(d).saturating_mul(dtype.size()))?;
                Owned { shape: [n, d], data: Buffer::zeros(dtype, n * d) }
            }
            (None, None) => return Err(missing("router.weight", "every policy but a finished routing")),
        };
        let dy = match backward {
            true => Some(required(file.float("dy", dtype, [Is(tokens), Is(d)])?, "dy", "--backward")?),
            false => {
                file.ignore("dy");
                None
            }
        };
        let attention = |name| file.float(name, dtype, [Is(tokens), Any("H"), Any("dh")]);
        let tensors = Self {
            cu_seqlens: file.int("cu_seqlens", [Any("B+1")])?,
            mask: file.flags("mask", [Is(tokens)])?,
            q: attention("q")?,
            k: attention("k")?,
            lse: file.float("lse", DType::F32, [Any("H"), Is(tokens)])?,
            attn_probs: file.float("attn_probs", dtype, [Any("B"), Any("H"), Any("S"), Any("S")])?,
            importance: file.float("importance", DType::F32, [Is(tokens)])?,
            token_ids: file.int("token_ids", [Is(tokens)])?,
            token_frequency: file.float("token_frequency", DType::F32, [Any("V")])?,
            k_given: file.int("k_given", [Is(tokens)])?,
            routing,
            router,
            router_bias: file.float("router.bias", DType::F32, [Is(n)])?,
            w_in: required(
                file.float("experts.w_in", dtype, [Is(e), Is(rows_in), Is(d)])?,
                "experts.w_in",
                "every layer",
            )?,
            w_out: required(
                file.float("experts.w_out", dtype, [Is(e), Is(d), Is(f)])?,
                "experts.w_out",
                "every layer",
            )?,
            b_in: file.float("experts.b_in", dtype, [Is(e), Is(rows_in)])?,
            b_out: file.float("experts.b_out", dtype, [Is(e), Is(d)])?,
            shared: read_shared(file, config, dtype)?,
            constants: file.float("null.constants", dtype, [Any("Z"), Is(d)])?,
            dy,
            x,
        };
        tensors.refuse_half_given()?;
        Ok(tensors)
    }

    /// Pairs come together, and attention in one form.
    fn refuse_half_given(&self) -> Result<()> {
        match (&self.q, &self.k, &self.attn_probs) {
            (Some(_), None, _) => Err(missing("k", "attention given as `q` and `k`")),
            (None, Some(_), _) => Err(missing("q", "attention given as `q` and `k`")),
            (Some(_), _, Some(_)) => {
                Err(Error::tensor("attn_probs", "is there beside `q` and `k`; give attention in one form"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn inputs(&self) -> Result<Inputs<'_>> {
        let attention = match (&self.q, &self.k, &self.attn_probs) {
            (Some(q), Some(k), _) => Some(Attention::QueryKey { q: q.view()?, k: k.view()?, lse: view(&self.lse)? }),
            (_, _, Some(probabilities)) => Some(Attention::Probabilities(probabilities.view()?)),
            _ => None,
        };
        let routing = match &self.routing {
            Some((experts, weights)) => Some(Routing::Padded { experts: experts.view()?, weights: weights.view()? }),
            None => None,
        };
        Ok(Inputs {
            cu_seqlens: view(&self.cu_seqlens)?,
            mask: view(&self.mask)?,
            attention,
            importance: view(&self.importance)?,
            token_ids: view(&self.token_ids)?,
            token_frequency: view(&self.token_frequency)?,
            k_given: view(&self.k_given)?,
            routing,
            ..Inputs::new(self.x.view()?)
        })
    }

    pub(super) fn weights(&self) -> Result<Weights<'_>> {
        let shared = match &self.shared {
            Some(Shared { w_in, w_out, .. }) => {
                Some(ExpertWeights { w_in: w_in.view()?, w_out: w_out.view()?, b_in: None, b_out: None })
            }
            None => None,
        };
        Ok(Weights {
            router: self.router.view()?,
            router_bias: view(&self.router_bias)?,
            experts: ExpertWeights {
                w_in: self.w_in.view()?,
                w_out: self.w_out.view()?,
                b_in: view(&self.b_in)?,
                b_out: view(&self.b_out)?,
            },
            shared,
            constants: view(&self.constants)?,
        })
    }
}

fn view<const R: usize>(tensor: &Option<Owned<R>>) -> Result<Option<da_moe::TensorRef<'_, R>>> {
    tensor.as_ref().map(Owned::view).transpose()
}

fn read_routing(file: &InputFile<'_>, tokens: usize) -> Result<Option<(Owned<2>, Owned<2>)>> {
    let extents = [Is(tokens), Any("K")];
    let experts = file.int("routing.experts", extents)?;
    let weights = file.float("routing.weights", DType::F32, extents)?;
    match (experts, weights) {
        (Some(experts), Some(weights)) => Ok(Some((experts, weights))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(missing("routing.weights", "a finished routing with `routing.experts`")),
        (None, Some(_)) => Err(missing("routing.experts", "a finished routing with `routing.weights`")),
    }
}

fn read_shared(file: &InputFile<'_>, config: &LayerConfig, dtype: DType) -> Result<Option<Shared>> {
    let (d, width) = (config.hidden_size, config.shared_intermediate_size);
    let why = format!("`shared_intermediate_size` {width}");
    let read = |name, extents| -> Result<Option<(Owned<3>, usize)>> { matrix_or_stack(file, name, dtype, extents) };
    let w_in = read("shared.w_in", [config.shared_rows_in(), d])?;
    let w_out = read("shared.w_out", [d, width])?;
    match (w_in, w_out) {
        (None, None) if width == 0 => Ok(None),
        (Some((w_in, w_in_rank)), Some((w_out, w_out_rank))) => Ok(Some(Shared { w_in, w_out, w_in_rank, w_out_rank })),
        (None, _) => Err(missing("shared.w_in", &why)),
        (_, None) => Err(missing("shared.w_out", &why)),
    }
}

/// The shared expert's matrices may come with or without the leading 1 of an expert stack.
fn matrix_or_stack(
    file: &InputFile<'_>,
    name: &'static str,
    dtype: DType,
    [rows, columns]: [usize; 2],
) -> Result<Option<(Owned<3>, usize)>> {
    if file.rank(name) == Some(3) {
        return Ok(file.float(name, dtype, [Is(1), Is(rows), Is(columns)])?.map(|tensor| (tensor, 3)));
    }
    let matrix = file.float(name, dtype, [Is(rows), Is(columns)])?;
    Ok(matrix.map(|matrix| (Owned { shape: [1, rows, columns], data: matrix.data }, 2)))
}

fn required<const R: usize>(tensor: Option<Owned<R>>, name: &str, needed_by: &str) -> Result<Owned<R>> {
    tensor.ok_or_else(|| missing(name, needed_by))
}

fn missing(name: &str, needed_by: &str) -> Error {
    Error::tensor(name, format!("is missing; it is needed by {needed_by}"))
}
