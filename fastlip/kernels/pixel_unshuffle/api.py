"""Space to depth of channels-last images, which torch reads well and writes badly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.pixel_unshuffle import reference

OP = Op("pixel_unshuffle", backends=("native", "triton"))


def pixel_unshuffle(x: Tensor, factor: int, *, backend: Backend = "auto") -> Tensor:
    r"""Moves each f x f patch of an image into channels (space to depth), an isometry.

    .. math:: y_{n,\, c f^2 + f\, dy + dx,\, h,\, w} = x_{n,\, c,\, f h + dy,\, f w + dx}

    The reference is ``torch.nn.functional.pixel_unshuffle``. The kernels read images whose channels are neighbours in
    memory (channels-last images, and slices of their channels) and write channels-last images.

    Args:
        x: (n, c, f h, f w) or (c, f h, f w).
        factor: f, at least 1.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        (n, c f², h, w) or (c f², h, w).

    Raises:
        ValueError: factor does not divide the sizes of x, or the backend is unknown or cannot run here.

    >>> fastlip.ops.pixel_unshuffle(torch.arange(4.0).view(1, 2, 2), 2).flatten()
    tensor([0., 1., 2., 3.])
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
