r"""Cayley layers in training, where a convolution has fewer images than channels.

With n channels on the smaller side, let M = [U, V] be a kernel's matrix at a frequency, Q its Cayley transform,
y = Q x and ȳ the gradient of y. The gradient of Q is ȳ x^H. Its rank is the number of images, and that of M is found
without it: with x̄ = Q^H ȳ,

.. math:: P = -\tfrac12 (\bar y + \bar x_1)(x_1 + y)^H, \quad S = -(\bar y + \bar x_1) x_2^H, \quad
          \bar U = P - P^H, \quad \bar V = S + (P + P^H) V

summed over the images, where x_1 are the first n entries of x and x_2 the rest. For M = [U; V] the sides exchange:
P = -(ȳ_1 + x̄)(x + y_1)^H / 2, S = -ȳ_2 (x + y_1)^H, V̄ = S + V (P + P^H). No product of square matrices is left but
that with V; the adjoint of ``cayley`` takes two, and three more where there is a V.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip import ops
from fastlip.kernels.common.asked import asked
from fastlip.kernels.common.derivatives import differentiated
from fastlip.kernels.common.gate import refusal
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.spectral_cayley.api import OP as SPECTRAL_CAYLEY
from fastlip.kernels.spectral_cayley.reference import spectral_cayley
from fastlip.kernels.spectral_conv import reference
from fastlip.kernels.spectral_conv.api import OP as SPECTRAL_CONV
from fastlip.kernels.spectral_conv.frequencies import Size, kernel_spectrum, kernel_spectrum_adjoint

_LEAST = 64  # channels: with 32 and as many images both ways take as long


def pays(images: int, inputs: int, outputs: int) -> bool:
    """Whether the gradient of so many images takes less work so, and the kernels are there."""
    smaller = min(inputs, outputs)
    return smaller >= _LEAST and images <= smaller and not SPECTRAL_CAYLEY.status("native")


def cayley_in_training(x: Tensor, M: Tensor, bias: Tensor | None, fft_size: Size, dilation: Size) -> Tensor:
    """The MaxMin of adjacent channels of Q * x + bias, Q being the Cayley transforms of a kernel's spectrum.

    Args:
        x: (n, cin, h, w), float32 or float64.
        M: the kernel, (cout, cin, kh, kw), in the precision of x.
        bias: (cout,), or None.
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
        x_wanted, M_wanted, *bias_wanted = asked(ctx)
        wanted = [x_wanted, M_wanted, any(bias_wanted)]
        backward = SPECTRAL_CONV.modules["native"].spectral_conv_backward
        of_x, R, of_bias = backward(gradient, x, Q, fft_size, 1, wanted, bits, of_cayley=True)
        of_M = None
        if M_wanted:
            with full_precision(M.device):
                of_M = _of_kernel(R, M, fft_size, dilation)
        return of_x if x_wanted else None, of_M, of_bias if wanted[2] else None, None, None


def _of_kernel(R: Tensor, M: Tensor, fft_size: Size, dilation: Size) -> Tensor:
    """The gradient of the kernel from R = [P, S / 2], or the same of columns, at each frequency."""
    if R.shape[1] == R.shape[2] and M.shape[2] % 2 == M.shape[3] % 2 == 1:
        # The adjoint matrices P^H are those of the kernel with exchanged channels and turned taps.
        of_P = kernel_spectrum_adjoint(R, M.shape, fft_size, dilation)
        return of_P - of_P.transpose(0, 1).flip(2, 3)
    return kernel_spectrum_adjoint(_of_spectrum(R, M, fft_size, dilation), M.shape, fft_size, dilation)


def _of_spectrum(R: Tensor, M: Tensor, fft_size: Size, dilation: Size) -> Tensor:
    """[P - P^H, S + (P + P^H) V], or the same of columns, at each frequency."""
    outputs, inputs = R.shape[1:]
    if outputs == inputs:
        return R - R.mH
    n, more, side = min(outputs, inputs), abs(outputs - inputs), 2 if outputs < inputs else 1
    P, half = R.split([n, more], side)
    V = kernel_spectrum(M, fft_size, dilation).narrow(side, n, more)
    both = P + P.mH
    rest = torch.baddbmm(half, *((both, V) if side == 2 else (V, both)), beta=2)
    return torch.cat((P - P.mH, rest), side)
