"""skew_exp in Triton: the exponential and its adjoint of kernels/common/exponential_triton.py, real."""

from __future__ import annotations

from torch import Tensor

from fastlip.kernels.common import exponential_triton

AOT = [entry for entry in exponential_triton.AOT if not entry.constants.get("COMPLEX", False)]


def supports(K: Tensor) -> str:
    """Empty, or why these kernels cannot run."""
    return exponential_triton.supports(K, K.shape[-1])


def skew_exp_forward(K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp((K - Kᵀ) / 2), orthogonal to rounding; the backward needs nothing else."""
    return exponential_triton.exponential(_flat(K)).view(K.shape), K.new_empty(0), K.new_empty(0)


def skew_exp_backward(gradient: Tensor, K: Tensor, *_: Tensor) -> Tensor:
    """The gradient of K."""
    return exponential_triton.adjoint(_flat(gradient), _flat(K)).view(K.shape)


def _flat(K: Tensor) -> Tensor:
    return K.reshape(-1, *K.shape[-2:]).contiguous()
