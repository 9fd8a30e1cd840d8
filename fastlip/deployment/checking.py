"""Whether an exported file computes what it was made of, before it is written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastlip.certification.certificates.margins import TINY
from fastlip.certification.certificates.slopes import SQRT2
from fastlip.deployment.formats import OUTPUTS, Format, Program, run
from fastlip.inspection.evaluation import evaluating
from fastlip.inspection.running import batch_like
from fastlip.inspection.sameness import rounding_of
from fastlip.inspection.traces import no_trace

_BATCHES = 1, 5  # sizes with which a file is checked
_SMALL = 1e-5  # relative: radii are rounded to float32


def check_file(
    model: nn.Module, network: nn.Module, kind: Format, data: bytes, input_shape: tuple[int, ...], lipschitz: float
) -> tuple[float, Program]:
    """The largest difference of a file's scores and the model's on random samples, and what ran the file.

    Args:
        model: what was exported.
        network: the module that was written: scores, or scores and radii.
        kind: the format.
        data: the content of the file.
        input_shape: the shape of one sample.
        lipschitz: a bound of the network's Lipschitz constant in L2 norm.

    Raises:
        ValueError: the file gives other outputs than the network, beyond rounding.
    """
    largest = 0.0
    ran_by: Program = "torch"
    for count in _BATCHES:
        x = batch_like(model, count, input_shape)
        with torch.no_grad(), evaluating(model), no_trace(model):
            expected, found = model(x.clone()), network(x)
        outputs: Sequence[Tensor] = found if isinstance(found, tuple) else (found,)
        if (ran := run(kind, data, x)) is not None:
            _compare(kind, network, outputs, ran[0], rounding_of(lipschitz, x, outputs[0]))
            outputs, ran_by = ran
        largest = max(largest, (outputs[0].to(expected) - expected).abs().amax().item())
    return largest, ran_by


def _compare(
    kind: Format, network: nn.Module, outputs: Sequence[Tensor], ran: Sequence[Tensor], rounding: Tensor
) -> None:
    """ValueError unless a file's outputs are the network's, whose scores have roundings (n,) of that size."""
    expected, got = ([tuple(output.shape) for output in each] for each in (outputs, ran))
    if got != expected:
        raise ValueError(f"format={kind!r}: the file has outputs of the shapes {got}, expected {expected}")
    allowed = [rounding]
    if len(outputs) > 1:  # a margin changes by at most sqrt 2 times what the scores do
        slopes = network.get_buffer("slopes")
        others = ~torch.eye(len(slopes), dtype=torch.bool, device=slopes.device)
        allowed.append(SQRT2 * rounding / slopes[others].min().clamp_min(TINY) + _SMALL * outputs[1].double())
    for name, one, other, most in zip(OUTPUTS, ran, outputs, allowed, strict=False):
        difference = (one.to(other) - other).reshape(len(other), -1).double().norm(dim=1)
        if not (difference <= most).all():
            raise ValueError(
                f"format={kind!r}: {name} of the file differ from the network's by {difference.amax():.3g}, more "
                f"than rounding explains ({most.amin():.3g})"
            )
