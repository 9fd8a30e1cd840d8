"""Kernels and layers on a GPU: seconds, bytes/s and FLOP/s over what the device reaches, next to eager PyTorch.

    python benchmarks/gpu_report.py [--only NAME ...] [--compiled | --cases] [--dry-run] [--output FILE]

Each measure is timed by replays of CUDA graphs, forward and in training: "ours" (what ``"auto"`` picks), every
backend of its own, the reference in eager mode with cuDNN, compiled with --compiled, and the plain convolution in
IEEE and in TF32. --cases: the benchmark cases of every op instead. FILE keeps what it has of other measures.
--dry-run runs everything once on small tensors on a CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gpu_clock
import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip import nn as lip
from fastlip import ops, testing
from fastlip.kernels.common.case import Case
from fastlip.kernels.common.dispatch import registered
from fastlip.kernels.common.precision import everything_ieee

SHAPES = ((64, 32), (128, 16), (256, 8), (512, 4))
COMPILED_SHAPES = ((128, 16),)
DRY_SHAPES = ((4, 4),)
LAYERS = ("AOL", "Cayley", "AOC", "SLL", "CPL", "LOT", "BCOP", "SOC", "BRO")


@dataclass
class Measured:
    """What is timed at one shape.

    Args:
        function: takes a backend; returns the output, differentiable in the leaves.
        leaves: what gradients are taken of.
        op: whose backends are timed one by one; empty: only ``"auto"`` and the reference.
        moved: bytes that a forward has to move.
        products: multiply-adds times two of a forward.
        plain: another function of the leaves that is timed in IEEE and in TF32, such as the plain convolution.
        rivals: other ways to compute the same, by name.
    """

    function: Callable[[str], Tensor]
    leaves: list[Tensor]
    op: str = ""
    moved: int = 0
    products: int = 0
    plain: Callable[[], Tensor] | None = None
    rivals: dict[str, Callable[[], Tensor]] = field(default_factory=dict)


def images(device: torch.device, batch: int, channels: int, side: int) -> Tensor:
    x = torch.randn(batch, channels, side, side, device=device)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def kernel_of(device: torch.device, channels: int) -> Tensor:
    return (torch.randn(channels, channels, 3, 3, device=device) / (3 * channels**0.5)).requires_grad_()


def frequencies(side: int) -> int:
    return (side * side + 4) // 2 if side > 1 else 1


def matrices(device: torch.device, channels: int, side: int) -> Tensor:
    shape = frequencies(side), channels, channels
    return (torch.randn(shape, dtype=torch.complex64, device=device) / channels**0.5).requires_grad_()


def maxmin(device: torch.device, batch: int, channels: int, side: int) -> Measured:
    x = images(device, batch, channels, side)
    return Measured(lambda backend: ops.maxmin(x, backend=backend), [x], "maxmin", moved=8 * x.numel())


def gram_rowsum(device: torch.device, batch: int, channels: int, side: int) -> Measured:
    w = kernel_of(device, channels)
    products = 81 * channels**3  # half of the offsets, the overlapping taps only, two operations each
    return Measured(lambda backend: ops.gram_rowsum(w, backend=backend), [w], "gram_rowsum", products=products)


def cayley(device: torch.device, batch: int, channels: int, side: int) -> Measured:
    M = matrices(device, channels, side)
    identity = torch.eye(channels, dtype=M.dtype, device=device)

    def solve() -> Tensor:
        A = M - M.mH
        return torch.linalg.solve(identity + A, identity - A)

    products = 8 * len(M) * channels**3
    function = partial(_call, ops.cayley, M)
    return Measured(function, [M], "cayley", products=products, rivals={"solve": solve})


def polar(device: torch.device, batch: int, channels: int, side: int) -> Measured:
    M = matrices(device, channels, side)
    return Measured(partial(_call, ops.polar, M), [M], "polar", products=8 * len(M) * channels**3)


def spectral_conv(device: torch.device, batch: int, channels: int, side: int) -> Measured:
    x, w, Q = images(device, batch, channels, side), kernel_of(device, channels), matrices(device, channels, side)
    X = torch.randn(len(Q), channels, batch, dtype=Q.dtype, device=device)
    return Measured(
        lambda backend: ops.spectral_conv(x, Q, backend=backend),
        [x, Q],
        "spectral_conv",
        moved=8 * x.numel() + 8 * Q.numel(),
        products=8 * len(Q) * channels**2 * batch,
        plain=lambda: F.conv2d(x, w, padding=1),
        rivals={"mixing by torch.bmm": lambda: torch.bmm(Q, X)},
    )


def conv_chain(device: torch.device, batch: int, channels: int, side: int) -> Measured:
    x, w, bias = (
        images(device, batch, channels, side),
        kernel_of(device, channels),
        torch.zeros(channels, device=device),
    )
    return Measured(
        lambda backend: ops.conv_chain(x, [w, w], [bias, bias], backend=backend),
        [x, w],
        "conv_chain",
        products=36 * channels**2 * x[:, 0].numel(),
        plain=lambda: F.conv2d(F.conv2d(x, w, padding=1), w, padding=1),
    )


def layer(name: str, device: torch.device, batch: int, channels: int, side: int) -> Measured:
    """A layer's forward with its parametrization, next to its convolution; of residual layers next to their two."""
    kind = getattr(lip, f"{name}Conv2d")
    options = {"training_sigma": "power"} if name == "CPL" else {}
    made = {
        which: kind(channels, channels, 3, backend=which, device=device, **options) for which in ("auto", "reference")
    }
    made["reference"].load_state_dict(made["auto"].state_dict())
    x, w = images(device, batch, channels, side), kernel_of(device, channels)

    def plain() -> Tensor:
        y = F.conv2d(x, w, padding=1)
        return F.conv2d(y, w, padding=1) if name in ("SLL", "CPL") else y

    leaves = [x, *(p for module in made.values() for p in module.parameters())]
    return Measured(lambda backend: made[backend](x), leaves, plain=plain)


def _call(function: Callable[..., Tensor], argument: Tensor, backend: str) -> Tensor:
    return function(argument, backend=backend)


OPS = (maxmin, gram_rowsum, cayley, polar, spectral_conv, conv_chain)
MEASURES: dict[str, Callable[..., Measured]] = {
    **{measure.__name__: measure for measure in OPS},
    **{f"layer {name}": partial(layer, name) for name in LAYERS},
}


def contestants(measured: Measured, compiles: bool) -> Iterator[tuple[str, Callable[[], Tensor], str]]:
    """Name, function and precision of all that is timed of a measure."""
    if compiles:
        torch._dynamo.reset()
        yield "compiled reference", torch.compile(lambda: measured.function("reference"), dynamic=False), "ieee"
        return
    yield "ours", lambda: measured.function("auto"), "ieee"
    yield "eager", lambda: measured.function("reference"), "ieee"
    for backend in registered[measured.op].backends if measured.op else ():
        if not _refusal(measured, backend):
            yield f"backend {backend}", lambda backend=backend: measured.function(backend), "ieee"
    for name, rival in measured.rivals.items():
        yield name, rival, "ieee"
    if measured.plain is not None:
        for precision in gpu_clock.PRECISIONS:
            yield f"plain {precision}", measured.plain, precision


def _refusal(measured: Measured, backend: str) -> str:
    try:
        measured.function(backend)
    except ValueError as error:
        if "cannot run here" in str(error):
            return str(error)
        raise
    return ""


def agree(measured: Measured) -> None:
    """RuntimeError if what is timed is wrong, in full precision as all gates; tests/ops has the strict one."""
    with everything_ieee(), torch.no_grad():
        ours, theirs = (measured.function(backend) for backend in ("auto", "reference"))
    if ours.numel() and not bool((ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()):
        raise RuntimeError("ours and the reference disagree: nothing is timed")


def figures(clock: gpu_clock.Clock, measured: Measured, top: dict[str, float], compiles: bool) -> dict[str, Any]:
    """Microseconds of every contestant, rates of ours, and ratios to ours."""
    found: dict[str, Any] = {}
    for name, function, precision in contestants(measured, compiles):
        with gpu_clock.precision_of_products(precision):
            with torch.no_grad():
                forward, how = clock.timed(function)
            training, how_trained = clock.timed(partial(_train, function, measured.leaves))
        found[name] = {"forward µs": 1e6 * forward, "training µs": 1e6 * training, "clock": f"{how}, {how_trained}"}
    if "ours" in found:
        seconds = found["ours"]["forward µs"] / 1e6
        found["of measured copy"] = measured.moved / seconds / top["copy bytes/s"]
        found["of measured ieee product"] = measured.products / seconds / top["ieee flop/s"]
    return found


def _train(function: Callable[[], Tensor], leaves: list[Tensor]) -> Any:
    y = function()
    return torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True) if y.requires_grad else y


def shapes_of(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Callable[[], Measured]]]:
    """The chosen measures at the networks' shapes."""
    shapes = DRY_SHAPES if options.dry_run else COMPILED_SHAPES if options.compiled else SHAPES
    batch = 2 if options.dry_run else options.batch
    for name in options.only or MEASURES:
        for channels, side in shapes:
            yield f"{name} c={channels} s={side}", partial(MEASURES[name], device, batch, channels, side)


def cases_of(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Callable[[], Measured]]]:
    """The benchmark cases of every op; in a dry run the first small case of each."""
    seen: set[str] = set()
    for op_name, case_name, case in testing.op_cases(bench=not options.dry_run):
        if options.dry_run and (op_name in seen or 0 in [n for shape in case.shapes.values() for n in shape]):
            continue
        seen.add(op_name)
        yield f"{op_name} {case_name}", partial(_of_case, op_name, case, device)


def _of_case(op_name: str, case: Case, device: torch.device) -> Measured:
    leaves = {name: tensor.requires_grad_() for name, tensor in case.make(torch.float32, str(device)).items()}
    baselines = getattr(testing.cases_of(op_name), "BASELINES", {})
    return Measured(
        lambda backend: testing.call(op_name, backend, case, leaves),
        list(leaves.values()),
        op_name,
        rivals={name: partial(_rival, rival, case, leaves) for name, rival in baselines.items()},
    )


def _rival(rival: Callable[..., Tensor], case: Case, leaves: dict[str, Tensor]) -> Tensor:
    return rival(**case.arguments(leaves))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MEASURES, action="append")
    parser.add_argument("--compiled", action="store_true", help="time the compiled reference, at one shape")
    parser.add_argument("--cases", action="store_true", help="time the benchmark cases of every op")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, at a small shape")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=480, help="after which nothing further is begun")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    device = torch.device("cpu" if options.dry_run else "cuda")
    clock = gpu_clock.Clock(device, 1 if options.dry_run else options.rounds)
    report = json.loads(options.output.read_text()) if options.output and options.output.exists() else {}
    top = gpu_clock.reached(clock, small=options.dry_run)
    report |= {**gpu_clock.about(device), "commit": options.commit, "reached": top}
    for key, make in cases_of(options, device) if options.cases else shapes_of(options, device):
        if time.monotonic() - started > options.seconds:
            report.setdefault("no time left for", []).append(key)
            print(f"no time left for {key}")
        else:
            measured = make()
            agree(measured)
            row = figures(clock, measured, top, options.compiled and not options.dry_run)
            report[key] = report.get(key, {}) | row
            print(key, json.dumps(row, ensure_ascii=False), flush=True)
        if options.output:
            options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
