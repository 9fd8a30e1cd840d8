"""Space to depth of channels-last images, which torch reads well and writes badly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.pixel_unshuffle import reference

OP = Op("pixel_unshuffle", backends=("native",))


def pixel_unshuffle(x: Tensor, factor: int, *, backend: Backend = "auto") -> Tensor:
    r"""(n, c, f h, f w) -> (n, c f², h, w): y[n, c f² + f dy + dx, h, w] = x[n, c, f h + dy, f w + dx]. An isometry.

    As ``torch.nn.functional.pixel_unshuffle``, which is the reference. The kernels read images whose channels are
    neighbours in memory (channels-last, and slices of their channels) and write channels-last.

    Args:
        x: (n, c, h, w) or (c, h, w), sizes divisible by factor.
        factor: at least 1.
        backend: ``"auto"``, ``"reference"`` or ``"native"``.

    Raises:
        ValueError: sizes that the factor does not divide, or a backend that cannot run here.
    """
    if factor < 1 or x.dim() not in (3, 4) or x.shape[-1] % factor or x.shape[-2] % factor:
        raise ValueError(f"x, factor={factor}: got shape {tuple(x.shape)}, expected sizes that the factor divides")
    return OPERATOR(x, factor, backend)


def _fake_unshuffle(x: Tensor, factor: int, backend: Backend) -> Tensor:
    n, channels, height, width = x.shape
    shape = n, channels * factor * factor, height // factor, width // factor
    return torch.empty_like(x.new_empty(shape), memory_format=torch.channels_last)


def _fake_shuffle(y: Tensor, factor: int, backend: Backend) -> Tensor:
    n, channels, height, width = y.shape
    shape = n, channels // (factor * factor), height * factor, width * factor
    return torch.empty_like(y.new_empty(shape), memory_format=torch.channels_last)


def _adjoint_of_unshuffle(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return _shuffle(gradient, *ctx.options), None, None


def _adjoint_of_shuffle(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return OPERATOR(gradient, *ctx.options), None, None


def _unshuffled_plainly(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return reference.pixel_shuffle(gradient, ctx.options[0]), None, None


def _shuffled_plainly(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return reference.pixel_unshuffle(gradient, ctx.options[0]), None, None


# Each is the adjoint and the inverse of the other.
# pixel_unshuffle(x, factor, backend).
OPERATOR = OP.main(
    "pixel_unshuffle(Tensor x, int factor, str backend) -> Tensor",
    reference=reference.pixel_unshuffle,
    fake=_fake_unshuffle,
    keeps=("factor", "backend"),
    backward=_adjoint_of_unshuffle,
    plain_backward=_unshuffled_plainly,
    twice=True,
)
_shuffle = OP.define(
    "pixel_shuffle(Tensor y, int factor, str backend) -> Tensor",
    fake=_fake_shuffle,
    keeps=("factor", "backend"),
    backward=_adjoint_of_shuffle,
    plain_backward=_shuffled_plainly,
    twice=True,
)
