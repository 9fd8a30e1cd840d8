"""Polar factors: exactly by the singular value decomposition, and LOT's ridged Newton iteration."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.compiled import left_whole
from fastlip.kernels.common.derivatives import differentiated
from fastlip.kernels.common.finite import finite_part, poisoned
from fastlip.kernels.common.gate import is_recorded, is_transformed
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.polar.decomposition import decompose

_DERIVATIVES = 3  # how often a factor may be differentiated


# Tracing an autograd.Function makes torch.compile warn; a call left whole in the graph is traced by autograd.
@left_whole
def polar(V: Tensor, reals: int = 0) -> Tensor:
    """Q = U Wᴴ for the thin decomposition V = U diag(s) Wᴴ, the first ``reals`` matrices taken as real."""
    if is_transformed():
        return _by_corrections(V, reals)
    return (_Polar.forward(V, reals) if is_recorded() else _Polar.apply(V, reals))[0]


class _Polar(torch.autograd.Function):
    """Saves V, Q, the singular values, and of the singular bases only the smaller: the other follows from Q."""

    @staticmethod
    def forward(V: Tensor, reals: int) -> tuple[Tensor, ...]:
        parts = [_factor(part) for part in split(V, reals)]
        return join([Q for Q, _, _ in parts], V.dtype), *(tensor for part in parts for tensor in part[1:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[0], *output)
        ctx.reals = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, None]:
        V, Q, *factors = ctx.saved_tensors
        with full_precision(gradient.device):
            if torch.is_grad_enabled():
                function = partial(_by_corrections, reals=ctx.reals, kept=(Q, *factors))
                return differentiated(function, (V,), (True,), gradient)[0], None
            bases, values = factors[::2], factors[1::2]
            pieces = zip(split(gradient, ctx.reals), split(Q, ctx.reals), bases, values, strict=True)
            return join([polar_adjoint(G, *_bases(part, basis), s) for G, part, basis, s in pieces], Q.dtype), None


def _by_corrections(V: Tensor, reals: int, kept: tuple[Tensor, ...] | None = None) -> Tensor:
    """Q as a function of torch's operations, with its first three derivatives in reverse and in forward mode.

    ``kept`` is what :class:`_Polar` has computed already.
    """
    Q, *factors = (tensor.detach() for tensor in kept or _Polar.forward(V.detach(), reals))
    pieces = zip(split(V, reals), split(Q, reals), factors[::2], factors[1::2], strict=True)
    return join([_corrected(*piece) for piece in pieces], Q.dtype)


def _corrected(V: Tensor, Q: Tensor, basis: Tensor, s: Tensor) -> Tensor:
    """The constant Q, corrected by residuals of value 0 that follow V: each step is right to one order more.

    Q is the factor of a tall V if Qᴴ V is Hermitian, Q Qᴴ V = V and Qᴴ Q = I. With H X + X H = Qᴴ V - Vᴴ Q a step
    adds Q X + (I - Q Qᴴ) V H⁻¹, for the constant H = B diag(s) Bᴴ, and restores the third. Where s is nearly 0 a
    multiple of Q's singular vectors is added to V, which does not change Q: derivatives stay finite.
    """
    if V.shape[-2] < V.shape[-1]:
        return _corrected(V.mH, Q.mH, basis, s).mH
    raised = 1 / _clamped(2 * s, *V.shape[-2:])[0] / 2
    V = V + Q @ (basis * (raised - s)[..., None, :]) @ basis.mH
    quotients = 1 / (raised[..., :, None] + raised[..., None, :])
    for _ in range(_DERIVATIVES):
        QhV = Q.mH @ V
        turn = basis @ ((basis.mH @ _change(QhV - QhV.mH) @ basis) * quotients) @ basis.mH
        step = Q @ turn
        if V.shape[-2] > V.shape[-1]:
            step = step + (_change(V - Q @ QhV) @ basis / raised[..., None, :]) @ basis.mH
        Q = Q + step
        Q = Q - 0.5 * Q @ _change(Q.mH @ Q)
    return Q


def _change(value: Tensor) -> Tensor:
    """Zeros with the derivatives of the value."""
    return value - value.detach()


def split(V: Tensor, reals: int) -> list[Tensor]:
    """The real parts of the first ``reals`` entries, and the others; only one of them where that is all."""
    return [V] if reals == 0 else [part for part in (V[:reals].real, V[reals:]) if part.shape[0] > 0]


def join(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`split`."""
    return parts[0].to(dtype) if len(parts) == 1 else torch.cat([part.to(dtype) for part in parts])


def _factor(V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q = U Wᴴ, the smaller of the bases U and W, and the singular values."""
    V, finite = finite_part(V)
    U, s, Wh = decompose(V)
    return poisoned(polish(U @ Wh), finite), U if V.shape[-2] < V.shape[-1] else Wh.mH, s


def _bases(Q: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """U and Wᴴ, from Q = U Wᴴ and the smaller of them."""
    return (basis, basis.mH @ Q) if Q.shape[-2] < Q.shape[-1] else (Q @ basis, basis.mH)


def polar_adjoint(gradient: Tensor, U: Tensor, Wh: Tensor, s: Tensor) -> Tensor:
    """The gradient of V = U diag(s) Wᴴ from that of its polar factor (README.md)."""
    left, right = _clamped(s, U.shape[-2], Wh.shape[-1])
    UhG = U.mH @ gradient
    P = UhG @ Wh.mH
    result = U @ ((P - P.mH) * right) @ Wh
    if U.shape[-2] > s.shape[-1]:  # tall: the part outside the columns of Q
        result = result + ((gradient - U @ UhG) @ Wh.mH * left[..., None, :]) @ Wh
    if Wh.shape[-1] > s.shape[-1]:  # wide: the part outside its rows
        result = result + U @ ((UhG - P @ Wh) * left[..., :, None])
    return result


def adjoint_from_factor(gradient: Tensor, Q: Tensor, V: Tensor) -> Tensor:
    """The gradient of V = QH (tall) or HQ (wide) from that of Q: H's eigenvalues are the singular values of V."""
    wide = V.shape[-2] < V.shape[-1]
    H = V @ Q.mH if wide else Q.mH @ V
    H, finite = finite_part(H)
    s, basis = torch.linalg.eigh((H + H.mH) / 2)
    s, basis = s.flip(-1).clamp(min=0), basis.flip(-1)
    return poisoned(polar_adjoint(gradient, *_bases(Q, basis), s), finite)


def polish(Q: Tensor) -> Tensor:
    """One Newton-Schulz step, Q (3 I - QᴴQ) / 2: an orthonormality defect d becomes 3 d²/4 and rounding.

    The step maps singular values up to sqrt(3) to at most 1. A Q that may exceed that is scaled down first, so
    that the norm of the result is at most 1 however wrong Q is.
    """
    if Q.shape[-2] < Q.shape[-1]:
        return polish(Q.mH).mH
    identity = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    gram = Q.mH @ Q
    bound = 1 + torch.linalg.matrix_norm(gram - identity, keepdim=True)
    square = (bound / 3).clamp(min=1)
    return Q @ (3 * identity - gram / square) / (2 * square.sqrt())


def _clamped(s: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """1/s_i and 1/(s_i + s_j), the denominators at least max(rows, columns) eps s_0; 1 for a zero matrix."""
    info = torch.finfo(s.dtype)
    largest = s[..., :1]
    # Below the root of the smallest normal number, quotients of quotients would overflow.
    is_zero = largest <= info.tiny**0.5
    floor = torch.where(is_zero, 1.0, max(rows, columns) * info.eps * largest)
    sums = s[..., :, None] + s[..., None, :]
    return 1 / torch.maximum(s, floor), 1 / torch.maximum(sums, floor[..., None])


def ridged_newton(V: Tensor, ridge: float, steps: int) -> Tensor:
    """LOT's published function (Xu, Li, Li 2022), Z V / sqrt(nu) with Z close to (S / nu)^{-1/2}.

    S = V Vᴴ + ridge I and nu = ||S||_F + ridge; from Y = S / nu, Z = I, ``steps`` times T = (3 I - Z Y) / 2,
    Y = Y T, Z = T Z.
    Singular values approach 1 from below, so that every number of steps keeps the norm at most 1.
    A tall V is taken by its adjoint. Differentiated by autograd.
    """
    if V.shape[-2] > V.shape[-1]:
        return ridged_newton(V.mH, ridge, steps).mH
    identity = torch.eye(V.shape[-2], dtype=V.dtype, device=V.device)
    S = V @ V.mH + ridge * identity
    nu = torch.linalg.matrix_norm(S, keepdim=True) + ridge
    Y, Z = S / nu, identity.expand_as(S)
    for _ in range(steps):
        T = (3 * identity - Z @ Y) / 2
        Y, Z = Y @ T, T @ Z
    return Z @ V / nu.sqrt()
