"""Checks that what is bounded is what runs: a fixed function of each sample alone, and that of the whole model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fastlip.inspection.running import failure, innermost, run
from fastlip.kernels.common.precision import autocasts

# Allowance for the rounding of one module, in units of eps (L |x| + |y|): kernels differ with the size of a batch.
_UNITS = 64
_LARGEST_SHARE = 0.1  # of L |x| + |y|, in types of few bits
_TF32 = 2.0**-10
_SIZES = "the output of a sample depends on the number of samples of its batch, or on its place among them"
_ELSE = (
    "its layers, one after the other, compute something else than the model: by up to {difference:.3g} "
    "(autocast, random numbers or Python code inside a forward)"
)


def norms(x: Tensor) -> Tensor:
    """(n,): the L2 norm of each sample, in float64."""
    return torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1, dtype=torch.float64)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype to which autocast rounds products on a device; None where it is off."""
    return torch.get_autocast_dtype(device.type) if autocasts(device) else None


def rounding_of(bound: float, x: Tensor, y: Tensor, autocast: torch.dtype | None = None) -> Tensor:
    """(n,): by how much two ways of computing y = f(x) may differ, for a function of Lipschitz constant ``bound``."""
    return allowance(x.dtype, y.dtype, autocast, x.is_cuda) * (bound * norms(x) + norms(y))


@cache
def allowance(x: torch.dtype, y: torch.dtype, autocast: torch.dtype | None, is_cuda: bool) -> float:
    """The factor of L |x| + |y| in :func:`rounding_of`, for inputs and outputs of these dtypes."""
    eps = max(torch.finfo(x).eps, torch.finfo(y).eps, torch.finfo(autocast or y).eps)
    if is_cuda and eps < _TF32 and y != torch.float64:
        eps = _TF32
    return min(_UNITS * eps, _LARGEST_SHARE)


def check_samples(name: str, module: nn.Module, x: Tensor, y: Tensor, allowed: Tensor) -> None:
    """Raises ValueError unless the module is a fixed function of each sample alone: y is its output for the batch x.

    x has two samples. The module is evaluated on a larger batch, where they have other places and neighbours. Only if
    the outputs differ, more evaluations tell why.
    """
    others = torch.randn((3, *x.shape[1:]), generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(x)
    batch, places = torch.cat((x[:1], others[:2], x[1:], others[2:])), [0, 3]
    try:
        found = module(batch)
    except RuntimeError as error:
        raise failure(name, module, batch, error) from error
    count = len(batch)
    if isinstance(found, Tensor) and found.shape[:1] == (count,):
        part = found[places]
        if torch.equal(part, y) or not _difference(part, y, allowed):
            return
    _tell_why(name, module, x, y, allowed, others)
    what = f"layer {name!r} ({type(module).__name__})"
    if not isinstance(found, Tensor) or found.shape[:1] != (count,):
        raise ValueError(f"{what}: its output for {count} samples is no tensor of as many samples")
    _require(what, _SIZES, found[places], y, allowed)


def _tell_why(name: str, module: nn.Module, x: Tensor, y: Tensor, allowed: Tensor, others: Tensor) -> None:
    """Raises ValueError if the same samples give other outputs, or the first sample next to another one."""
    what = f"layer {name!r} ({type(module).__name__})"
    again = run(name, module, x)
    _require(what, "two evaluations of the same samples differ: it is no fixed function", again, y, allowed)
    mixes = "the output of a sample depends on the other samples of its batch: it mixes samples"
    _require(what, mixes, run(name, module, torch.cat((x[:1], others[:1])))[:1], y[:1], allowed[:1])


def check_whole(model: nn.Module, x: Tensor, y: Tensor, allowed: Tensor) -> None:
    """Raises ValueError unless the model's own output for x is y, that of the layers it was taken apart into."""
    whole = run("model", model, x)
    _require("model", _ELSE, whole, y, allowed)


def check_alone(
    model: nn.Module, layers: Sequence[tuple[str, nn.Module]], x: Tensor, y: Tensor, allowed: Tensor
) -> None:
    """Raises ValueError unless the model's own output for the last sample alone is that of its layers for all of x.

    The error names the first of the layers whose output for a sample alone differs.
    """
    found = run("model", model, x[-1:])
    if isinstance(found, Tensor) and not _difference(found, y[-1:], allowed[-1:]):
        return
    among, alone = x, x[-1:]
    for name, module in layers:
        among, alone = run(name, module, among), run(name, module, alone)
        _require(f"layer {name!r} ({type(module).__name__})", _SIZES, alone, among[-1:], allowed[-1:])
    _require("model", _ELSE, found, y[-1:], allowed[-1:])


def check_fixed(found: Tensor, expected: Tensor, logits: Tensor, where: str) -> None:
    """Raises ValueError unless images evaluated alone have the outputs that they had among the logits of a batch.

    Without an audit nothing bounds the rounding: half of the digits must agree, counted from the largest logit.
    """
    allowed = torch.finfo(logits.dtype).eps ** 0.5 * logits.double().abs().amax() * logits.shape[1] ** 0.5
    what = "the outputs for an image differ between evaluations: the model is random, or mixes the images of a batch"
    _require(where, what, found, expected, allowed.expand(len(expected)))


def check_same_outputs(model: nn.Module, copied: nn.Module, x: Tensor) -> None:
    """Raises ValueError if a copy's outputs for x, from the same random numbers, are not those of the model."""
    outputs = []
    for module in (model, copied):
        with torch.random.fork_rng(devices=[x.device.index] if x.is_cuda and x.device.index is not None else []):
            torch.manual_seed(0)
            outputs.append(run("model", module, x))
    what = "its outputs differ from the model's by {difference:.3g}"
    if isinstance(outputs[0], Tensor):
        allowed = rounding_of(1.0, x, outputs[0], autocast_dtype(x.device))
        _require("export", what, outputs[1], outputs[0], allowed)


def check_batch_outputs(
    index: int, model: nn.Module, x: Tensor, outputs: Tensor, error: Tensor, known: Tensor | None = None
) -> None:
    """Raises ValueError unless the model gives the outputs of its layers for a batch, and for its first sample alone.

    ``error`` (n,) bounds the error of either one in L2 norm. ``known`` (1, ...), where given, are the outputs of the
    first sample in a batch of another size, and spare another evaluation.
    """
    where, inner = f"batch {index}", innermost(model)
    what = "the model's outputs are not those of the layers that were audited: they differ by up to {difference:.3g}"
    _require(where, what, run("model", inner, x), outputs, 2 * error)
    alone = run("model", inner, x[:1]) if known is None else known
    _require(where, "the outputs depend on the number of samples of the batch", alone, outputs[:1], 2 * error[:1])


def _require(what: str, why: str, found: Any, expected: Tensor, allowed: Tensor) -> None:
    """Raises ValueError unless found is expected up to what is allowed for each sample."""
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{what}: {why.split(':')[0]}: got {shape}, expected {tuple(expected.shape)}")
    if not torch.equal(found, expected) and (difference := _difference(found, expected, allowed)):
        raise ValueError(f"{what}: {why.format(difference=difference)}")


def _difference(found: Tensor, expected: Tensor, allowed: Tensor) -> float:
    """The largest difference if it exceeds what is allowed for a sample, or if the shapes differ; else 0."""
    if found.shape != expected.shape:
        return math.inf
    # Infinities of one sign are the same.
    difference = norms((found.double() - expected.double()).masked_fill(found == expected, 0))
    # NaN is the same NaN here: whoever computes with values refuses it.
    rows = len(found), -1
    both = found.isnan().reshape(rows).any(1) & expected.isnan().reshape(rows).any(1)
    return 0.0 if ((difference <= allowed) | both).all() else difference.max().item()
