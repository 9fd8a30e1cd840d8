"""Polar factors of a convolution's matrices, one per frequency, from the kernel's taps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.spectral_conv.frequencies import COMPLEX, Size, count_frequencies
from fastlip.kernels.spectral_polar import reference

OP = Op("spectral_polar", backends=("native", "triton"))


def spectral_polar(
    weight: Tensor, size: Size, dilation: Size = (1, 1), groups: int = 1, *, backend: Backend = "auto"
) -> Tensor:
    r"""The polar factors Q_k = V_k (V_kᴴ V_k)^{-1/2} of the matrices V_k by which a circular convolution acts.

    LOT's orthogonal convolution (Xu, Li, Li, NeurIPS 2022). The same as ``fastlip.ops.polar`` of
    ``kernel_spectrum(weight, size, dilation)``, group by group and real at self-conjugate frequencies. Kernels keep
    the weight and Q for the gradient, and Q is also what ``spectral_conv`` keeps: no other matrix per frequency. The
    gradient can itself not be differentiated.

    Args:
        weight: (cout, cin / groups, kh, kw), float32 or float64.
        size: (h, w) of the circular image.
        dilation: (dh, dw).
        groups: as in ``torch.nn.functional.conv2d``.
        backend: ``"auto"``, ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        (F, cout, cin / groups), complex, at the unique frequencies: what ``fastlip.ops.spectral_conv`` takes.

    Raises:
        TypeError: the weight is not of float32 or float64.
        ValueError: a weight that is empty or has other dimensions, or rows that the groups do not divide; a backend
            that cannot run here.
    """
    if weight.dtype not in COMPLEX:
        raise TypeError(f"weight: got {weight.dtype}, allowed are {', '.join(map(str, COMPLEX))}")
    if weight.dim() != 4 or 0 in weight.shape or weight.shape[0] % groups:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, expected (cout, cin / groups, kh, kw), groups={groups}"
        )
    chosen = OP.choose(backend, weight, groups)
    if chosen != "reference":
        return _forward(weight, size, dilation, groups, chosen)
    with full_precision(weight.device):
        return reference.spectral_polar(weight, size, dilation, groups, backend)


def _fake(weight: Tensor, size: Size, *_: Any) -> Tensor:
    return weight.new_empty((count_frequencies(size), *weight.shape[:2]), dtype=COMPLEX[weight.dtype])


def _fake_backward(gradient: Tensor, Q: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, *ctx.options = inputs
    ctx.save_for_backward(output, weight)


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    return _backward.outputs(gradient, *ctx.saved_tensors, *ctx.options), None, None, None, None


_forward = OP.define(
    "spectral_polar_forward(Tensor weight, int[] size, int[] dilation, int groups, str backend) -> Tensor",
    fake=_fake,
    setup_context=_save,
    backward=_gradient,
)
_backward = OP.define(
    "spectral_polar_backward(Tensor gradient, Tensor Q, Tensor weight, int[] size, int[] dilation, int groups,"
    " str backend) -> Tensor",
    fake=_fake_backward,
)
