"""AOC's kernel: an orthogonal matrix on the patches of a stride, block-convolved with projectors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.block_conv.reference import alternating_axes
from fastlip.nn._base import LipschitzLayer, at_least_float32
from fastlip.nn._conv import Pair


class AdaptiveKernel(LipschitzLayer):
    r"""The kernel of a strided convolution whose matrix has orthonormal rows or columns, whichever is possible.

    .. math:: \hat K(z) = \hat R(z) \prod_i \bigl(P_i + (I - P_i)\, z_{a_i}\bigr)

    Without the projectors, a kernel as large as its stride acts on patches that tile the image: it is
    semi-orthogonal if the matrix R, (cout, c sh sw), is. Each factor is an orthogonal convolution at stride 1 of
    c = max(cin, floor(cout / (sh sw))) channels before it, and adds one tap: a product of matrices with orthonormal
    rows (cin sh sw >= cout) has orthonormal rows, one of matrices with orthonormal columns has such columns, of
    which the first cin channels are kept. An orthogonal matrix between the projectors and the image, as in BCOP,
    could be moved through the product into R: it adds nothing, and there is none.

    R and the bases Q_i of the projectors are Cayley transforms of parameters; P_i = Q_i Q_i^T has rank floor(c/2),
    and every second factor along an axis has I - P_i in its place, so that one channel is shifted back and forth.
    A layer names the convolution's ``ports``.
    """

    kernel_size: Pair
    stride: Pair
    dilation: Pair
    groups: int
    raw_matrix: nn.Parameter
    raw_bases: nn.Parameter | None
    bias: nn.Parameter | None

    @property
    def ports(self) -> Pair:
        """Input and output channels of the convolution, in each group."""
        raise NotImplementedError

    @property
    def axes(self) -> tuple[int, ...]:
        """Along which axis the taps of each factor lie."""
        (kh, kw), (sh, sw) = self.kernel_size, self.stride
        return alternating_axes((kh - sh + 1, kw - sw + 1))

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """raw_matrix, and raw_bases unless the kernel is as large as its stride or has one channel."""
        check_coverage(self.kernel_size, self.stride, self.dilation)
        (cin, cout), patch = self.ports, math.prod(self.stride)
        channels = max(cin, cout // patch) if self.axes else cin
        shape = (self.groups, cout, channels * patch)
        self.raw_matrix = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.raw_bases = None
        if self.axes and channels > 1:
            shape = (self.groups, len(self.axes), channels, channels // 2)
            self.raw_bases = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """R = I where it is square, else random; one random projector per group, which cancels in pairs; bias 0."""
        with torch.no_grad():
            rows, columns = self.raw_matrix.shape[1:]
            if rows == columns:
                self.raw_matrix.zero_()
            else:
                self.raw_matrix.normal_(std=columns**-0.5)
            if self.raw_bases is not None:
                first = self.raw_bases[:, :1]
                self.raw_bases.copy_(first.normal_(std=self.raw_bases.shape[2] ** -0.5).expand_as(self.raw_bases))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def parametrize(self) -> tuple[Tensor, ...]:
        """(kernel,) in conv2d's layout, (groups cout, cin, kh, kw)."""
        cin = self.ports[0]
        R = ops.cayley(at_least_float32(self.raw_matrix), backend=self.backend)
        K = R.unflatten(-1, (*self.stride, -1)).permute(0, 2, 3, 1, 4)
        if self.axes:
            K = ops.block_conv(K, self._projectors(K), self.axes, backend=self.backend)
        return (K[..., :cin].permute(0, 3, 4, 1, 2).flatten(0, 1),)

    def _projectors(self, like: Tensor) -> Tensor:
        axes, channels = self.axes, like.shape[-1]
        identity = torch.eye(channels, dtype=like.dtype, device=like.device)
        flips = [axes[:i].count(axis) % 2 for i, axis in enumerate(axes)]
        if self.raw_bases is None:
            return torch.stack([identity * flip for flip in flips]).expand(self.groups, len(axes), 1, 1)
        Q = ops.cayley(at_least_float32(self.raw_bases), backend=self.backend)
        # Apart, because a tensor of the flips would have to come from the host at each step.
        projectors = (Q @ Q.mT).unbind(1)
        return torch.stack([identity - P if flip else P for P, flip in zip(projectors, flips, strict=True)], 1)


def check_coverage(kernel_size: Pair, stride: Pair, dilation: Pair) -> None:
    """Raises ValueError unless the taps of a kernel meet every residue of the stride, and each once."""
    if any(k < s for k, s in zip(kernel_size, stride, strict=True)):
        raise ValueError(
            f"kernel_size={kernel_size}: expected at least stride={stride}, or pixels between the kernels are lost"
        )
    if any(math.gcd(s, d) > 1 for s, d in zip(stride, dilation, strict=True)):
        raise ValueError(
            f"dilation={dilation}: expected no common divisor with stride={stride}, or kernels meet the same pixels "
            "repeatedly, and no bound holds"
        )
