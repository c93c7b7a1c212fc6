#!/usr/bin/env python3
"""GPU peers of da-moe: the same layer forward by other libraries, on the shapes of tests/gpu/bench.rs.

Every peer that is not installed is skipped with one line. Times are CUDA events, warm, median of 20 with
smallest and largest; useful operations only (6 D F a routed row, 4 D F without a gate). Ceilings come first.

`gpu_moe.py [SECONDS]`: what would start later than that is skipped.
"""

import statistics
import sys
import time

DEADLINE = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else float("inf"))

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    print("peers: skipped, PyTorch is not installed")
    sys.exit(0)
if not torch.cuda.is_available():
    print("peers: skipped, PyTorch sees no GPU")
    sys.exit(0)

REPEATS, WARM_UP = 20, 3
# Name, T, D, F, E, activation, experts of a token.
SHAPES = [
    ("switch-base", 4096, 768, 3072, 8, "relu", 1),
    ("marin", 8192, 2048, 3072, 8, "swiglu", 2),
    ("olmoe", 32768, 2048, 1024, 64, "swiglu", 8),
    ("qwen3-30b", 32768, 2048, 768, 128, "swiglu", 8),
    ("fine-256", 16384, 4096, 1024, 256, "swiglu", 4),
    ("decode", 64, 2048, 768, 128, "swiglu", 8),
]


def time_ms(work):
    """Median, smallest and largest time of `work` in milliseconds."""
    for _ in range(WARM_UP):
        work()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times), min(times), max(times)


def report(name, peer, operations, times):
    """One line of the table."""
    median, least, most = times
    rate = operations / median / 1e9
    print(f"{name:<12} {peer:<24} {median:.3f} ms ({least:.3f} to {most:.3f})  {rate:.0f} TFLOP/s", flush=True)


def ceilings():
    """A large product and a copy: what the machine can do."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    report("ceiling", "cuBLAS 8192^3 bf16", 2 * 8192**3, time_ms(lambda: a @ b))
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    median, _, _ = time_ms(lambda: target.copy_(source))
    print(f"{'ceiling':<12} {'device copy':<24} {2 * source.nbytes / median / 1e9:.2f} TB/s", flush=True)


class Layer:
    """Weights and activations of one shape, and its routing by top-k."""

    def __init__(self, tokens, d, f, experts, activation, k):
        def random(*shape, fan):
            return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) / fan**0.5

        self.k, self.experts, self.activation = k, experts, activation
        self.x = random(tokens, d, fan=1)
        self.router = random(experts, d, fan=d)
        self.w_in = random(experts, f * (2 if activation == "swiglu" else 1), d, fan=d)
        self.w_out = random(experts, d, f, fan=f)

    def route(self):
        """Weights, tokens sorted by expert, and the experts' ends."""
        probabilities = (self.x @ self.router.T).float().softmax(-1)
        weights, chosen = probabilities.topk(self.k, dim=-1)
        order = chosen.flatten().argsort(stable=True)
        ends = torch.bincount(chosen.flatten(), minlength=self.experts).cumsum(0).to(torch.int32)
        return weights.flatten()[order], order // self.k, ends

    def act(self, h):
        """Between the two products."""
        if self.activation == "relu":
            return h.relu()
        gate, up = h.chunk(2, dim=-1)
        return F.silu(gate) * up

    def combine(self, rows, weights, tokens):
        """Rows back to their tokens."""
        y = torch.zeros_like(self.x, dtype=torch.float32)
        return y.index_add_(0, tokens, rows.float() * weights[:, None]).to(self.x.dtype)


def grouped_mm(layer):
    """torch's grouped product for both projections."""
    weights, tokens, ends = layer.route()
    h = torch._grouped_mm(layer.x[tokens], layer.w_in.transpose(1, 2), offs=ends)
    rows = torch._grouped_mm(layer.act(h), layer.w_out.transpose(1, 2), offs=ends)
    return layer.combine(rows, weights, tokens)


def expected(layer):
    """What every peer must compute; None where this PyTorch or this GPU has no grouped product."""
    try:
        return grouped_mm(layer).float()
    except (AttributeError, RuntimeError):
        return None


def loop(layer):
    """A product an expert."""
    weights, tokens, ends = layer.route()
    rows, start = torch.empty(len(tokens), layer.x.shape[1], device="cuda", dtype=layer.x.dtype), 0
    for expert, end in enumerate(ends.tolist()):
        h = layer.x[tokens[start:end]] @ layer.w_in[expert].T
        rows[start:end] = layer.act(h) @ layer.w_out[expert].T
        start = end
    return layer.combine(rows, weights, tokens)


def deep_gemm_peer():
    """DeepGEMM's contiguous grouped bf16 product, padded as it asks for."""
    import deep_gemm

    product, alignment = deep_gemm.m_grouped_bf16_gemm_nt_contiguous, deep_gemm.get_mk_alignment_for_contiguous_layout()

    def forward(layer):
        weights, tokens, ends = layer.route()
        counts = torch.diff(ends, prepend=ends.new_zeros(1))
        padded = (counts + alignment - 1) // alignment * alignment
        starts = padded.cumsum(0) - padded
        owner = torch.repeat_interleave(torch.arange(layer.experts, device="cuda", dtype=torch.int32), padded)
        before = ends - counts
        expert = torch.repeat_interleave(torch.arange(layer.experts, device="cuda"), counts)
        place = torch.arange(len(tokens), device="cuda") - before[expert] + starts[expert]
        x = layer.x.new_zeros(len(owner), layer.x.shape[1])
        x[place] = layer.x[tokens]
        h = x.new_empty(len(owner), layer.w_in.shape[1])
        product(x, layer.w_in, h, owner)
        rows = x.new_empty(len(owner), layer.w_out.shape[1])
        product(layer.act(h), layer.w_out, rows, owner)
        return layer.combine(rows[place], weights, tokens)

    return forward


def sonic_peer():
    """SonicMoE's layer, through its own module."""
    from sonicmoe import MoE, KernelBackendMoE
    from sonicmoe.enums import ActivationType

    made = {}

    def forward(layer):
        if id(layer) not in made:
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
            made[id(layer)] = module.to(device="cuda", dtype=torch.bfloat16)
        return made[id(layer)](layer.x, kernel_backend_moe=KernelBackendMoE.sonicmoe)[0]

    return forward


def triton_peer():
    """The Triton kernels that ship with vLLM."""
    from vllm.model_executor.layers.fused_moe import fused_experts

    def forward(layer):
        probabilities = (layer.x @ layer.router.T).float().softmax(-1)
        weights, chosen = probabilities.topk(layer.k, dim=-1)
        return fused_experts(layer.x, layer.w_in, layer.w_out, weights, chosen.int())

    return forward


PEERS = [
    ("torch grouped_mm", lambda: grouped_mm),
    ("torch grouped_mm compiled", lambda: torch.compile(grouped_mm)),
    ("torch loop", lambda: loop),
    ("DeepGEMM", deep_gemm_peer),
    ("SonicMoE", sonic_peer),
    ("Triton (vLLM)", triton_peer),
]


def main():
    """Everything that is installed, shape by shape."""
    print(f"# {torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    ceilings()
    peers = []
    for name, make in PEERS:
        try:
            peers.append((name, make()))
        except Exception as error:  # Whatever keeps a peer from starting is its own affair.
            print(f"{name}: skipped, {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    for name, tokens, d, f, experts, activation, k in SHAPES:
        layer = Layer(tokens, d, f, experts, activation, k)
        operations = (6 if activation == "swiglu" else 4) * d * f * tokens * k
        reference = expected(layer)
        for peer, forward in peers:
            if time.monotonic() > DEADLINE:
                print(f"{name:<12} {peer}: skipped, out of time")
                continue
            try:
                with torch.no_grad():
                    y = forward(layer).float()
                    if reference is not None and peer != "SonicMoE":
                        # A peer that computes something else is no peer. SonicMoE draws its own weights.
                        off = ((y - reference).norm() / reference.norm()).item()
                        assert off < 0.02, f"differs from grouped_mm by {off:.3f}"
                    report(name, peer, operations, time_ms(lambda: forward(layer)))
            except Exception as error:
                print(f"{name:<12} {peer}: skipped, {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        del layer
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
