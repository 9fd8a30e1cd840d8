"""Truncated exponential of a convolution."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastlip.ops._op import Op
from fastlip.ops.conv_exp import reference

PADDING_MODES = ("zeros", "circular")
MAX_TERMS = 16  # beyond, the series has converged in double precision for every norm that the layers use
OP = Op("conv_exp", backends=())


def conv_exp(
    x: Tensor,
    kernel: Tensor,
    terms: int,
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    backend: str = "auto",
) -> Tensor:
    r"""y = sum_{t <= terms} K^t x / t!, with K the convolution of ``conv2d`` that keeps the image's size.

    Singla, Feizi, *Skew Orthogonal Convolutions*, ICML 2021. If the kernel is skew, K[o, i, tau] = -K[i, o, -tau],
    then so is the operator, with zero or circular padding, and exp(K) is orthogonal. What the truncation costs is
    in ``fastlip.ops.conv_exp.truncation``.

    Args:
        x: (n, c, h, w) or (c, h, w), any memory format.
        kernel: (c, c / groups, kh, kw), kh and kw odd; it need not be skew.
        terms: the largest power, 1 to 16.
        dilation: per axis (vertical, horizontal).
        groups: as ``conv2d``.
        padding_mode: ``"zeros"`` or ``"circular"``; images may be smaller than the kernel.
        backend: ``"auto"`` or ``"reference"``: this op has no kernels yet.

    Returns:
        The shape of x.

    Raises:
        TypeError: x or kernel is not a floating-point tensor, or terms is not an int.
        ValueError: an even kernel, and shapes or options that do not fit.
    """
    OP.choose(backend)
    _check(x, kernel, terms, dilation, groups, padding_mode)
    return reference.conv_exp(x, kernel, terms, dilation, groups, padding_mode)


def check_terms(name: str, terms: Any) -> int:
    """Returns a number of terms, or raises TypeError or ValueError."""
    if isinstance(terms, bool) or not isinstance(terms, int):
        raise TypeError(f"{name}={terms!r}: expected an int, got {type(terms).__name__}")
    if not 1 <= terms <= MAX_TERMS:
        raise ValueError(f"{name}={terms}: allowed are 1 to {MAX_TERMS}")
    return terms


def _check(x: Any, kernel: Any, terms: Any, dilation: tuple[int, int], groups: int, padding_mode: str) -> None:
    for name, tensor in (("x", x), ("kernel", kernel)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise TypeError(f"{name}: got {kind}, expected a floating-point tensor")
    if kernel.dim() != 4 or kernel.shape[2] % 2 == 0 or kernel.shape[3] % 2 == 0:
        raise ValueError(f"kernel: got shape {tuple(kernel.shape)}, expected (c, c / groups, kh, kw), kh and kw odd")
    channels = kernel.shape[0]
    if groups < 1 or channels % groups or kernel.shape[1] != channels // groups:
        raise ValueError(f"groups={groups}: expected kernel (c, c / groups, kh, kw), got {tuple(kernel.shape)}")
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (n, {channels}, h, w) or ({channels}, h, w)")
    check_terms("terms", terms)
    if len(dilation) != 2 or min(dilation) < 1:
        raise ValueError(f"dilation={dilation!r}: expected a pair of ints, at least 1")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode={padding_mode!r}: allowed are {', '.join(map(repr, PADDING_MODES))}")
