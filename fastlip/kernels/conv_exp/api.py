"""Truncated exponential of a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastlip.kernels.common import winograd
from fastlip.kernels.common.asked import asked
from fastlip.kernels.common.checks import kind_of
from fastlip.kernels.common.derivatives import differentiated
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.geometry import ConvGeometry, from_numbers
from fastlip.kernels.common.literals import Backend, PaddingMode
from fastlip.kernels.conv_exp import forms, reference
from fastlip.kernels.conv_exp.truncation import MAX_TERMS, taylor

OP = Op("conv_exp", backends=("native", "triton"))


def conv_exp(
    x: Tensor,
    kernel: Tensor,
    terms: int,
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    bias: Tensor | None = None,
    coefficients: Sequence[float] | None = None,
    recompute: bool = False,
    *,
    exact: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    r"""Returns the truncated exponential of a convolution that keeps the image's size, applied to x.

    .. math:: y = \sum_{t = 0}^{T} \frac{K^t x}{t!} + b

    If the kernel is skew, K[o, i, tau] = -K[i, o, -tau], then K is skew with zero and with circular padding, and
    exp(K) is orthogonal. ``fastlip.kernels.conv_exp.truncation`` bounds what the truncation adds to the norm. Singla,
    Feizi, *Skew Orthogonal Convolutions*, ICML 2021.

    Args:
        x: (n, c, h, w) or (c, h, w), any memory format.
        kernel: (c, c / groups, kh, kw), kh and kw odd; it need not be skew.
        terms: T, the largest power, 1 to 16.
        dilation: distance between two taps, (vertical, horizontal); default (1, 1).
        groups: number of groups of channels, as in ``conv2d``; default 1.
        padding_mode: ``"zeros"`` (default) or ``"circular"``; images may be smaller than the kernel.
        bias: b, (c,); default None.
        coefficients: T + 1 numbers in place of 1 / t!, none of them 0; default None.
        recompute: if True, only x is saved for the backward, which computes the partial sums of Horner's rule again
            at the cost of T - 1 more convolutions; if False (default), the sums are saved. The result is the same.
        exact: as in :func:`conv_chain`; default False.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        The shape of x; from the kernels in channels-last format.

    Raises:
        TypeError: x or kernel is not a floating-point tensor, or terms is not an int.
        ValueError: the kernel is even, shapes or options do not fit, or the backend is unknown or cannot run here.

    >>> x, W = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3) / 20
    >>> y = fastlip.ops.conv_exp(x, W - W.transpose(0, 1).flip(2, 3), terms=12)
    >>> bool(torch.isclose(y.norm(), x.norm()))
    True
    """
    _check(x, kernel, terms, groups, bias)
    geometry = ConvGeometry.like(kernel, dilation, groups, padding_mode)
    coefficients = taylor(terms) if coefficients is None else _check_coefficients(coefficients, terms)
    counted = x.dim() == 4 and not x.is_cuda and backend != "triton"
    keep = not recompute and torch.is_grad_enabled() and kernel.requires_grad
    tile = winograd.TRAINING if keep and not exact else winograd.EVALUATION
    fitting = tile if winograd.fits(x, geometry) else None
    form = forms.choose(x.shape, geometry, terms, x.element_size(), fitting) if counted else "taps"
    keep = keep and form != "matrices"
    return OPERATOR(x, kernel, bias, coefficients, keep, exact, form, geometry, recompute, backend)


def _reference(*inputs: Any) -> Tensor:
    *arguments, recompute = inputs
    # torch.func's transforms refuse the hooks that checkpoints are made of.
    if not (recompute and torch.is_grad_enabled()) or torch._C._are_functorch_transforms_active():
        return reference.conv_exp(*arguments)
    # Nothing here is random: the generators' states need not be kept.
    return checkpoint(reference.conv_exp, *arguments, use_reentrant=False, preserve_rng_state=False)


def check_terms(name: str, terms: Any) -> int:
    """Returns a number of terms, or raises TypeError or ValueError."""
    if isinstance(terms, bool) or not isinstance(terms, int):
        raise TypeError(f"{name}={terms!r}: expected an int, got {type(terms).__name__}")
    if not 1 <= terms <= MAX_TERMS:
        raise ValueError(f"{name}={terms}: allowed are 1 to {MAX_TERMS}")
    return terms


def _check_coefficients(coefficients: Sequence[float], terms: int) -> tuple[float, ...]:
    values = tuple(float(value) for value in coefficients)
    if len(values) != terms + 1 or 0 in values:
        raise ValueError(f"coefficients={values}: expected terms + 1 = {terms + 1} numbers, none of them 0")
    return values


def _check(x: Any, kernel: Any, terms: Any, groups: int, bias: Tensor | None) -> None:
    for name, tensor in (("x", x), ("kernel", kernel)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = kind_of(tensor)
            raise TypeError(f"{name}: got {kind}, expected a floating-point tensor")
    if kernel.dim() != 4 or kernel.shape[2] % 2 == 0 or kernel.shape[3] % 2 == 0:
        raise ValueError(f"kernel: got shape {tuple(kernel.shape)}, expected (c, c / groups, kh, kw), kh and kw odd")
    channels = kernel.shape[0]
    if groups < 1 or channels % groups or kernel.shape[1] != channels // groups:
        raise ValueError(f"groups={groups}: expected kernel (c, c / groups, kh, kw), got {tuple(kernel.shape)}")
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (n, {channels}, h, w) or ({channels}, h, w)")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, expected ({channels},)")
    check_terms("terms", terms)


def _fake_forward(
    x: Tensor, kernel: Tensor, bias: Any, coefficients: Sequence[float], keep: bool, *_: Any
) -> tuple[Tensor, list[Tensor]]:
    def image() -> Tensor:
        return torch.empty_like(x, memory_format=torch.channels_last)

    return image(), [image() for _ in range(len(coefficients) - 2)] if keep else []


def _fake_backward(
    gradient: Tensor, x: Tensor | None, kernel: Tensor, sums: list[Tensor], needs_bias: bool, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.empty_like(gradient, memory_format=torch.channels_last)
    return (
        images,
        kernel.new_empty(kernel.shape if x is not None else (0, 0, 0, 0)),
        kernel.new_empty(len(kernel) if needs_bias else 0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    x, kernel, _, coefficients, _, _, form, geometry, _, backend = inputs
    ctx.options = coefficients, form, geometry, backend
    # A frozen kernel's gradient is all that needs x and the sums.
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, kernel, *output[1])


def _gradients(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, kernel, *sums = ctx.saved_tensors
    needs = asked(ctx)
    x, needs_bias = x if needs[1] else None, any(needs[2:])
    x_bar, kernel_bar, bias_bar = _backward.outputs(gradient, x, kernel, sums, needs_bias, *ctx.options)
    return x_bar, None if x is None else kernel_bar, bias_bar if needs_bias else None, *[None] * 7


def _plain_gradients(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, kernel = ctx.saved_tensors[:2]
    coefficients, _form, numbers, _ = ctx.options
    (geometry,) = from_numbers(tuple(numbers))
    needs_x, needs_kernel, needs_bias = ctx.needs_input_grad[:3]

    def function(x: Tensor, kernel: Tensor) -> Tensor:
        return reference.conv_exp(x, kernel, None, coefficients, geometry)

    # The map is linear: without the gradient of its kernel any x will do.
    inputs = torch.zeros(gradient.shape, dtype=kernel.dtype, device=kernel.device) if x is None else x, kernel
    found = differentiated(function, inputs, (needs_x, needs_kernel), gradient)
    return *found, gradient.sum((0, 2, 3)) if needs_bias else None, *[None] * 7


# conv_exp(x, kernel, bias, coefficients, keep, exact, form, geometry, recompute, backend). ``forms.choose`` gives the
# form; recompute is for the reference, keep (whether the backward gets the partial sums) for the kernels.
OPERATOR = OP.main(
    "conv_exp_forward(Tensor x, Tensor kernel, Tensor? bias, float[] coefficients, bool keep, bool exact,"
    " str form, int[] geometry, bool recompute, str backend) -> (Tensor, Tensor[])",
    reference=_reference,
    without=("keep", "exact", "form"),
    fake=_fake_forward,
    setup_context=_save,
    backward=_gradients,
    plain_backward=_plain_gradients,
)
_backward = OP.define(
    "conv_exp_backward(Tensor gradient, Tensor? x, Tensor kernel, Tensor[] sums, bool needs_bias,"
    " float[] coefficients, str form, int[] geometry, str backend) -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
)
