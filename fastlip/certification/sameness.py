"""What is bounded must be what runs: a fixed function of each sample alone, and that of the whole model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlip.certification.rounding import norms
from fastlip.certification.unfolding import batch_like, innermost, run
from fastlip.kernels.common.precision import autocasts

# Of the rounding of one module, in units of eps (L |x| + |y|): kernels differ with the size of a batch.
_UNITS = 64
_MORE = 3  # samples, beside those that are followed
_LARGEST_SHARE = 0.1  # in few bits
_TF32 = 2.0**-10


def rounding_of(bound: float, x: Tensor, y: Tensor) -> Tensor:
    """(n,): by how much two ways of computing y = f(x) may differ, for a function of Lipschitz constant ``bound``."""
    dtype = torch.get_autocast_dtype(x.device.type) if autocasts(x.device) else None
    eps = max(torch.finfo(kind).eps for kind in (x.dtype, y.dtype, dtype or y.dtype))
    if x.is_cuda and eps < _TF32 and y.dtype != torch.float64:
        eps = _TF32
    return min(_UNITS * eps, _LARGEST_SHARE) * (bound * norms(x) + norms(y))


def check_samples(name: str, module: nn.Module, bound: float, x: Tensor, y: Tensor) -> None:
    """ValueError unless the module is a fixed function of each sample alone: y is its output for the batch x.

    It is evaluated again, beside other samples, on one sample and on a larger batch.
    """
    what = f"layer {name!r} ({type(module).__name__})"
    allowed = rounding_of(bound, x, y)
    again = run(name, module, x)
    _require(what, "two evaluations of the same samples differ: it is no fixed function", again, y, allowed)
    others = batch_like(module, _MORE, tuple(x.shape[1:]), seed=1).to(x)
    beside = torch.cat((x[:1], others[: len(x) - 1]))
    mixes = "the output of a sample depends on the other samples of its batch: it mixes samples"
    _require(what, mixes, run(name, module, beside)[:1], y[:1], allowed[:1])
    sizes = "the output of a sample depends on the number of samples of its batch"
    for batch in (x[:1], torch.cat((x, others))):
        rows = min(len(batch), len(x))
        found = run(name, module, batch)
        if not isinstance(found, Tensor) or found.shape[:1] != batch.shape[:1]:
            raise ValueError(f"{what}: its output for {len(batch)} samples is no tensor of as many samples")
        _require(what, sizes, found[:rows], y[:rows], allowed[:rows])


def check_whole(model: nn.Module, x: Tensor, y: Tensor, allowed: Tensor) -> None:
    """ValueError unless the model's own output for x is y, that of the layers into which it was taken apart."""
    whole = run("model", model, x)
    what = "its layers, one after the other, compute something else than the model: by up to {difference:.3g}"
    _require("model", what + " (autocast, random numbers or Python code inside a forward)", whole, y, allowed)


def check_fixed(found: Tensor, expected: Tensor, logits: Tensor, where: str) -> None:
    """ValueError unless images evaluated by themselves have the outputs that they had among the logits of a batch.

    Without an audit nothing bounds the rounding: half of the digits must agree, counted from the largest logit.
    """
    allowed = torch.finfo(logits.dtype).eps ** 0.5 * logits.double().abs().amax() * logits.shape[1] ** 0.5
    what = "the outputs for an image differ between evaluations: the model is random, or mixes the images of a batch"
    _require(where, what, found, expected, allowed.expand(len(expected)))


def check_same_outputs(model: nn.Module, copied: nn.Module, x: Tensor) -> None:
    """ValueError if a copy computes something else than the model: outputs for x, from the same random numbers."""
    outputs = []
    for module in (model, copied):
        with torch.random.fork_rng(devices=[x.device.index] if x.is_cuda and x.device.index is not None else []):
            torch.manual_seed(0)
            outputs.append(run("model", module, x))
    what = "its outputs differ from the model's by {difference:.3g}"
    if isinstance(outputs[0], Tensor):
        _require("export", what, outputs[1], outputs[0], rounding_of(1.0, x, outputs[0]))


def check_batch_outputs(index: int, model: nn.Module, x: Tensor, outputs: Tensor, error: Tensor) -> None:
    """ValueError unless the model gives the outputs of its layers for a batch, and for its first sample alone.

    ``error`` (n,): the bound of either one's error in L2 norm.
    """
    where, inner = f"batch {index}", innermost(model)
    what = "the model's outputs are not those of the layers that were audited: they differ by up to {difference:.3g}"
    _require(where, what, run("model", inner, x), outputs, 2 * error)
    alone = run("model", inner, x[:1])
    _require(where, "the outputs depend on the number of samples of the batch", alone, outputs[:1], 2 * error[:1])


def _require(what: str, why: str, found: Any, expected: Tensor, allowed: Tensor) -> None:
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{what}: {why.split(':')[0]}: got {shape}, expected {tuple(expected.shape)}")
    if torch.equal(found, expected):
        return
    difference = norms(found.double() - expected.double())
    # NaN is the same NaN here: whoever computes with values refuses it.
    rows = len(found), -1
    both = found.isnan().reshape(rows).any(1) & expected.isnan().reshape(rows).any(1)
    if not ((difference <= allowed) | both).all():
        raise ValueError(f"{what}: {why.format(difference=difference.max().item())}")
