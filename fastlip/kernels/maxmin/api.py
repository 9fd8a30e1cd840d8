"""MaxMin activation, forward and backward with one saved bit per pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.checks import kind_of
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend, Pairing
from fastlip.kernels.maxmin import reference

PAIRINGS = ("adjacent", "halves")
FORMATS = (torch.contiguous_format, torch.channels_last)
OP = Op("maxmin")


def maxmin(x: Tensor, pairing: Pairing = "adjacent", dim: int = 1, *, backend: Backend = "auto") -> Tensor:
    r"""Sorts pairs of channels: (a, b) becomes (max(a, b), min(a, b)).

    MaxMin permutes the entries of each input, hence it is 1-Lipschitz and preserves gradient norms (Anil, Lucas,
    Grosse, *Sorting out Lipschitz function approximation*, ICML 2019). If a = b, the entry with the lower index is
    the maximum.

    Args:
        x: at least two dimensions, any floating dtype and memory format.
        pairing: ``"adjacent"`` (default) pairs the channels 2i and 2i + 1, ``"halves"`` pairs i and i + c // 2.
        dim: the dimension of the channels, default 1. An odd last channel is left as it is.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        The shape, dtype and memory format of x.

    Raises:
        TypeError: x is not a floating-point tensor.
        ValueError: x has one dimension or none, pairing or dim are not allowed, or the backend is unknown or cannot
            run here.

    >>> fastlip.ops.maxmin(torch.tensor([[1.0, 3.0, 5.0, 2.0, 7.0]]))
    tensor([[3., 1., 5., 2., 7.]])
    """
    return OPERATOR(x, pairing, check(x, pairing, dim), backend)


def check(x: Tensor, pairing: Pairing, dim: int) -> int:
    """Returns dim as a number from 0; TypeError or ValueError for arguments that are not allowed."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x: got {kind_of(x)}, expected a floating-point tensor")
    dims = x.dim()
    if dims < 2:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected at least two dimensions")
    if not -dims <= dim < dims:
        raise ValueError(f"dim={dim}: allowed are {-dims} to {dims - 1} for shape {tuple(x.shape)}")
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing={pairing!r}: allowed are {', '.join(map(repr, PAIRINGS))}")
    return dim % dims


def dense_format(x: Tensor, dim: int) -> torch.memory_format:
    """The memory format that kernels read and write: channels-last where x is, otherwise contiguous."""
    if x.is_contiguous() or x.dim() != 4 or dim != 1:
        return torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def layout(x: Tensor, dim: int) -> tuple[int, int, int, int]:
    """x as (outer, channels, inner) in memory, channels-last images with inner = 1; and the bytes of its bit mask."""
    return layout_of(x.shape, dim, dense_format(x, dim) is torch.channels_last)


def layout_of(shape: Sequence[int], dim: int, last: bool) -> tuple[int, int, int, int]:
    """As :func:`layout`. Each run of pairs along memory (csrc/maxmin) starts a byte.

    Args:
        shape: that of x.
        dim: the axis of the pairs.
        last: whether it is the last one in memory though not in the shape.
    """
    outer, channels, inner = math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])
    if last:
        outer, inner = outer * inner, 1
    pairs = channels // 2
    return outer, channels, inner, outer * ((pairs + 7) // 8) if inner == 1 else outer * pairs * ((inner + 7) // 8)


def _fake_forward(x: Tensor, pairing: Pairing, dim: int, backend: Backend) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=dense_format(x, dim))
    return y, x.new_empty(layout(x, dim)[3], dtype=torch.uint8)


def _fake_swap(x: Tensor, mask: Tensor, channels_last: bool, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=FORMATS[channels_last])


def _save_mask(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    y, mask = output
    ctx.save_for_backward(mask)
    ctx.options = not y.is_contiguous(), *inputs[1:]


def _swap_back(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None, None]:
    (mask,) = ctx.saved_tensors
    return _swap(gradient, mask, *ctx.options), None, None, None


def _swap_plainly(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None, None]:
    return _exchange(ctx, gradient), None, None, None


def _exchange(ctx: Any, gradient: Tensor) -> Tensor:
    (mask,) = ctx.saved_tensors
    channels_last, pairing, dim, _ = ctx.options
    swap = reference.unpack(mask, gradient.shape, channels_last, dim)
    return reference.exchange(gradient, swap, pairing, dim)


def _swap_again(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
    (mask,) = ctx.saved_tensors
    return _swap(gradient, mask, *ctx.options), None, None, None, None, None


def _swap_again_plainly(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
    return _exchange(ctx, gradient), None, None, None, None, None


# maxmin(x, pairing, dim, backend), with dim at least 0.
OPERATOR = OP.main(
    "maxmin_forward(Tensor x, str pairing, int dim, str backend) -> (Tensor y, Tensor mask)",
    reference=reference.maxmin,
    fake=_fake_forward,
    setup_context=_save_mask,
    backward=_swap_back,
    plain_backward=_swap_plainly,
    twice=True,
)
# Swapping the masked pairs is its own adjoint and its own inverse. The mask's order is that of the memory format.
_swap = OP.define(
    "maxmin_swap(Tensor x, Tensor mask, bool channels_last, str pairing, int dim, str backend) -> Tensor",
    fake=_fake_swap,
    saves=("mask",),
    keeps=("channels_last", "pairing", "dim", "backend"),
    backward=_swap_again,
    plain_backward=_swap_again_plainly,
    twice=True,
)
