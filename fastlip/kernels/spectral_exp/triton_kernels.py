"""spectral_exp in Triton: the exponential and its adjoint of kernels/common/exponential_triton.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastlip.kernels.common import exponential_triton
from fastlip.kernels.spectral_conv.frequencies import Size, kernel_spectrum, kernel_spectrum_adjoint, own_frequencies

AOT = exponential_triton.AOT


def supports(K_hat: Tensor, *of_kernel: Any) -> str:
    """Empty, or why these kernels cannot run, also on a kernel's matrices."""
    return exponential_triton.supports(K_hat, K_hat.shape[1] if of_kernel else K_hat.shape[-1])


def spectral_exp_forward(K_hat: Tensor) -> Tensor:
    """exp((K - Kᴴ) / 2)."""
    return exponential_triton.exponential(_flat(K_hat)).view(K_hat.shape)


def spectral_exp_backward(gradient: Tensor, K_hat: Tensor) -> Tensor:
    """The gradient of K."""
    return exponential_triton.adjoint(_flat(gradient), _flat(K_hat)).view(K_hat.shape)


def kernel_exp_forward(kernel: Tensor, size: Size, dilation: Size, groups: int) -> Tensor:
    """The exponentials at each frequency."""
    K = _flat(_grouped(kernel_spectrum(kernel, size, dilation), groups))
    return exponential_triton.exponential(K, groups * own_frequencies(size)).view(-1, *kernel.shape[:2])


def kernel_exp_backward(gradient: Tensor, kernel: Tensor, size: Size, dilation: Size, groups: int) -> Tensor:
    """The gradient of the kernel, whose matrices are computed again."""
    K = _flat(_grouped(kernel_spectrum(kernel, size, dilation), groups))
    of_K = exponential_triton.adjoint(_flat(_grouped(gradient, groups)), K, groups * own_frequencies(size))
    return kernel_spectrum_adjoint(of_K.view(-1, *kernel.shape[:2]), kernel.shape, size, dilation)


def _grouped(spectrum: Tensor, groups: int) -> Tensor:
    """(F, groups, c / groups, c / groups)."""
    return spectrum.unflatten(1, (groups, -1))


def _flat(K: Tensor) -> Tensor:
    """(b, c, c), contiguous numbers as they are in memory."""
    return K.reshape(-1, *K.shape[-2:]).contiguous().resolve_conj().resolve_neg()
