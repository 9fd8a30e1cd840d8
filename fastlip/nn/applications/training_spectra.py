"""Convolutions through their kernel's spectrum in training, which keep images and kernel for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip import ops
from fastlip.kernels.common.asked import asked
from fastlip.kernels.common.derivatives import differentiated
from fastlip.kernels.common.gate import refusal
from fastlip.kernels.spectral_conv import reference
from fastlip.kernels.spectral_conv.api import OP
from fastlip.kernels.spectral_conv.frequencies import Size, kernel_spectrum, kernel_spectrum_adjoint


def apply_in_training(x: Tensor, kernel: Tensor, bias: Tensor | None, fft_size: Size, dilation: Size) -> Tensor:
    """The convolution of x through the kernel's spectrum, by the kernels in C++.

    The spectrum has as many times the kernel's numbers as the FFT size has pixels for each tap: more than the images
    where channels are many. It is not kept, but computed again in the backward pass, where it takes a small part of
    the products' time.

    Args:
        x: (n, cin, h, w), float32 or float64.
        kernel: (cout, cin, kh, kw), in the precision of x.
        bias: (cout,), or None.
        fft_size: at least the size of x.
        dilation: distances between taps.
    """
    return _Convolution.apply(x, kernel, bias, fft_size, dilation)  # pyright: ignore[reportReturnType]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None, fft_size: Size, dilation: Size) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.options = fft_size, dilation
        Q = kernel_spectrum(kernel, fft_size, dilation)
        return OP.modules["native"].spectral_conv_forward(x, Q, bias, fft_size, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), (x, kernel), (fft_size, dilation) = gradients, ctx.saved_tensors, ctx.options
        if torch.is_grad_enabled() or refusal((gradient,)):
            return *_plain_gradients(ctx, gradient), None, None
        Q = kernel_spectrum(kernel, fft_size, dilation)
        of_x, of_Q, of_bias = gradients_that_are_asked(ctx, gradient, x, Q, fft_size)
        of_kernel = None if of_Q is None else kernel_spectrum_adjoint(of_Q, kernel.shape, fft_size, dilation)
        return of_x, of_kernel, of_bias, None, None


def maxmin_in_training(x: Tensor, Q: Tensor, bias: Tensor | None, fft_size: Size) -> Tensor:
    """The MaxMin of adjacent channels of Q * x + bias, in the last stage of the transform.

    Args:
        x: (n, cin, h, w), float32 or float64.
        Q: (F, cout, cin), a matrix for each unique frequency.
        bias: (cout,), or None.
        fft_size: at least the size of x.
    """
    return _Sorted.apply(x, Q, bias, fft_size)  # pyright: ignore[reportReturnType]


class _Sorted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, Q: Tensor, bias: Tensor | None, fft_size: Size) -> Tensor:
        y, bits = OP.modules["native"].with_maxmin(x, Q, bias, fft_size)
        ctx.save_for_backward(x, Q, bias, bits)
        ctx.fft_size = fft_size
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), (x, Q, bias, bits) = gradients, ctx.saved_tensors
        if torch.is_grad_enabled() or refusal((gradient,)):

            def function(x: Tensor, Q: Tensor, bias: Tensor | None) -> Tensor:
                return ops.maxmin(reference.spectral_conv(x, Q, bias, ctx.fft_size, 1), "adjacent", 1)

            return *differentiated(function, (x, Q, bias), ctx.needs_input_grad[:3], gradient), None
        return *gradients_that_are_asked(ctx, gradient, x, Q, ctx.fft_size, bits), None


def gradients_that_are_asked(
    ctx: Any,
    gradient: Tensor,
    x: Tensor,
    Q: Tensor,
    fft_size: Size,
    bits: Tensor | None = None,
    of_cayley: bool = False,
) -> list[Tensor | None]:
    """By the kernels in C++, of the first three inputs x, Q (or what it is made of) and bias of a convolution.

    ``bits`` and ``of_cayley``: see ``spectral_conv_backward`` of the kernels.
    """
    x_wanted, Q_wanted, *bias_wanted = asked(ctx)
    wanted = [x_wanted, Q_wanted, any(bias_wanted)]
    backward = OP.modules["native"].spectral_conv_backward
    found = backward(gradient, x, Q, fft_size, 1, wanted, bits, of_cayley)
    return [value if want else None for value, want in zip(found, wanted, strict=True)]


def _plain_gradients(ctx: Any, gradient: Tensor) -> list[Tensor | None]:
    """By torch's own operations, which can be differentiated again."""
    (x, kernel), (fft_size, dilation) = ctx.saved_tensors, ctx.options
    needs_x, needs_kernel, needs_bias = ctx.needs_input_grad[:3]

    def function(x: Tensor, kernel: Tensor) -> Tensor:
        return reference.spectral_conv(x, kernel_spectrum(kernel, fft_size, dilation), None, fft_size, 1)

    found = differentiated(function, (x, kernel), (needs_x, needs_kernel), gradient)
    return [*found, gradient.sum((0, 2, 3)) if needs_bias else None]
