"""The layer that gpu_moe.py measures, and other libraries that compute it."""

import os

import torch
import torch.nn.functional as F

# Triton's interpreter, which tries its kernel on a CPU, multiplies no bf16.
DTYPE = torch.float16 if os.environ.get("TRITON_INTERPRET") == "1" else torch.bfloat16


class Layer:
    """Weights and activations of one shape, and its routing by top-k."""

    def __init__(self, device, tokens, d, f, experts, activation, k):
        def random(*shape, fan):
            return (torch.randn(*shape, device=device, dtype=DTYPE) / fan**0.5).requires_grad_()

        torch.manual_seed(7)
        self.k, self.experts, self.activation = k, experts, activation
        self.x = random(tokens, d, fan=1)
        self.router = random(experts, d, fan=d)
        self.w_in = random(experts, f * (2 if activation == "swiglu" else 1), d, fan=d)
        self.w_out = random(experts, d, f, fan=f)
        self.dy = torch.randn(tokens, d, device=device, dtype=DTYPE)
        self.operations = (6 if activation == "swiglu" else 4) * d * f * tokens * k
        self.kept = {}

    def parameters(self):
        """What has a gradient."""
        return [self.x, self.router, self.w_in, self.w_out]

    def choose(self):
        """Weights and experts of every token."""
        return (self.x @ self.router.T).float().softmax(-1).topk(self.k, dim=-1)

    def route(self):
        """Weights, tokens sorted by expert, and the experts' ends; without waiting for the device."""
        weights, chosen = self.choose()
        chosen = chosen.flatten()
        order = chosen.argsort(stable=True)
        counts = torch.histc(chosen.float(), bins=self.experts, min=0, max=self.experts - 1)
        return weights.flatten()[order], order // self.k, counts.cumsum(0).to(torch.int32)

    def act(self, h):
        """Between the two products."""
        if self.activation == "relu":
            return h.relu()
        gate, up = h.chunk(2, dim=-1)
        return F.silu(gate) * up

    def combine(self, rows, weights, tokens):
        """Rows back to their tokens."""
        y = torch.zeros(self.x.shape, device=self.x.device, dtype=torch.float32)
        return y.index_add(0, tokens, rows.float() * weights[:, None]).to(self.x.dtype)


def loop(layer):
    """A product an expert: what every peer must compute."""
    weights, tokens, ends = layer.route()
    rows, start = [], 0
    for expert, end in enumerate(ends.tolist()):
        h = layer.x[tokens[start:end]] @ layer.w_in[expert].T
        rows.append(layer.act(h) @ layer.w_out[expert].T)
        start = end
    return layer.combine(torch.cat(rows), weights, tokens)


def grouped_mm(layer):
    """torch's grouped product for both projections."""
    product = getattr(F, "grouped_mm", None) or torch._grouped_mm
    weights, tokens, ends = layer.route()
    h = product(layer.x[tokens], layer.w_in.transpose(1, 2), offs=ends)
    rows = product(layer.act(h), layer.w_out.transpose(1, 2), offs=ends)
    return layer.combine(rows, weights, tokens)


def transformers_peer():
    """The experts of a model of transformers, by its grouped products."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    def forward(layer):
        if layer.activation != "swiglu":
            raise NotImplementedError("its experts have a gate")
        if "transformers" not in layer.kept:
            (experts, d, f), k = layer.w_out.shape, layer.k
            config = Qwen3MoeConfig(
                hidden_size=d, moe_intermediate_size=f, num_experts=experts, num_experts_per_tok=k, hidden_act="silu"
            )
            config._experts_implementation = "grouped_mm"
            with torch.device("meta"):
                module = Qwen3MoeExperts(config)
            # Not by assignment to attributes alone: the layer's own tensors have the gradients.
            for name, weight in (("gate_up_proj", layer.w_in), ("down_proj", layer.w_out)):
                del module._parameters[name]
                setattr(module, name, weight)
            layer.kept["transformers"] = module
        weights, chosen = layer.choose()
        return layer.kept["transformers"](layer.x, chosen, weights.to(layer.x.dtype))

    return forward


def triton_peer():
    """A plain grouped product in Triton: a block for each tile of an expert's rows, rows gathered on the way in."""
    import triton
    import triton.language as tl

    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("on the CPU only with TRITON_INTERPRET=1")

    @triton.jit
    def product(
        a, b, out, tokens, ends, tile_ends, columns: tl.constexpr, depth: tl.constexpr,
        EXPERTS: tl.constexpr, GATHER: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    ):  # fmt: skip
        tile, expert_ids = tl.program_id(1), tl.arange(0, EXPERTS)
        expert = tl.sum((tl.load(tile_ends + expert_ids) <= tile).to(tl.int32))
        if expert < EXPERTS:
            first_tile = tl.load(tile_ends + expert - 1, mask=expert > 0, other=0)
            start = tl.load(ends + expert - 1, mask=expert > 0, other=0)
            rows = start + (tile - first_tile) * M + tl.arange(0, M)
            inside = rows < tl.load(ends + expert)
            source = tl.load(tokens + rows, mask=inside, other=0) if GATHER else rows
            column, step = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, K)
            left = a + source.to(tl.int64)[:, None] * depth + step[None, :]
            right = b + (expert.to(tl.int64) * columns + column)[None, :] * depth + step[:, None]
            sums = tl.zeros((M, N), dtype=tl.float32)
            for _ in range(0, depth, K):
                sums = tl.dot(tl.load(left, mask=inside[:, None], other=0.0), tl.load(right), sums)
                left += K
                right += K
            place = out + rows.to(tl.int64)[:, None] * columns + column[None, :]
            tl.store(place, sums.to(out.dtype.element_ty), mask=inside[:, None])

    def multiply(a, b, tokens, ends, gather):
        experts, columns, depth = b.shape
        is_small = len(tokens) < 64 * experts
        m, n, warps, stages = (16, 128, 4, 4) if is_small else (128, 256, 8, 3)
        n = min(n, columns & -columns)
        counts = torch.diff(ends, prepend=ends.new_zeros(1))
        tile_ends = ((counts + m - 1) // m).cumsum(0).to(torch.int32)
        out = a.new_empty(len(tokens), columns)
        grid = (columns // n, len(tokens) // m + experts)
        product[grid](
            a, b, out, tokens, ends, tile_ends, columns, depth,
            EXPERTS=experts, GATHER=gather, M=m, N=n, K=64, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        return out

    def forward(layer):
        weights, tokens, ends = layer.route()
        x, w_in, w_out = (tensor.detach() for tensor in (layer.x, layer.w_in, layer.w_out))
        h = multiply(x, w_in, tokens, ends, True)
        return layer.combine(multiply(layer.act(h), w_out, tokens, ends, False), weights, tokens)

    return forward


def deep_gemm_peer():
    """DeepGEMM's contiguous grouped bf16 product, padded as it asks for."""
    import deep_gemm

    product, alignment = deep_gemm.m_grouped_bf16_gemm_nt_contiguous, deep_gemm.get_mk_alignment_for_contiguous_layout()

    def forward(layer):
        (weights, tokens, ends), device = layer.route(), layer.x.device
        counts = torch.diff(ends, prepend=ends.new_zeros(1))
        padded = (counts + alignment - 1) // alignment * alignment
        starts = padded.cumsum(0) - padded
        owner = torch.repeat_interleave(torch.arange(layer.experts, device=device, dtype=torch.int32), padded)
        before = ends - counts
        expert = torch.repeat_interleave(torch.arange(layer.experts, device=device), counts)
        place = torch.arange(len(tokens), device=device) - before[expert] + starts[expert]
        x = layer.x.new_zeros(len(owner), layer.x.shape[1])
        x[place] = layer.x.detach()[tokens]
        h = x.new_empty(len(owner), layer.w_in.shape[1])
        product(x, layer.w_in.detach(), h, owner)
        rows = x.new_empty(len(owner), layer.w_out.shape[1])
        product(layer.act(h), layer.w_out.detach(), rows, owner)
        return layer.combine(rows[place], weights, tokens)

    return forward


def sonic_peer():
    """SonicMoE's layer, through its own module."""
    from sonicmoe import KernelBackendMoE, MoE
    from sonicmoe.enums import ActivationType

    def forward(layer):
        if "sonic" not in layer.kept:
            kind = ActivationType.SWIGLU if layer.activation == "swiglu" else ActivationType.RELU
            module = MoE(
                num_experts=layer.experts,
                num_experts_per_tok=layer.k,
                hidden_size=layer.x.shape[1],
                intermediate_size=layer.w_out.shape[2],
                activation_function=kind,
                add_bias=False,
                std=0.02,
            )
            layer.kept["sonic"] = module.to(device=device, dtype=DTYPE)
        return layer.kept["sonic"](layer.x, kernel_backend_moe=KernelBackendMoE.sonicmoe)[0]

    return forward


def vllm_peer():
    """The Triton kernels that ship with vLLM."""
    from vllm.model_executor.layers.fused_moe import fused_experts

    def forward(layer):
        weights, chosen = layer.choose()
        return fused_experts(layer.x.detach(), layer.w_in.detach(), layer.w_out.detach(), weights, chosen.int())

    return forward


class Peer:
    """A way to compute the layer: how it is made, whether it has a backward, and seconds that a first call may take."""

    def __init__(self, name, make, backward=True, graph=True, checked=True, first_call=3):
        self.name, self.make, self.first_call = name, make, first_call
        self.backward, self.graph, self.checked = backward, graph, checked


PEERS = [
    Peer("grouped_mm", lambda: grouped_mm),
    Peer("triton", triton_peer, backward=False),
    Peer("transformers", transformers_peer),
    # SonicMoE draws its own weights.
    Peer("SonicMoE", sonic_peer, checked=False, graph=False),
    Peer("DeepGEMM", deep_gemm_peer, backward=False, graph=False),
    Peer("vLLM", vllm_peer, backward=False, graph=False),
    Peer("compiled", lambda: torch.compile(grouped_mm, dynamic=False), graph=False, first_call=25),
    Peer("loop", lambda: loop, graph=False),
]
