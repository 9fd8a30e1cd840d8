"""Worst-case rounding errors of the convolutions that evaluate layers by Winograd's F(2, 3) (csrc/winograd)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlip.certification.rounding.terms import SLACK, Rounding, Unit, spectral_norms, underflow
from fastlip.kernels.common import winograd
from fastlip.kernels.common.geometry import ConvGeometry

Shape = tuple[int, ...]
_TILE = 2
_TINY = torch.finfo(torch.float64).tiny
# y = A^T ((G g) o (B^T d)) along one axis, at the points 0, 1, -1 and infinity.
_A = torch.tensor([[1, 0], [1, 1], [1, -1], [0, 1]], dtype=torch.float64)
_B = torch.tensor([[-1, 0, 0, 0], [0, 1, -1, -1], [1, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
_G = torch.tensor([[-2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], dtype=torch.float64) / 2
_ONCE = torch.stack([_A.abs()[:, q, None] * _B.abs()[q : q + 3].T for q in range(_TILE)])  # |A_pq B_(q + τ)p|
# An entry of B^T d is one sum, an entry of A^T m two, along each axis.
_TRANSFORMS = 2 * (1 + 2)


def may_run(kernel: Tensor, geometry: ConvGeometry) -> bool:
    """Whether a convolution with this kernel may be evaluated so, for some batch and image."""
    once = geometry.axes == 2 and geometry.kernel_size == (3, 3) and geometry.groups == 1
    if not once or {*geometry.stride, *geometry.dilation} != {1}:
        return False
    return winograd.pays(kernel.shape[1], kernel.shape[0], winograd.EVALUATION)


def small_tiles(unit: Unit, kernel: Tensor, geometry: ConvGeometry, output_shape: Shape, bias: float) -> Rounding:
    r"""The error of W * x + b for a kernel (cout, cin, 3, 3) in float64.

    At each of 16 products the transformed kernel U_p, a matrix, is applied to v_p, a combination of pixels. Its own
    error has a norm of at most

    .. math:: e_p |v_p|, \quad e_p = (n + 2) u |U_p|_2 + 2 u |U_p|_F,

    n being the number of inputs, as ``sum_of_products`` says: U_p is rounded, and products may be before they are
    added. With e_p = f_p g_p, these errors add at most

    .. math:: \bigl| A^T \mathrm{diag}(f) \bigr|_2 \, \bigl| \mathrm{diag}(g) B^T \bigr|_2 \, \rho \, |x|

    for A and B of both axes, where patches that depend on a pixel in common are ρ times as large as x: two of them
    meet along an axis, or three where an odd side closes to a circle. The two transforms add 6 u |U_p|_2 to the
    factors of the moduli. So the norms of their errors at the pixels are at most those of a convolution of the norms
    of x at its pixels, whose taps

    .. math:: w_{q \tau} = \sum_p 6 u \, |A_{pq}| \, |U_p|_2 \, |B_{q + \tau, p}|

    depend on the place q in a tile. A tap moves an image, and has a norm of at most 1. Schur's test bounds the norm
    of their sum by the root of the largest sums of a row and of a column: max_q Σ_τ w and Σ_τ max_q w.

    Args:
        unit: that of the dtype.
        kernel: W.
        geometry: of W.
        output_shape: (cout, height, width).
        bias: the norm of b, repeated for all pixels.
    """
    U = torch.einsum("ps,qt,oist->pqoi", _G, _G, kernel).flatten(0, 1)
    norms, transforms = spectral_norms(U), unit.gamma(_TRANSFORMS)
    errors = unit.gamma(kernel.shape[1] + 2) * norms + 2 * unit.u * torch.linalg.matrix_norm(U)
    meeting = 4.0
    for side in output_shape[1:]:
        meeting *= 1.5 if geometry.padding_mode == "circular" and side % 2 else 1.0
    own = _products(errors) * math.sqrt(meeting) * (1 + transforms)
    relative = (own + transforms * _moduli(norms)) * (1 + SLACK)
    largest = unit.largest / 1024 / 16 / max(1.0, norms.amax().item())
    found = Rounding(relative, 4 * unit.u * bias, sums=4 * unit.u, largest=largest)
    count, outputs = kernel.shape[1] + 2 + 2 * _TRANSFORMS, 4 * math.prod(output_shape)
    return found.plus(underflow(unit, count, outputs, 4 * kernel.abs().amax().item()).times(16))


def _products(errors: Tensor) -> float:
    """|A^T diag(f)| |diag(g) B^T| for errors f g of 16 products."""
    A, B = torch.kron(_A, _A), torch.kron(_B, _B)
    f = (errors * B.norm(dim=0) / A.norm(dim=1)).sqrt()
    g = torch.where(f > 0, errors / f.clamp_min(_TINY), 0.0)
    return float(torch.linalg.matrix_norm(A.T * f, 2) * torch.linalg.matrix_norm(B * g, 2))


def _moduli(norms: Tensor) -> float:
    """Schur's bound of the convolution with the taps Σ_p |A_pq| |U_p| |B_(q + τ)p|."""
    taps = torch.einsum("aps,pr,brt->abst", _ONCE, norms.unflatten(0, (4, 4)), _ONCE).flatten(2).flatten(0, 1)
    return math.sqrt(taps.sum(1).amax().item() * taps.amax(0).sum().item())
