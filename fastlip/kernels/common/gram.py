r"""Gram iteration: bounds of spectral norms from repeated squares of a Gram matrix, the only one in the package.

For G = M Mᴴ and every t, :math:`\|M\|_2^2 = \|G\|_2 \le |G^{2^t}|_F^{1/2^t}`. For a c x c matrix G the bound is at
most c^(1 / 2^(t + 1)) times too large. Delattre, Barthélemy, Araujo, Allauzen, *Efficient Bound of Lipschitz Constant
for Convolutional Layers by Gram Iteration*, ICML 2023.

A complex Hermitian matrix is kept as its symmetric real part A and its skew imaginary part B, for real products cost
less: (A + iB)² has the imaginary part AB - (AB)^T.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlip.kernels.common.compiled import left_whole
from fastlip.kernels.common.gate import is_recorded, is_transformed

SQUARINGS = 5  # the bound of the norm of a c x c matrix is at most c^(1/128) too large: 2.2 % at c = 16, 4.4 % at 256


class GramPower(NamedTuple):
    """G^(2^t) of a batch (..., c, c) of positive semidefinite matrices, divided by its Frobenius norm.

    ``imaginary`` is None for real matrices. ``norm`` (...) is the Frobenius norm of the square of the power before
    it, and ``bound`` (...) is |G^(2^t)|_F^(1 / 2^t), at least the largest eigenvalue of G. Of a matrix of zeros all
    are 0.
    """

    real: Tensor
    imaginary: Tensor | None
    norm: Tensor
    bound: Tensor
    step: int

    @classmethod
    def of(cls, real: Tensor, imaginary: Tensor | None = None) -> GramPower:
        """The first power, t = 0, of G = real + i imaginary."""
        norm = _frobenius_norm(real, imaginary)
        return cls(*_divided(real, imaginary, norm), norm, norm, 0)

    def squared(self) -> GramPower:
        """The next power."""
        real, imaginary, step = self.real, self.imaginary, self.step + 1
        real, imaginary = _squared(real, imaginary)
        norm = _frobenius_norm(real, imaginary)
        return GramPower(*_divided(real, imaginary, norm), norm, self.bound * norm ** (1 / 2**step), step)

    def select(self, chosen: Tensor) -> GramPower:
        """The entries of a batch (n, c, c) that an index or a mask chooses."""
        imaginary = self.imaginary if self.imaginary is None else self.imaginary[chosen]
        return GramPower(self.real[chosen], imaginary, self.norm[chosen], self.bound[chosen], self.step)


def gram(real: Tensor, imaginary: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The real and the imaginary part of M Mᴴ for M = real + i imaginary, (..., m, n)."""
    if imaginary is None:
        return real @ real.mT, None
    cross = imaginary @ real.mT
    return real @ real.mT + imaginary @ imaginary.mT, cross - cross.mT


def squared_norm_bound(real: Tensor, imaginary: Tensor | None = None, squarings: int = SQUARINGS) -> Tensor:
    """(...): bounds of the squared spectral norms of real + i imaginary, (..., m, n); 0 for a matrix of zeros.

    Entries should be of the order of 1, since their fourth powers must neither overflow nor vanish.
    """
    if real.shape[-2] > real.shape[-1]:
        real, imaginary = real.mT, None if imaginary is None else imaginary.mT
    power = GramPower.of(*gram(real, imaginary))
    for _ in range(squarings):
        power = power.squared()
    return power.bound


# Tracing an autograd.Function makes torch.compile warn; a call left whole in the graph is traced by autograd.
@left_whole
def norm_bound(M: Tensor) -> Tensor:
    """(...): bounds of the spectral norms of matrices (..., m, n), real or complex, of any size.

    Differentiable, finite at 0, without synchronisation with the host; the backward keeps M alone.
    """
    if is_transformed():
        return _by_constants(M)
    return _NormBound.forward(M) if is_recorded() else _NormBound.apply(M)


class _NormBound(torch.autograd.Function):
    """The gradient of b = |G^p|_F^(1 / 2p), p = 2^t, is b G^(2p - 1) M / tr G^(2p)."""

    @staticmethod
    def forward(M: Tensor) -> Tensor:
        size, scaled = _scaled(M)
        power = GramPower.of(*_regular_gram(scaled))
        for _ in range(SQUARINGS):
            power = power.squared()
        return size[..., 0, 0] * power.bound.sqrt()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        M, bound = ctx.saved_tensors
        return _bound_gradient(M, gradient * bound)


def _by_constants(M: Tensor) -> Tensor:
    """:func:`norm_bound` by torch's operations alone: the constant b times (t / t')^(1 / 4p).

    t = tr G^(2p), and t' is its value.
    """
    constant = M.detach()
    size = _scaled(constant)[0]
    power = _regular_gram(M / size)
    power = _divided(*power, _frobenius_norm(*power).detach())
    for _ in range(SQUARINGS):
        power = _squared(*power)
        power = _divided(*power, _frobenius_norm(*power).detach())
    real, imaginary = power
    trace = real.square().sum((-2, -1))
    if imaginary is not None:
        trace = trace + imaginary.square().sum((-2, -1))
    return _NormBound.forward(constant) * (trace / trace.detach()) ** (1 / 2 ** (SQUARINGS + 2))


def _bound_gradient(M: Tensor, bound: Tensor) -> Tensor:
    """The gradient of the bound b: G^(2p - 1) M b / tr G^(2p). Factors that cancel are taken as constants."""
    size = _scaled(M.detach())[0]
    scaled = M / size
    power = _regular_gram(scaled)
    first_norm = _frobenius_norm(*power).detach()
    first = power = product = _divided(*power, first_norm)
    for _ in range(SQUARINGS):
        squared = _squared(*power)
        power = _divided(*squared, _frobenius_norm(*squared).detach())
        product = _product(product, power)  # G G² G⁴ ... up to a factor, which the trace divides out
    (real, imaginary), (first_real, first_imaginary) = product, first
    trace = (real * first_real).sum((-2, -1))
    if imaginary is not None and first_imaginary is not None:
        trace = trace + (imaginary * first_imaginary).sum((-2, -1))
    real, imaginary = _product(product, _parts(scaled))
    whole = real if imaginary is None else torch.complex(real, imaginary)
    return (bound / (size[..., 0, 0] * trace * first_norm))[..., None, None] * whole


def _scaled(M: Tensor) -> tuple[Tensor, Tensor]:
    """The largest entry of each matrix, 1 for a zero matrix, and M divided by it."""
    size = M.abs().amax((-2, -1), keepdim=True)
    size = torch.where(size > 0, size, 1)
    return size, M / size


def _regular_gram(M: Tensor) -> tuple[Tensor, Tensor | None]:
    real, imaginary = gram(*_parts(M))
    # The largest entry of M is 1: eps hardly enlarges the bound, and keeps the gradient finite at M = 0.
    identity = torch.eye(real.shape[-1], dtype=real.dtype, device=real.device)
    return real + torch.finfo(real.dtype).eps * identity, imaginary


def _parts(M: Tensor) -> tuple[Tensor, Tensor | None]:
    return (M.real, M.imag) if M.is_complex() else (M, None)


def _product(left: tuple[Tensor, Tensor | None], right: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    (a, b), (c, d) = left, right
    return (a @ c, None) if b is None or d is None else (a @ c - b @ d, a @ d + b @ c)


def _squared(real: Tensor, imaginary: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if imaginary is None:
        return real @ real, None
    cross = real @ imaginary
    return real @ real - imaginary @ imaginary, cross - cross.mT


def _frobenius_norm(real: Tensor, imaginary: Tensor | None) -> Tensor:
    norm = torch.linalg.vector_norm(real, dim=(-2, -1))
    return norm if imaginary is None else torch.hypot(norm, torch.linalg.vector_norm(imaginary, dim=(-2, -1)))


def _divided(real: Tensor, imaginary: Tensor | None, norm: Tensor) -> tuple[Tensor, Tensor | None]:
    divisor = norm.clamp_min(torch.finfo(norm.dtype).tiny)[..., None, None]
    return real / divisor, imaginary if imaginary is None else imaginary / divisor
