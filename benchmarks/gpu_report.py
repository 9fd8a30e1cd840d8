"""Achieved bandwidth and FLOP rates of kernels on one device, beside a copy's, eager PyTorch's, and the floors.

    python benchmarks/gpu_report.py [--only NAME ...] [--device cuda] [--batch 256] [--rounds 50] [--output FILE]

Floors in µs assume an H100: 3 TB/s and 133 TFLOP/s of 3xTF32 products. JSON, with machine, versions and commit; what
FILE holds of other kernels stays in it, so that each can be measured by a process of its own.
"""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from fastlip import nn as lip
from fastlip import ops

SHAPES = ((64, 32), (128, 16), (256, 8), (512, 4))
BANDWIDTH, PRODUCTS = 3e12, 133e12


def median_seconds(step, device, rounds):
    """Median time of a step: by device events on CUDA, after warming up; by the clock elsewhere."""
    for _ in range(3):
        step()
    if device.type != "cuda":
        return statistics.median(_clock(step) for _ in range(rounds))
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _clock(step):
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def maxmin(device, time_of, batch, channels, side):
    x = torch.randn(batch, channels, side, side, device=device)
    moved = 8 * x.numel()
    seconds = time_of(lambda: ops.maxmin(x))
    return {"µs": 1e6 * seconds, "floor µs": 1e6 * moved / BANDWIDTH, "bytes/s": moved / seconds}


def gram_rowsum(device, time_of, batch, channels, side):
    weight = torch.randn(channels, channels, 3, 3, device=device).requires_grad_()
    products = 81 * channels**3  # half of the offsets, the overlapping taps only, two operations each

    def step(backend):
        ops.gram_rowsum(weight, backend=backend).sum().backward()

    forward = time_of(lambda: ops.gram_rowsum(weight.detach()))
    ours, eager = time_of(lambda: step("auto")), time_of(lambda: step("reference"))
    return {
        "µs": 1e6 * forward,
        "floor µs": 1e6 * products / PRODUCTS,
        "flop/s": products / forward,
        "training: eager / ours": eager / ours,
    }


def sll_layer(device, time_of, batch, channels, side):
    layer = lip.SLLConv2d(channels, channels, 3, device=device)
    x = torch.randn(batch, channels, side, side, device=device)
    kernel = layer.kernel.detach()

    def bare():
        F.conv2d(F.conv2d(x, kernel, padding=1), kernel, padding=1)

    with torch.no_grad():
        ours, two = time_of(lambda: layer(x)), time_of(bare)
    products = 36 * channels**2 * x[:, 0].numel()
    return {"µs": 1e6 * ours, "floor µs": 1e6 * products / PRODUCTS, "two bare convolutions": ours / two}


def cayley(device, time_of, batch, channels, side):
    count = (side * side + 4) // 2 if side > 1 else 1
    M = torch.randn(count, channels, channels, dtype=torch.complex64, device=device) / channels**0.5
    leaf, G = M.clone().requires_grad_(), torch.randn_like(M)
    identity = torch.eye(channels, dtype=M.dtype, device=device)

    def solve():
        A = M - M.mH
        torch.linalg.solve(identity + A, identity - A)

    def training(backend):
        torch.autograd.grad(ops.cayley(leaf, backend=backend), leaf, G)

    products = 8 * count * channels**3
    ours, other = time_of(lambda: ops.cayley(M)), time_of(solve)
    return {
        "µs": 1e6 * ours,
        "floor µs": 1e6 * products / PRODUCTS,
        "flop/s": products / ours,
        "solve / ours": other / ours,
        "training: eager / ours": time_of(lambda: training("reference")) / time_of(lambda: training("auto")),
    }


def spectral_conv(device, time_of, batch, channels, side):
    count = (side * side + 4) // 2 if side > 1 else 1
    x = torch.randn(batch, channels, side, side, device=device).requires_grad_()
    Q = (
        torch.randn(count, channels, channels, dtype=torch.complex64, device=device) / channels**0.5
    ).requires_grad_()
    weight = torch.randn(channels, channels, 3, 3, device=device).requires_grad_()
    G = torch.randn_like(x)

    def training(backend):
        torch.autograd.grad(ops.spectral_conv(x, Q, backend=backend), (x, Q), G)

    def plain():
        torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), G)

    products = 8 * count * channels**2 * batch
    with torch.no_grad():
        forward = time_of(lambda: ops.spectral_conv(x, Q))
        conv2d = time_of(lambda: F.conv2d(x, weight, padding=1))
    ours = time_of(lambda: training("auto"))
    return {
        "µs": 1e6 * forward,
        "floor µs, products alone": 1e6 * products / PRODUCTS,
        "ours / conv2d": forward / conv2d,
        "training: ours / conv2d": ours / time_of(plain),
        "training: eager / ours": time_of(lambda: training("reference")) / ours,
    }


def conv_chain(device, time_of, batch, channels, side):
    weight = torch.randn(channels, channels, 3, 3, device=device) / (3 * channels**0.5)
    bias, image = torch.randn(channels, device=device), torch.randn(batch, channels, side, side, device=device)
    leaves = [image.contiguous(memory_format=torch.channels_last), weight, bias]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    G = torch.randn_like(leaves[0])

    def training(backend):
        x, w, b = leaves
        torch.autograd.grad(ops.conv_chain(x, [w, w], [b, b], backend=backend), leaves, G)

    ours = time_of(lambda: training("auto"))
    floor = 6 * 18 * channels**2 * image[:, 0].numel() / PRODUCTS
    eager = time_of(lambda: training("reference"))
    return {"training µs": 1e6 * ours, "floor µs": 1e6 * floor, "training: eager / ours": eager / ours}


def copy(device, time_of, batch, channels, side):
    """Of one tensor to another: what "bytes/s" of other kernels can be compared with."""
    source = torch.randn(batch, channels, side, side, device=device)
    target = torch.empty_like(source)
    moved = 8 * source.numel()
    seconds = time_of(lambda: target.copy_(source))
    return {"µs": 1e6 * seconds, "floor µs": 1e6 * moved / BANDWIDTH, "bytes/s": moved / seconds}


MEASURES = {
    measure.__name__: measure for measure in (copy, maxmin, gram_rowsum, sll_layer, cayley, spectral_conv, conv_chain)
}


def machine(device, commit):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    return {"device": name, **versions, "commit": commit or checked_out()}


def checked_out():
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "rev-parse", "HEAD"]
    return (
        subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip() or "unknown"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MEASURES, action="append")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--commit", help="for machines that have no git")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)

    def time_of(step):
        return median_seconds(step, device, options.rounds)

    report = json.loads(options.output.read_text()) if options.output and options.output.exists() else {}
    report |= machine(device, options.commit)
    for name in options.only or MEASURES:
        for channels, side in SHAPES:
            figures = MEASURES[name](device, time_of, options.batch, channels, side)
            report[f"{name} c={channels} s={side}"] = figures
            print(name, channels, side, json.dumps(figures, ensure_ascii=False), flush=True)
            if options.output:
                options.output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
