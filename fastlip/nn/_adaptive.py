r"""AOC's kernel: an orthogonal matrix on the patches of a stride, block-convolved with projectors.

.. math:: \hat K(z) = \hat R(z) \prod_i \bigl(P_i + (I - P_i)\, z_{a_i}\bigr)

Without the projectors, a kernel as large as its stride acts on patches that tile the image: it is semi-orthogonal if
the matrix R, (cout, c sh sw), is. Each factor is an orthogonal convolution at stride 1 of c = max(cin, floor(cout /
(sh sw))) channels before it, and adds one tap: a product of matrices with orthonormal rows (cin sh sw >= cout) has
orthonormal rows, one of matrices with orthonormal columns has such columns, of which the first cin channels are kept.
An orthogonal matrix between the projectors and the image, as in BCOP, could be moved through the product into R: it
adds nothing, and there is none.

R and the bases Q_i of the projectors are Cayley transforms of parameters; P_i = Q_i Q_i^T has rank floor(c/2), and
every second factor along an axis has I - P_i in its place, so that one channel is shifted back and forth. ``ports``
are the input and output channels of the convolution, in each group.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.block_conv.reference import alternating_axes
from fastlip.kernels.common.geometry import ConvGeometry, Pair
from fastlip.kernels.common.literals import Backend
from fastlip.nn.arguments import make_parameter
from fastlip.nn.base import at_least_float32
from fastlip.nn.initial import zero_

_FEW = 128  # columns of R up to which float64 is little work


def axes_of(geometry: ConvGeometry) -> tuple[int, ...]:
    """Along which axis the taps of each factor lie."""
    (kh, kw), (sh, sw) = geometry.kernel_size, geometry.stride
    return alternating_axes((kh - sh + 1, kw - sw + 1))


def make_adaptive(
    geometry: ConvGeometry, ports: Pair, device: Any, dtype: Any
) -> tuple[nn.Parameter, nn.Parameter | None]:
    """raw_matrix, and raw_bases unless the kernel is as large as its stride or has one channel."""
    (cin, cout), patch, axes = ports, math.prod(geometry.stride), axes_of(geometry)
    channels = max(cin, cout // patch) if axes else cin
    matrix = make_parameter((geometry.groups, cout, channels * patch), device, dtype)
    if not axes or channels == 1:
        return matrix, None
    return matrix, make_parameter((geometry.groups, len(axes), channels, channels // 2), device, dtype)


def reset_adaptive(raw_matrix: Tensor, raw_bases: Tensor | None, bias: Tensor | None) -> None:
    """R = I where it is square, else random; one random projector per group, which cancels in pairs; bias 0."""
    with torch.no_grad():
        rows, columns = raw_matrix.shape[1:]
        if rows == columns:
            raw_matrix.zero_()
        else:
            raw_matrix.normal_(std=columns**-0.5)
        if raw_bases is not None:
            first = raw_bases[:, :1]
            raw_bases.copy_(first.normal_(std=raw_bases.shape[2] ** -0.5).expand_as(raw_bases))
    zero_(bias)


def adaptive_kernel(
    geometry: ConvGeometry, cin: int, raw_matrix: Tensor, raw_bases: Tensor | None, backend: Backend
) -> Tensor:
    """The kernel in conv2d's layout, (groups cout, cin, kh, kw)."""
    matrix = at_least_float32(raw_matrix)
    rows, columns = matrix.shape[1:]
    few = rows != columns and min(rows, columns) <= _FEW
    R = ops.cayley(_precise(matrix) if few else matrix, backend=backend).to(matrix.dtype)
    K = R.unflatten(-1, (*geometry.stride, -1)).permute(0, 2, 3, 1, 4)
    if axes := axes_of(geometry):
        K = ops.block_conv(K, _projectors(K, raw_bases, axes, backend), axes, backend=backend)
    return K[..., :cin].permute(0, 3, 4, 1, 2).flatten(0, 1)


def _projectors(like: Tensor, raw_bases: Tensor | None, axes: tuple[int, ...], backend: Backend) -> Tensor:
    groups, channels = like.shape[0], like.shape[-1]
    identity = torch.eye(channels, dtype=like.dtype, device=like.device)
    flips = [axes[:i].count(axis) % 2 for i, axis in enumerate(axes)]
    if raw_bases is None:
        return torch.stack([identity * flip for flip in flips]).expand(groups, len(axes), 1, 1)
    bases = at_least_float32(raw_bases)
    Q = ops.cayley(_precise(bases), backend=backend)
    # One by one, because a tensor of the flips would have to come from the host at each step.
    projectors = (Q @ Q.mT).to(bases.dtype).unbind(1)
    return torch.stack([identity - P if flip else P for P, flip in zip(projectors, flips, strict=True)], 1)


def _precise(matrix: Tensor) -> Tensor:
    """A tall or wide matrix in the type of its Cayley transform: float64 on a CPU, as the kernels of GPUs compute it.

    The errors of all factors of a kernel add up, and that of one in float32 may be many roundings.
    """
    return matrix.double() if matrix.is_cpu else matrix


def check_coverage(geometry: ConvGeometry) -> None:
    """Raises ValueError unless the taps of a kernel meet every residue of the stride, and each once."""
    kernel_size, stride, dilation = geometry.kernel_size, geometry.stride, geometry.dilation
    if any(k < s for k, s in zip(kernel_size, stride, strict=True)):
        raise ValueError(
            f"kernel_size={kernel_size}: expected at least stride={stride}, or pixels between the kernels are lost"
        )
    if any(math.gcd(s, d) > 1 for s, d in zip(stride, dilation, strict=True)):
        raise ValueError(
            f"dilation={dilation}: expected no common divisor with stride={stride}, or kernels meet the same pixels "
            "repeatedly, and no bound holds"
        )
