"""Steps of matrices on a GPU: all of one shape at once, and nothing that the host waits for.

The mathematics is that of _steps.py. What that chooses from norms is the same for every matrix here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlip import ops
from fastlip.kernels.common.capture import is_capturing
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.polar.api import OP
from fastlip.optim._rows import gathered, is_sharded, own_rows, rows_of
from fastlip.optim._steps import butterworth, defect

_HALVINGS = 3  # before the polynomial of degree 6: for steps of up to 10 radians at a tolerance of 1e-5
# The Frobenius norm to which tangents to matrices that are not square are shortened: W turns by 89.5 degrees there.
_LONGEST_TANGENT = 128.0
# Of Newton-Schulz steps: 18 bring the singular values of a tangent of that norm near 1, the others to rounding.
_STEPS = 24
_RETRACTIONS, _RETRACTIONS_OF_A_STEP = 8, 2
_FAR = 1e-5  # the error after eight steps of those that began too far off
_TOGETHER = 1 << 25  # numbers of matrices that are computed at once


def is_on_device(W: Tensor) -> bool:
    """Whether a wait of the host would cost more than what is saved by a look at norms."""
    return W.is_cuda


def tangent_gradients(matrices: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """The gradients in the tangent spaces, as :func:`fastlip.optim._steps.tangent_gradient` has them.

    Args:
        matrices: no divided ones, on one device.
        gradients: theirs.
    """
    found: dict[int, Tensor] = {}
    for places in _alike(matrices):
        W, G = (torch.stack([values[place] for place in places]) for values in (matrices, gradients))
        with full_precision(W.device):
            product = W.mT @ G if W.shape[1] == W.shape[2] else None
            result = (product - product.mT).mul_(0.5) if product is not None else _of_tall(_projected, W, G)
        found |= zip(places, result.unbind(), strict=True)
    return [found[place] for place in range(len(matrices))]


def move_all_(matrices: Sequence[Tensor], steps: Sequence[Tensor], tolerance: float) -> None:
    """Moves matrices by steps of their tangent spaces, whose other parts are left out.

    Args:
        matrices: changed in place.
        steps: of the same shapes; longer ones than :func:`longest_turn`, or tangents to matrices that are not square
            of norms above 128, are shortened.
        tolerance: how much a step may add to |WᵀW - I|₂, rounding apart.
    """
    whole = [gathered(step) for step in steps]
    for places in _alike(matrices):
        U = torch.stack([whole[place] for place in places])
        targets = [own_rows(matrices[place].detach()) for place in places]
        with full_precision(U.device):
            if U.shape[1] == U.shape[2]:
                rows = torch.stack(targets)
                moved = torch.baddbmm(rows, rows, turns_minus_one((U - U.mT).mul_(0.5), tolerance)).unbind()
            else:
                W = torch.stack([gathered(matrices[place].detach()) for place in places])
                moved = _of_tall(_moved, W, U).unbind()
                moved = [rows_of(one, matrices[place]) for one, place in zip(moved, places, strict=True)]
        torch._foreach_copy_(targets, list(moved))


def longest_turn(tolerance: float) -> float:
    """The largest (|A²|_F / √2)^(1/2), a bound of |A|₂, of the skew matrices A that are not shortened."""
    # A squaring makes of the defect d, of PᵀP = I, (1 + d)^2 - 1.
    before = math.expm1(math.log1p(tolerance) / 2**_HALVINGS)
    size = (before / defect(6, 1.0)) ** (1 / 6)
    return 2**_HALVINGS * math.sqrt(size)


def turns_minus_one(A: Tensor, tolerance: float) -> Tensor:
    """P - I for Butterworth's polynomial P of degree 6 of A / 8, squared three times, of skew matrices (b, n, n).

    It is orthogonal up to the tolerance, if A is at most the longest turn, to which larger ones are shortened.
    """
    S = A @ A
    size = (torch.linalg.vector_norm(S, dim=(1, 2), keepdim=True) / math.sqrt(2)).sqrt_()
    share = (longest_turn(tolerance) / size).clamp_(max=1) * 0.5**_HALVINGS
    A, S = A * share, S.mul_(share * share)
    _, _, _, *c = butterworth(6)
    cube = A @ S
    inner = torch.add(c[1] * A, S, alpha=c[2]).add_(cube, alpha=c[3])
    P = torch.baddbmm(torch.add(A, S, alpha=0.5).add_(cube, alpha=c[0]), inner, cube)
    for _ in range(_HALVINGS):
        P = torch.baddbmm(P, P, P, beta=2)
    return P


def retract_all_(matrices: Sequence[Tensor], otherwise: Sequence[Tensor] = ()) -> None:
    """Replaces matrices near their manifolds by their polar factors, in float64.

    By eight Newton-Schulz steps, of which each takes an error d of W^T W = I to 3 d^2 / 4: from singular values above
    0.2 to the rounding of float64. In the capture of a CUDA graph, which takes them after each step, by two.

    Args:
        matrices: changed in place.
        otherwise: the rows that this process has of what replaces those that this leaves off their manifolds.
    """
    for places in _alike(matrices):
        W = torch.stack([gathered(matrices[place].detach()) for place in places]).double()
        W = _of_tall(_repaired, W)
        targets = [own_rows(matrices[place].detach()) for place in places]
        parts = [rows_of(one, matrices[place]) for one, place in zip(W.unbind(), places, strict=True)]
        if otherwise:
            near = torch.linalg.vector_norm(_of_tall(_defect, W), dim=(1, 2)) <= _FAR
            choices = zip(near.unbind(), parts, places, strict=True)
            parts = [torch.where(fits, part, otherwise[place].to(part.dtype)) for fits, part, place in choices]
        torch._foreach_copy_(targets, parts)


def _alike(matrices: Sequence[Tensor]) -> Iterator[list[int]]:
    """The places of matrices of one shape, type and device, that are computed at once; each divided one alone."""
    found: dict[Any, list[list[int]]] = {}
    for place, W in enumerate(matrices):
        batches = found.setdefault((W.shape, W.dtype, W.device, is_sharded(W)), [[]])
        if batches[-1] and (is_sharded(W) or (len(batches[-1]) + 1) * W.numel() > _TOGETHER):
            batches.append([])
        batches[-1].append(place)
    for batches in found.values():
        yield from batches


def _of_tall(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """A function of tall matrices, of whatever matrices."""
    if batches[0].shape[1] >= batches[0].shape[2]:
        return function(*batches)
    return function(*(batch.mT for batch in batches)).mT


def _projected(W: Tensor, U: Tensor) -> Tensor:
    """U - W (WᵀU + UᵀW) / 2: the part of U in the tangent spaces at the tall W."""
    product = W.mT @ U
    return torch.baddbmm(U, W, product + product.mT, alpha=-0.5)


def _moved(W: Tensor, U: Tensor) -> Tensor:
    """(W + U)(I + UᵀU)^(-1/2) with the tangent part of U: the polar factor of W + U, of singular values from 1 on."""
    U = _projected(W, U)
    norm = torch.linalg.vector_norm(U, dim=(1, 2), keepdim=True)
    Q = torch.addcmul(W, U, (_LONGEST_TANGENT / norm).clamp_(max=1))
    if OP.choose("auto", Q, 0) != "reference":
        return ops.polar(Q)
    norm = torch.linalg.vector_norm(Q.mT @ Q, dim=(1, 2), keepdim=True)
    return _newton_schulz(Q * norm.rsqrt_(), _STEPS)  # of singular values up to 1


def _repaired(W: Tensor) -> Tensor:
    """The polar factors."""
    defect = _defect(W)
    size = torch.linalg.vector_norm(defect, dim=(1, 2), keepdim=True)
    W = W * ((1 + size) / 2).clamp_(min=1).rsqrt_()  # of singular values up to the root of 2; those of the step: 3
    return _newton_schulz(W, _RETRACTIONS_OF_A_STEP if is_capturing(W.device) else _RETRACTIONS)


def _newton_schulz(Q: Tensor, steps: int) -> Tensor:
    with full_precision(Q.device):
        for _ in range(steps):
            Q = torch.baddbmm(Q, Q, _defect(Q), alpha=-0.5)
    return Q


def _defect(Q: Tensor) -> Tensor:
    """QᵀQ - I."""
    with full_precision(Q.device):
        defect = Q.mT @ Q
    defect.diagonal(dim1=-2, dim2=-1).sub_(1)
    return defect
