r"""Square Cayley layers in training, where a convolution has at most as many images as channels.

Q = Cayley(M) at each frequency, y = Q x, and ȳ is the gradient of y. The gradient of Q is ȳ x^H, whose rank is the
number of images. As in ``cayley_linear``, that of M is found without it:

.. math:: \bar M = P - P^H, \qquad P = -\tfrac12 (\bar y + \bar x)(x + y)^H, \qquad \bar x = Q^H \bar y

summed over the images. So the two products of c x c matrices are gone that the adjoint of ``cayley`` takes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip import ops
from fastlip.kernels.common.derivatives import differentiated
from fastlip.kernels.common.gate import refusal
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.spectral_cayley.api import OP as SPECTRAL_CAYLEY
from fastlip.kernels.spectral_cayley.reference import spectral_cayley
from fastlip.kernels.spectral_conv import reference
from fastlip.kernels.spectral_conv.api import OP as SPECTRAL_CONV
from fastlip.kernels.spectral_conv.frequencies import Size, kernel_spectrum_adjoint
from fastlip.nn.applications.training_spectra import gradients_that_are_asked

_LEAST = 64  # channels: with 32 and as many images both ways take as long


def pays(images: int, inputs: int, outputs: int) -> bool:
    """Whether the gradient of so many images takes less work so, and the kernels are there."""
    return images <= inputs == outputs >= _LEAST and not SPECTRAL_CAYLEY.status("native")


def cayley_in_training(x: Tensor, M: Tensor, bias: Tensor | None, fft_size: Size, dilation: Size) -> Tensor:
    """The MaxMin of adjacent channels of Q * x + bias, Q being the Cayley transforms of a kernel's spectrum.

    Args:
        x: (n, c, h, w), float32 or float64.
        M: the kernel, (c, c, kh, kw), in the precision of x.
        bias: (c,), or None.
        fft_size: at least the size of x.
        dilation: distances between taps.
    """
    return _Cayley.apply(x, M, bias, fft_size, dilation)  # pyright: ignore[reportReturnType]


class _Cayley(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, M: Tensor, bias: Tensor | None, fft_size: Size, dilation: Size) -> Tensor:
        with full_precision(M.device):
            Q, _ = SPECTRAL_CAYLEY.modules["native"].spectral_cayley_forward(M, fft_size, dilation, 1)
        y, bits = SPECTRAL_CONV.modules["native"].with_maxmin(x, Q, bias, fft_size)
        ctx.save_for_backward(x, M, bias, Q, bits)
        ctx.options = fft_size, dilation
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), (x, M, bias, Q, bits), (fft_size, dilation) = gradients, ctx.saved_tensors, ctx.options
        if torch.is_grad_enabled() or refusal((gradient,)):

            def function(x: Tensor, M: Tensor, bias: Tensor | None) -> Tensor:
                Q = spectral_cayley(M, fft_size, dilation, 1, "auto")
                return ops.maxmin(reference.spectral_conv(x, Q, bias, fft_size, 1), "adjacent", 1)

            return *differentiated(function, (x, M, bias), ctx.needs_input_grad[:3], gradient), None, None
        of_x, P, of_bias = gradients_that_are_asked(ctx, gradient, x, Q, fft_size, bits, of_cayley=True)
        if P is None:
            return of_x, None, of_bias, None, None
        with full_precision(M.device):
            return of_x, _of_kernel(P, M.shape, fft_size, dilation), of_bias, None, None


def _of_kernel(P: Tensor, kernel: tuple[int, ...], fft_size: Size, dilation: Size) -> Tensor:
    """The gradient of a kernel of this shape from P."""
    if kernel[2] % 2 == kernel[3] % 2 == 1:
        # The matrices P^H are those of the kernel with exchanged channels and turned taps, which are fewer numbers.
        of_P = kernel_spectrum_adjoint(P, kernel, fft_size, dilation)
        return of_P - of_P.transpose(0, 1).flip(2, 3)
    return kernel_spectrum_adjoint(P - P.mH, kernel, fft_size, dilation)
