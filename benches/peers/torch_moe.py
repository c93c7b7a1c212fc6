#!/usr/bin/env python3
"""PyTorch peer for the CPU benchmark of da-moe.

Measures a dynamic-k mixture-of-experts layer written twice in PyTorch (a loop over
the experts, and grouped matrix products) and, alternating with it in the same run,
`da-moe bench`. See README.md beside this file.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / "target" / "peers-venv"
PACKAGES = ["torch==2.11.*", "numpy"]


class Shape(NamedTuple):
    """A named layer size: tokens, model width, expert width, experts, activation."""

    tokens: int
    d: int
    f: int
    experts: int
    activation: str

    def row_flops(self):
        """Useful forward FLOPs of one routed row (one token through one expert)."""
        return (6 if self.activation == "swiglu" else 4) * self.d * self.f


SHAPES = {
    "c-small": Shape(256, 128, 256, 16, "swiglu"),
    "c-mid": Shape(1024, 512, 1024, 8, "swiglu"),
    "c-fine": Shape(4096, 256, 512, 32, "swiglu"),
    "switch-base": Shape(4096, 768, 3072, 8, "relu"),
}


def install():
    """Creates the virtual environment of the peers and installs PyTorch into it."""
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    subprocess.run([str(VENV / "bin" / "python"), "-m", "pip", "install", *PACKAGES], check=True)


if "--install" in sys.argv:
    install()
    sys.exit(0)
try:
    import torch
    import torch.nn.functional as F
except ImportError:
    python = VENV / "bin" / "python"
    if python.exists() and Path(sys.prefix).resolve() != VENV.resolve():
        os.execv(python, [str(python), __file__, *sys.argv[1:]])
    sys.exit(f"PyTorch is not installed: run `python3 {sys.argv[0]} --install` first")


# ---------------------------------------------------------------- the layer


def choose_k(importance, mean_k, k_max):
    """Experts per token, k = clamp(ceil(importance * scale), 1, k_max); bisects the scale for the mean."""
    low, high = 0.0, 1e6
    for _ in range(80):
        scale = (low + high) / 2
        k = (importance * scale).ceil().clamp(1, k_max)
        low, high = (scale, high) if k.mean() < mean_k else (low, scale)
    return (importance * high).ceil().clamp(1, k_max).long()


def route(x, w_router, k):
    """Rows sorted by expert: their tokens, their normalised weights, and the rows of each expert."""
    probabilities = F.softmax(F.linear(x, w_router), dim=-1, dtype=torch.float32)
    top, experts = probabilities.topk(int(k.max()), dim=-1)
    chosen = torch.arange(top.shape[1]) < k[:, None]
    weights = top * chosen
    weights = weights / weights.sum(-1, keepdim=True)
    tokens, ranks = chosen.nonzero(as_tuple=True)
    expert_of_row, order = experts[tokens, ranks].sort(stable=True)
    tokens, ranks = tokens[order], ranks[order]
    counts = torch.bincount(expert_of_row, minlength=w_router.shape[0])
    return tokens, weights[tokens, ranks].to(x.dtype), counts


def activate(h, activation):
    """SwiGLU over [gate, up] halves, or ReLU."""
    if activation == "relu":
        return F.relu(h)
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate) * up


def forward_loop(layer, x, w_router, *expert_weights):
    """The layer as a loop over experts; each expert's matrices are tensors of their own."""
    n = layer.shape.experts
    tokens, weights, counts = route(x, w_router, layer.k)
    counts = counts.tolist()
    out = torch.zeros_like(x)
    rows = zip(tokens.split(counts), weights.split(counts), expert_weights[:n], expert_weights[n:])
    for token, weight, w_in, w_out in rows:
        if token.numel():
            h = activate(F.linear(x.index_select(0, token), w_in), layer.shape.activation)
            out.index_add_(0, token, F.linear(h, w_out) * weight[:, None])
    return out


def forward_grouped(layer, x, w_router, w_in, w_out):
    """The layer as two grouped matrix products over the rows sorted by expert."""
    tokens, weights, counts = route(x, w_router, layer.k)
    offsets = counts.cumsum(0).to(torch.int32)
    h = grouped_mm(x.index_select(0, tokens), w_in.transpose(-2, -1), offs=offsets)
    y = grouped_mm(activate(h, layer.shape.activation), w_out.transpose(-2, -1), offs=offsets)
    return torch.zeros_like(x).index_add_(0, tokens, y * weights[:, None])


grouped_mm = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
VARIANTS = {"loop": forward_loop, "grouped": forward_grouped}


class Layer:
    """Inputs, weights and the per-token k of one case, and its two passes."""

    def __init__(self, shape, dtype, variant, mean_k, k_max):
        torch.manual_seed(0)
        self.shape, self.function = shape, VARIANTS[variant]
        t, d, f, e, activation = shape
        width = 2 * f if activation == "swiglu" else f
        self.k = choose_k(torch.rand(t), mean_k, min(k_max, e))
        self.rows = int(self.k.sum())
        w_in = self.normal((e, width, d), d, dtype)
        w_out = self.normal((e, d, f), f, dtype)
        experts = [*w_in, *w_out] if variant == "loop" else [w_in, w_out]
        leaves = [self.normal((t, d), 1, dtype), self.normal((e, d), d, dtype), *experts]
        self.inputs = [leaf.requires_grad_() for leaf in leaves]
        self.grad_out = self.normal((t, d), 1, dtype)

    @staticmethod
    def normal(size, fan_in, dtype):
        """A random normal tensor scaled by 1/sqrt(fan_in)."""
        return torch.randn(size, dtype=dtype).mul_(1 / math.sqrt(fan_in))

    @torch.no_grad()
    def forward(self):
        """The forward pass alone."""
        return self.function(self, *self.inputs)

    def forward_backward(self):
        """Forward, then the gradients of x, the router and both expert weights."""
        out = self.function(self, *self.inputs)
        return torch.autograd.grad(out, self.inputs, self.grad_out, allow_unused=True)


def supported(variant, dtype):
    """Whether this PyTorch runs the variant, backward included, in this dtype on the CPU."""
    if variant == "grouped" and grouped_mm is None:
        return False
    try:
        Layer(Shape(16, 16, 16, 4, "swiglu"), dtype, variant, 2.0, 4).forward_backward()
    except (RuntimeError, NotImplementedError):
        return False
    return True


# ---------------------------------------------------------------- measuring


def median_ms(function, seconds=0.4, least=3):
    """Median time of a call in milliseconds, after one warm-up call."""
    function()
    times, start = [], time.perf_counter()
    while len(times) < least or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        function()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def time_torch(layer, args):
    """One block of a PyTorch variant: GFLOP/s of each pass."""
    flops = layer.rows * layer.shape.row_flops()
    block = {"forward": flops / median_ms(layer.forward) / 1e6}
    if not args.forward_only:
        block["forward+backward"] = 3 * flops / median_ms(layer.forward_backward) / 1e6
    return block


def time_ours(name, dtype, args):
    """One block of our own bench: GFLOP/s of each pass, and its whole answer."""
    command = [args.ours, "bench", "--shape", name, "--mean-k", str(args.mean_k)]
    command += ["--dtype", dtype, "--device", "cpu", "--json"]
    command += [] if args.forward_only else ["--backward"]
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    flops = answer["rows"] * SHAPES[name].row_flops()
    block = {"forward": flops / answer["forward_ms"] / 1e6, "answer": answer}
    if not args.forward_only:
        block["forward+backward"] = 3 * flops / (answer["forward_ms"] + answer["backward_ms"]) / 1e6
    return block


def time_candle(name, args):
    """One block of our layer in candle, and of the same layer in candle's own operations: GFLOP/s of each."""
    shape = SHAPES[name]
    command = [args.candle, "--tokens", shape.tokens, "--hidden", shape.d, "--width", shape.f, "--experts", shape.experts]
    command += ["--mean-k", args.mean_k, "--k-max", args.k_max, "--rounds", 5, "--json"]
    answer = json.loads(subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE).stdout)
    return answer["gflops"]


def measure_candle(name, dtype, args):
    """Whether candle's two layers are measured beside the others: its example has SwiGLU in f32 alone."""
    return bool(args.candle) and dtype == "f32" and SHAPES[name].activation == "swiglu" and not args.forward_only


def peak_rss():
    """Peak resident bytes of this process.

    VmHWM is ru_maxrss without the peak of the process that started this one, which Linux
    lets a child inherit.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def print_peak(args):
    """The body of the memory subprocess: prints the bytes one case needs above a small warmed-up layer."""
    (name,), (dtype,) = args.shapes, args.dtypes
    for shape in (Shape(64, 32, 32, 4, SHAPES[name].activation), SHAPES[name]):
        baseline = peak_rss()
        layer = Layer(shape, getattr(torch, DTYPES[dtype]), args.peak_of, args.mean_k, args.k_max)
        for _ in range(2):
            layer.forward() if args.forward_only else layer.forward_backward()
    print(peak_rss() - baseline)


def measure_peak(name, dtype, variant, args):
    """Peak bytes of one PyTorch case, in a process of its own."""
    command = [sys.executable, __file__, "--peak-of", variant, "--shapes", name, "--dtypes", dtype]
    command += ["--mean-k", str(args.mean_k), "--k-max", str(args.k_max), "--threads", str(args.threads)]
    command += ["--forward-only"] if args.forward_only else []
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def dense_ceiling(dtype, size=2048):
    """GFLOP/s of one large dense product."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / median_ms(lambda: torch.mm(a, b), seconds=1.0) / 1e6


def spread(values):
    """Median, min and max of the rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": values}


def measure_case(name, dtype, args):
    """All rounds of one shape and dtype, ours and PyTorch taking turns."""
    torch_dtype = getattr(torch, DTYPES[dtype])
    variants = [v for v in VARIANTS if supported(v, torch_dtype)]
    layers = {v: Layer(SHAPES[name], torch_dtype, v, args.mean_k, args.k_max) for v in variants}
    blocks = {v: [] for v in (["ours"] if args.ours else []) + variants}
    candle = []
    for _ in range(args.rounds):
        if measure_candle(name, dtype, args):
            candle.append(time_candle(name, args))
        for who, list_ in blocks.items():
            list_.append(time_ours(name, dtype, args) if who == "ours" else time_torch(layers[who], args))
    passes = ["forward"] if args.forward_only else ["forward", "forward+backward"]
    case = {"shape": name, "dtype": dtype, "rows": layers["loop"].rows, "passes": {}}
    for p in passes:
        speeds = {who: spread([b[p] for b in list_]) for who, list_ in blocks.items()}
        best = max(speeds[v]["median"] for v in variants)
        ratio = speeds["ours"]["median"] / best if args.ours else None
        case["passes"][p] = {"gflops": speeds, "ours_over_torch": ratio}
    if candle:
        case["candle_gflops"] = {who: spread([block[who] for block in candle]) for who in candle[0]}
    case["peak_bytes"] = {v: measure_peak(name, dtype, v, args) for v in variants}
    if args.ours:
        case["ours"] = [b["answer"] for b in blocks["ours"]]
        case["peak_bytes"]["ours"] = max(a["peak_bytes"] for a in case["ours"])
    return case


# ---------------------------------------------------------------- reporting


def markdown(results):
    """The results as a short Markdown table."""
    who = ["ours", "loop", "grouped"]
    lines = [f"torch {results['torch']}, {results['threads']} threads, mean k {results['mean_k']}"]
    lines += ["GFLOP/s: median (min-max) of the rounds; peak in MiB, of the deepest pass", ""]
    dense = ", ".join(f"{k} {v:.0f}" for k, v in results["dense_gflops"].items())
    lines += [f"torch.mm 2048^3: {dense} GFLOP/s", ""]
    lines += ["| shape | dtype | pass | ours | torch loop | torch grouped | ours/torch | peak ours/loop/grouped |"]
    lines += ["|---|---|---|---:|---:|---:|---:|---:|"]
    for case in results["cases"]:
        peak = "/".join(f"{b / 2**20:.0f}" if (b := case["peak_bytes"].get(w)) else "-" for w in who)
        for p, measured in case["passes"].items():
            speeds = [measured["gflops"].get(w) for w in who]
            cells = [f"{s['median']:.0f} ({s['min']:.0f}-{s['max']:.0f})" if s else "-" for s in speeds]
            ratio = measured["ours_over_torch"]
            cells.append(f"{ratio:.2f}" if ratio else "-")
            lines.append(f"| {case['shape']} | {case['dtype']} | {p} | {' | '.join(cells)} | {peak} |")
    lines += candle_markdown(results["cases"], results["mean_k"])
    return "\n".join(lines)


def candle_markdown(cases, mean_k):
    """Our layer in candle's graph beside candle's own operations and PyTorch, forward+backward, in tokens a second."""
    cases = [case for case in cases if "candle_gflops" in case]
    if not cases:
        return []
    lines = ["", "Training in candle, forward+backward in f32, thousands of tokens a second: median (min-max) of the rounds", ""]
    lines += ["| shape | ours in candle | candle's operations | ratio | better of PyTorch | ratio |", "|---|---:|---:|---:|---:|---:|"]
    for case in cases:
        ours, theirs = (case["candle_gflops"][who] for who in ("da_moe", "candle"))
        speeds = case["passes"]["forward+backward"]["gflops"]
        best = max((speeds[who] for who in VARIANTS if who in speeds), key=lambda speed: speed["median"])
        thousands = 1e6 / (3 * mean_k * SHAPES[case["shape"]].row_flops())
        ours_cell, theirs_cell, best_cell = (
            f"{s['median'] * thousands:.1f} ({s['min'] * thousands:.1f}-{s['max'] * thousands:.1f})" for s in (ours, theirs, best)
        )
        ratios = [ours["median"] / other["median"] for other in (theirs, best)]
        lines.append(
            f"| {case['shape']} | {ours_cell} | {theirs_cell} | {ratios[0]:.2f} | {best_cell} | {ratios[1]:.2f} |"
        )
    return lines


DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def parse_args():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="install PyTorch in target/peers-venv and stop")
    parser.add_argument("--ours", default=str(ROOT / "target" / "release" / "da-moe"), help="our binary")
    parser.add_argument("--candle", default=str(ROOT / "target" / "release" / "examples" / "speed"), help="da-moe-candle's")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--mean-k", type=float, default=2.0)
    parser.add_argument("--k-max", type=int, default=8, help="most experts a token may have")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="save everything measured")
    parser.add_argument("--peak-of", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    """Measures every case asked for."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        return print_peak(args)
    if not Path(args.ours).exists():
        print(f"{args.ours} does not exist: measuring PyTorch alone", file=sys.stderr)
        args.ours = None
    if not Path(args.candle).exists():
        args.candle = None
    results = {"torch": torch.__version__, "threads": args.threads, "mean_k": args.mean_k, "cases": []}
    results["dense_gflops"] = {d: dense_ceiling(getattr(torch, DTYPES[d])) for d in args.dtypes}
    for name in args.shapes:
        for dtype in args.dtypes:
            print(f"measuring {name} {dtype}", file=sys.stderr)
            results["cases"].append(measure_case(name, dtype, args))
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))
    print(markdown(results))


if __name__ == "__main__":
    main()
