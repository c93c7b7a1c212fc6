#!/usr/bin/env python3
"""GPU peers of da-moe: the same layer by other libraries, on the shapes of tests/gpu/bench.rs and measured as there.

Before each sample the cache is filled with something else; times are between device events, median of 20 with smallest and
largest; useful operations only (6 D F a routed row forward, 4 D F without a gate, twice that backward). `graph` is the same call
as a CUDA graph, in a process of its own, because not every peer survives that; `both` is forward and backward in one.
Every peer that is not installed, or computes something else, is skipped with one line. Peer after peer, the most telling first.

    gpu_moe.py [--seconds N]    what would begin later is skipped
    gpu_moe.py --cpu            tiny shapes on the CPU: that everything here runs, not how fast
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

BEGAN = time.monotonic()
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seconds", type=float, default=float("inf"))
parser.add_argument("--cpu", action="store_true")
parser.add_argument("--graph-of", metavar="PEER", help=argparse.SUPPRESS)
ARGUMENTS = parser.parse_args()

try:
    import torch
except ImportError:
    print("peers: skipped, PyTorch is not installed")
    sys.exit(0)
if not ARGUMENTS.cpu and not torch.cuda.is_available():
    print("peers: skipped, PyTorch sees no GPU" if os.environ.get("DA_MOE_GPU") != "1" else "error: PyTorch sees no GPU")
    sys.exit(os.environ.get("DA_MOE_GPU") == "1")

from gpu_peers import DTYPE, PEERS, Layer, loop  # noqa: E402 - once it is known that there is PyTorch

DEVICE = "cpu" if ARGUMENTS.cpu else "cuda"
REPEATS, WARM_UP = (1, 0) if ARGUMENTS.cpu else (20, 3)
FLUSH = torch.empty(1 << 20 if ARGUMENTS.cpu else 256 << 20, device=DEVICE, dtype=torch.uint8)
# Name, T, D, F, E, activation, experts of a token.
SHAPES = [
    ("marin", 8192, 2048, 3072, 8, "swiglu", 2),
    ("qwen3-30b", 32768, 2048, 768, 128, "swiglu", 8),
    ("olmoe", 32768, 2048, 1024, 64, "swiglu", 8),
    ("fine-256", 16384, 4096, 1024, 256, "swiglu", 4),
    ("decode", 64, 2048, 768, 128, "swiglu", 8),
    ("switch-base", 4096, 768, 3072, 8, "relu", 1),
]
if ARGUMENTS.cpu:
    SHAPES = [("tiny", 64, 64, 128, 4, "swiglu", 2), ("tiny-relu", 64, 64, 128, 4, "relu", 1)]


def left():
    """Seconds until nothing more is begun."""
    return BEGAN + ARGUMENTS.seconds - time.monotonic()


def say(*words):
    """A line, at once: whoever reads it may end this process."""
    print(*words, flush=True)


def reason(error):
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


# ---------------------------------------------------------------- time


def time_ms(work, prepare=lambda: None):
    """Median, smallest and largest time of `work` in milliseconds, each after `prepare` and with nothing of it in the cache."""
    times = []
    for n in range(WARM_UP + REPEATS):
        prepared = prepare()
        arguments = () if prepared is None else (prepared,)
        FLUSH.fill_(n)
        if DEVICE == "cpu":
            start = time.perf_counter()
            work(*arguments)
            times.append((time.perf_counter() - start) * 1e3)
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work(*arguments)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    times = times[WARM_UP:]
    return statistics.median(times), min(times), max(times)


def told(operations, times):
    """Time and rate."""
    median, least, most = times
    return f"{median:.3f} ms ({least:.3f} to {most:.3f}) {operations / median / 1e9:.0f} TFLOP/s"


def ceilings():
    """A large product and a copy: what the machine can do, once its clock has risen."""
    size, elements = (256, 1 << 18) if DEVICE == "cpu" else (8192, 1 << 28)
    a, b = (torch.randn(size, size, device=DEVICE, dtype=DTYPE) for _ in range(2))
    source = torch.randn(elements, device=DEVICE)
    target = torch.empty_like(source)
    busy = time.monotonic() + (0 if DEVICE == "cpu" else 1)
    while time.monotonic() < busy:
        (a @ b).sum().item()
    say(f"{'ceiling':<12} dense {size}^3  {told(2 * size**3, time_ms(lambda: a @ b))}")
    median, _, _ = time_ms(lambda: target.copy_(source))
    say(f"{'ceiling':<12} copy  {2 * source.nbytes / median / 1e9:.2f} TB/s")


# ---------------------------------------------------------------- measuring


def forget(layer):
    """No gradients: the next backward writes them anew."""
    for parameter in layer.parameters():
        parameter.grad = None


def check(layer, y):
    """A peer that computes something else is no peer."""
    with torch.no_grad():
        expected = loop(layer).float()
    off = ((y.float() - expected).norm() / expected.norm()).item()
    assert off < 0.02, f"differs from a product an expert by {off:.3f}"


def eager(peer, forward, layer):
    """Times of the call as it is written."""
    with torch.no_grad():
        y = forward(layer)
        if peer.checked:
            check(layer, y)
        text = f"forward {told(layer.operations, time_ms(lambda: forward(layer)))}"
    if peer.backward:

        def prepare():
            forget(layer)
            return forward(layer)

        times = time_ms(lambda y: y.backward(layer.dy), prepare)
        text += f"  backward {told(2 * layer.operations, times)}"
    return text


def recorded(work):
    """The same as a graph; the warm-up on another stream is what recording asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()
    graph.out = out
    return graph


def as_graph(peer, forward, layer):
    """Times of the recorded call."""
    with torch.no_grad():
        graph = recorded(lambda: forward(layer))
        graph.replay()
        if peer.checked:
            check(layer, graph.out)
        text = f"forward {told(layer.operations, time_ms(graph.replay))}"
    if peer.backward:

        def both():
            forget(layer)
            forward(layer).backward(layer.dy)

        text += f"  both {told(3 * layer.operations, time_ms(recorded(both).replay))}"
    return text


def run(peer, measure, label):
    """One peer on every shape."""
    try:
        forward = peer.make()
    except Exception as error:  # Whatever keeps a peer from starting is its own affair.
        say(f"{peer.name:<25} skipped, {reason(error)}")
        return False
    for name, *sizes in SHAPES:
        start = f"{name:<12} {label:<18}"
        if left() < peer.first_call:
            say(start, "skipped, out of time")
            continue
        layer = None
        try:
            layer = Layer(DEVICE, *sizes)
            say(start, measure(peer, forward, layer))
        except Exception as error:
            say(start, f"skipped, {reason(error)}")
        del layer
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    return True


def graphs_of(peer):
    """Its graphs, in a process of their own: some end it."""
    if DEVICE == "cpu":
        say(f"{peer.name:<12} graph: skipped, there are none on the CPU")
        return
    seconds = left()
    if seconds < 8:
        say(f"{peer.name:<12} graph: skipped, out of time")
        return
    command = [sys.executable, __file__, "--graph-of", peer.name]
    if seconds != float("inf"):
        command += ["--seconds", f"{seconds - 5:.0f}"]
    try:
        code = subprocess.run(command, timeout=None if seconds == float("inf") else seconds).returncode
        if code:
            say(f"{peer.name:<12} graph: skipped, its process ended with {code}")
    except subprocess.TimeoutExpired:
        say(f"{peer.name:<12} graph: skipped, out of time")


def main():
    """Everything that is installed, peer by peer."""
    if ARGUMENTS.graph_of:
        peer = next(peer for peer in PEERS if peer.name == ARGUMENTS.graph_of)
        run(peer, as_graph, f"{peer.name} graph")
        return
    device = "CPU" if DEVICE == "cpu" else torch.cuda.get_device_name()
    say(f"# {device}, {DTYPE}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
    ceilings()
    for peer in PEERS:
        if run(peer, eager, peer.name) and peer.graph:
            graphs_of(peer)


if __name__ == "__main__":
    main()
