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

OP = Op("spectral_exp", backends=("native",))


def spectral_exp(K_hat: Tensor, *, backend: Backend = "auto") -> Tensor:
    r"""The unitary matrices exp((K - Kᴴ) / 2): the exponential itself where K is skew-Hermitian.

    SOC's layer per frequency (Singla, Feizi, *Skew Orthogonal Convolutions*, ICML 2021), with the limit of its
    series: the spectrum of a skew kernel is skew-Hermitian. The reference uses the eigendecomposition of the
    Hermitian matrix i (K - Kᴴ) / 2, unitary to rounding whatever the norm of K, and in its gradient divided
    differences of the exponential, finite for repeated eigenvalues; kernels use a polynomial and squarings where the
    norm is moderate. The gradient can itself not be differentiated.

    Args:
        K_hat: (..., c, c), real or complex. float16 and bfloat16 are computed and returned in float32.
        backend: ``"auto"``, ``"reference"`` or ``"native"``.

    Returns:
        The shape of K_hat; real, hence orthogonal, where K_hat is.

    Raises:
        TypeError: K_hat is not a real or complex floating-point tensor.
        ValueError: the matrices are not square, or empty; a backend that cannot run here.
    """
    K_hat = matrices("K_hat", K_hat)
    if K_hat.shape[-1] != K_hat.shape[-2]:
        raise ValueError(f"K_hat: got shape {tuple(K_hat.shape)}, expected square matrices (..., c, c)")
    return OPERATOR(K_hat, backend)


def kernel_exp(
    kernel: Tensor, size: Size, dilation: Size = (1, 1), groups: int = 1, *, backend: Backend = "auto"
) -> Tensor:
    """The matrices of a circular convolution exponential: :func:`spectral_exp` at each frequency of a kernel.

    Args:
        kernel: (c, c / groups, kh, kw), float32 or float64; only its skew part counts.
        size: (h, w) of the image.
        dilation: (dh, dw).
        groups: as in ``torch.nn.functional.conv2d``.
        backend: ``"auto"``, ``"reference"`` or ``"native"``, which keep the kernel for the gradient, no matrix.

    Returns:
        (F, c, c / groups), complex, at the unique frequencies: what ``fastlip.ops.spectral_conv`` takes.

    Raises:
        TypeError: the kernel is not of float32 or float64.
        ValueError: a kernel that does not have as many outputs as inputs; a backend that cannot run here.
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
