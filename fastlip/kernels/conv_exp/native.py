"""conv_exp on the CPU, of one group: three forms of the same sums, which forms.py chooses from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.geometry import ConvGeometry, from_numbers
from fastlip.kernels.conv_exp import matrices, spectrum, taps
from fastlip.kernels.conv_exp.series import Series, refuse

KERNELS = "conv_chain_", "spectral_conv_"  # what the forms are made of
_FORMS = {"taps": taps, "spectrum": spectrum, "matrices": matrices}

binding.require()


def supports(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    coefficients: Sequence[float],
    geometry: ConvGeometry,
    recompute: bool = False,
) -> str:
    """Empty, or why these kernels cannot run."""
    return refuse(x, kernel, bias, geometry) or images.missing(x)


def conv_exp_forward(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    coefficients: Sequence[float],
    keep: bool,
    exact: bool,
    form: str,
    numbers: Sequence[int],
    recompute: bool,
) -> tuple[Tensor, list[Tensor]]:
    """y, and if they are to be kept the sums of Horner's rule that are neither x nor y, innermost first."""
    x = x.contiguous(memory_format=images.LAST)
    series = Series(kernel, coefficients, *from_numbers(tuple(numbers)))
    return _FORMS[form].forward(series, x, bias, keep, keep and not exact)


def conv_exp_backward(
    gradient: Tensor,
    x: Tensor | None,
    kernel: Tensor,
    sums: list[Tensor],
    needs_bias: bool,
    coefficients: Sequence[float],
    form: str,
    numbers: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the kernel (empty where x was not kept) and of the bias (empty unless needed)."""
    gradient = gradient.contiguous(memory_format=images.LAST)
    x = x if x is None else x.contiguous(memory_format=images.LAST)
    series = Series(kernel, coefficients, *from_numbers(tuple(numbers)))
    x_gradient, kernel_gradient, bias_gradient = _FORMS[form].backward(series, gradient, x, sums, needs_bias)
    if kernel_gradient is None:
        kernel_gradient = kernel.new_empty((0, 0, 0, 0))
    return x_gradient, kernel_gradient, kernel.new_empty(0) if bias_gradient is None else bias_gradient
