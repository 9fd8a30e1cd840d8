"""Matrix exponential of a batch of skew-Hermitian matrices, exactly unitary; and of a convolution's kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.checks import matrices
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.spectral_conv.frequencies import COMPLEX, Size, count_frequencies
from fastlip.kernels.spectral_exp import reference

__all__ = ["kernel_exp", "spectral_exp"]

OP = Op("spectral_exp", backends=("native", "triton"))


def spectral_exp(K_hat: Tensor, *, backend: Backend = "auto") -> Tensor:
    r"""Returns the unitary matrices exp((K - Kᴴ) / 2), which is the exponential itself if K is skew-Hermitian.

    It is the limit of SOC's series at each frequency (Singla, Feizi, *Skew Orthogonal Convolutions*, ICML 2021): the
    spectrum of a skew kernel is skew-Hermitian. The reference uses the eigendecomposition of the Hermitian matrix i
    (K - Kᴴ) / 2, so its result is unitary up to rounding whatever the norm of K. Its gradient consists of divided
    differences of the exponential, which are finite for repeated eigenvalues. The kernels use a polynomial and
    squarings if the norm is moderate.

    Args:
        K_hat: K, (..., c, c), real or complex; float16 and bfloat16 are computed and returned in float32.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        The shape of K_hat; real, hence orthogonal, if K_hat is real.

    Raises:
        TypeError: K_hat is not a real or complex floating-point tensor.
        ValueError: the matrices are not square or have no entries, or the backend is unknown or cannot run here.

    >>> fastlip.ops.spectral_exp(torch.tensor([[2.0 + torch.pi * 1j]])).real
    tensor([[-1.]])
    """
    K_hat = matrices("K_hat", K_hat)
    if K_hat.shape[-1] != K_hat.shape[-2]:
        raise ValueError(f"K_hat: got shape {tuple(K_hat.shape)}, expected square matrices (..., c, c)")
    return OPERATOR(K_hat, backend)


def kernel_exp(
    kernel: Tensor, size: Size, dilation: Size = (1, 1), groups: int = 1, *, backend: Backend = "auto"
) -> Tensor:
    r"""Returns :func:`spectral_exp` of a kernel's matrices: those of a circular convolution exponential.

    Args:
        kernel: (c, c / groups, kh, kw), float32 or float64; only its skew part counts.
        size: FFT size, the (h, w) of the circular image.
        dilation: distance between two taps, (vertical, horizontal); default (1, 1).
        groups: number of groups of channels, as in ``torch.nn.functional.conv2d``; default 1.
        backend: ``"auto"`` (default), ``"reference"`` or ``"native"``, which saves the kernel alone.

    Returns:
        (F, c, c / groups), complex, at the unique frequencies, as ``fastlip.ops.spectral_conv`` takes it.

    Raises:
        TypeError: kernel is not of float32 or float64.
        ValueError: kernel does not have as many outputs as inputs, or the backend is unknown or cannot run here.
    """
    if kernel.dtype not in COMPLEX:
        raise TypeError(f"kernel: got {kernel.dtype}, allowed are {', '.join(map(str, COMPLEX))}")
    if kernel.dim() != 4 or kernel.shape[0] != groups * kernel.shape[1] or 0 in kernel.shape:
        shape = tuple(kernel.shape)
        raise ValueError(f"kernel: got shape {shape}, expected (c, c / groups, kh, kw), groups={groups}")
    return KERNEL_OPERATOR(kernel, size, dilation, groups, backend)


def _fake(K_hat: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(K_hat, memory_format=torch.contiguous_format)


def _fake_kernel_exp(kernel: Tensor, size: Size, *_: Any) -> Tensor:
    return kernel.new_empty((count_frequencies(size), *kernel.shape[:2]), dtype=COMPLEX[kernel.dtype])


def _fake_kernel_gradient(gradient: Tensor, kernel: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(kernel, memory_format=torch.contiguous_format)


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return _backward(gradient, *ctx.saved_tensors, *ctx.options), None


def _kernel_gradient(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    return _kernel_backward(gradient, *ctx.saved_tensors, *ctx.options), None, None, None, None


# spectral_exp(K_hat, backend).
OPERATOR = OP.main(
    "spectral_exp_forward(Tensor K_hat, str backend) -> Tensor",
    reference=reference.spectral_exp,
    precision=full_precision,
    fake=_fake,
    saves=("K_hat",),
    keeps=("backend",),
    backward=_gradient,
)
_backward = OP.define(
    "spectral_exp_backward(Tensor gradient, Tensor K_hat, str backend) -> Tensor",
    fake=_fake,
)
# kernel_exp(kernel, size, dilation, groups, backend).
KERNEL_OPERATOR = OP.main(
    "kernel_exp_forward(Tensor kernel, int[] size, int[] dilation, int groups, str backend) -> Tensor",
    reference=reference.kernel_exp,
    precision=full_precision,
    fake=_fake_kernel_exp,
    saves=("kernel",),
    keeps=("size", "dilation", "groups", "backend"),
    backward=_kernel_gradient,
)
_kernel_backward = OP.define(
    "kernel_exp_backward(Tensor gradient, Tensor kernel, int[] size, int[] dilation, int groups, str backend)"
    " -> Tensor",
    fake=_fake_kernel_gradient,
)
