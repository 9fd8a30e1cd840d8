"""Matrix exponential of a batch of skew-Hermitian matrices, exactly unitary."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.ops._check import matrices
from fastlip.ops._op import Op
from fastlip.ops.spectral_exp import reference

OP = Op("spectral_exp", backends=())


def spectral_exp(K_hat: Tensor, *, backend: str = "auto") -> Tensor:
    r"""The unitary matrices exp((K - Kᴴ) / 2): the exponential itself where K is skew-Hermitian.

    SOC's layer per frequency (Singla, Feizi, *Skew Orthogonal Convolutions*, ICML 2021), with the limit of its
    series: the spectrum of a skew kernel is skew-Hermitian. By the eigendecomposition of the Hermitian matrix
    i (K - Kᴴ) / 2, so that the result is unitary to rounding, whatever the norm of K. The gradient uses divided
    differences of the exponential, finite for repeated eigenvalues; it can itself not be differentiated.

    Args:
        K_hat: (..., c, c), real or complex. float16 and bfloat16 are computed and returned in float32.
        backend: ``"auto"`` or ``"reference"``.

    Returns:
        The shape of K_hat; real, hence orthogonal, where K_hat is.

    Raises:
        TypeError: K_hat is not a real or complex floating-point tensor.
        ValueError: the matrices are not square, or empty; unknown backend.
    """
    K_hat = matrices("K_hat", K_hat)
    if K_hat.shape[-1] != K_hat.shape[-2]:
        raise ValueError(f"K_hat: got shape {tuple(K_hat.shape)}, expected square matrices (..., c, c)")
    OP.choose(backend, K_hat)
    with torch.autocast(K_hat.device.type, enabled=False):
        return reference.spectral_exp(K_hat)
