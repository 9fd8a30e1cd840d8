"""What layers share that make every matrix of their operator orthogonal: one matrix, or one per frequency."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.common.padding import same_pads
from fastlip.kernels.spectral_conv.api import FixedSpectrum, kernel_spectrum, own_frequencies
from fastlip.nn import _spectra
from fastlip.nn._base import MatrixLinear, as_it_runs, at_least_float32
from fastlip.nn._cache import CACHED_CONTEXTS
from fastlip.nn._conv import LipschitzConv2d, Pair


class PerFrequencyConv2d(LipschitzConv2d):
    """A convolution after space-to-depth by one matrix per frequency of a torus: by ``parametrize(*torus)``.

    In evaluation, where nothing is differentiated, the matrices are kept as the kernels read them, whatever their
    size. These take the place of ``effective(*torus)``, which is kept beside them only where something else asks for
    it, such as a bound or a gradient of the input. A method adds ``torus``.
    """

    def torus(self, height: int, width: int) -> tuple[int, ...]:
        """The circular image on which the matrices act, for an image after space-to-depth; () where none do."""
        raise NotImplementedError

    def torus_for(self, x: Tensor) -> Pair | None:
        """The torus on which evaluation applies kept matrices to x; None where they are not kept."""
        if not _spectra.is_fixed(self, x) or 0 in x.shape[-2:]:
            return None
        height, width = (-(-side // step) for side, step in zip(x.shape[-2:], self.stride, strict=True))
        torus = self.torus(height, width)
        return (torus[0], torus[1]) if torus else None

    def apply_spectrum(self, x: Tensor, torus: Pair, pairing: str = "none") -> Tensor:
        """Q * x + bias by kept matrices, and MaxMin behind it if a pairing is given."""
        (spectrum,) = self.recall(("spectra", torus), lambda layer: layer._fixed(torus), CACHED_CONTEXTS)
        return _spectra.apply(space_to_depth(x, self.stride), spectrum, self.bias, pairing)

    def _fixed(self, torus: Pair) -> tuple[FixedSpectrum]:
        (Q,) = self._compute(torus)
        inputs = self.in_channels * math.prod(self.stride)
        return (_spectra.fix(Q[:, : self.out_channels, :inputs], torus),)


class OrthogonalConv2d(PerFrequencyConv2d):
    """A convolution given by one orthogonal matrix per frequency; a method adds ``orthogonalize``.

    Circular padding: the frequencies of the image. Zero padding: those of a torus that is larger by
    dilation * (kernel_size - 1); the image is embedded in zeros and the result cropped, and neither adds norm.
    A stride is space-to-depth: each stride[0] x stride[1] patch becomes channels (sides are first padded with
    zeros at their end to a multiple of the stride), then follows a convolution of stride 1 with a kernel of
    ceil(kernel_size / stride) taps. A kernel of one tap is one dense matrix, applied by ``conv2d``.
    """

    orthogonal = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        same = same_pads(self.kernel_size, self.dilation)
        if self.pads != same:
            raise ValueError(
                f"padding={self.padding!r}: allowed are 'same' and what equals it, {same} as F.pad orders"
            )
        if max(self.stride) > 1 and max(self.dilation) > 1:
            raise ValueError(f"dilation={self.dilation}: allowed is 1 where stride={self.stride} exceeds 1")

    @property
    def taps(self) -> Pair:
        """Taps of the kernel after space-to-depth."""
        (kh, kw), (sh, sw) = self.kernel_size, self.stride
        return -(-kh // sh), -(-kw // sw)

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """raw_weight."""
        columns = self.in_channels // self.groups * self.stride[0] * self.stride[1]
        shape = (self.out_channels, columns, *self.taps)
        self.raw_weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def scaled_weight(self) -> Tensor:
        """The kernel whose matrices are made orthogonal, at least float32."""
        return at_least_float32(self.raw_weight)

    def orthogonalize(self, V: Tensor, reals: int = 0) -> Tensor:
        """Orthonormal rows or columns from a batch of matrices, real for the first ``reals`` of a complex batch."""
        raise NotImplementedError

    def parametrize(self, *torus: int) -> tuple[Tensor, ...]:
        """(Q,): (F, cout, cin / groups) at the torus's unique frequencies; (cout, cin / groups, 1, 1) without."""
        weight = self.scaled_weight()
        if not torus:
            matrices = weight.flatten(1).unflatten(0, (self.groups, -1))
            return (self.orthogonalize(matrices).reshape(weight.shape),)
        height, width = torus
        spectrum = kernel_spectrum(weight, (height, width), self.dilation).unflatten(1, (self.groups, -1))
        return (self.orthogonalize(spectrum, own_frequencies((height, width))).flatten(1, 2),)

    def torus(self, height: int, width: int) -> tuple[int, ...]:
        """The circular image on which the convolution acts, for an image after space-to-depth; () for one tap."""
        if self.taps == (1, 1):
            return ()
        if self.padding_mode == "circular":
            return height, width
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.taps, strict=True)]
        return height + reach[0], width + reach[1]

    def forward(self, x: Tensor) -> Tensor:
        """Q * x + bias."""
        self.check_input(x)
        if fixed := self.torus_for(x):
            return self.apply_spectrum(x, fixed)
        x = space_to_depth(x, self.stride)
        torus = self.torus(*x.shape[-2:])
        (Q,) = self.effective(*torus)
        if not torus:
            return F.conv2d(x, Q, self.bias, groups=self.groups)
        return ops.spectral_conv(x, Q, self.bias, (torus[0], torus[1]), self.groups, backend=self.backend)

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """The largest singular value of the matrices that are applied to images of this (c, h, w), in float64."""
        height, width = (-(-side // step) for side, step in zip(input_shape[-2:], self.stride, strict=True))
        torus = self.torus(height, width)
        with torch.no_grad():
            (Q,) = self.effective(*torus)
        if not torus:
            return float(ops.spectral_norm(as_it_runs(Q), (height, width), groups=self.groups))
        return largest_singular_value(Q.unflatten(1, (self.groups, -1)))


class OrthogonalLinear(MatrixLinear):
    """A dense layer with an orthogonal matrix; a method adds ``orthogonalize``."""

    orthogonal = True

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """raw_weight."""
        shape = (self.out_features, self.in_features)
        self.raw_weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def scaled_weight(self) -> Tensor:
        """The matrix that is made orthogonal, at least float32."""
        return at_least_float32(self.raw_weight)

    def orthogonalize(self, V: Tensor) -> Tensor:
        """Orthonormal rows or columns."""
        raise NotImplementedError

    def parametrize(self) -> tuple[Tensor, ...]:
        """(Q,)."""
        return (self.orthogonalize(self.scaled_weight()),)


def space_to_depth(x: Tensor, stride: Pair) -> Tensor:
    """(..., c, h, w) -> (..., c sh sw, ceil(h / sh), ceil(w / sw)); sides are padded with zeros at their end."""
    if stride == (1, 1):
        return x
    bottom, right = (-side % step for side, step in zip(x.shape[-2:], stride, strict=True))
    x = F.pad(x, (0, right, 0, bottom)) if bottom or right else x
    patches = x.unflatten(-1, (-1, stride[1])).unflatten(-3, (-1, stride[0]))  # (c, h / sh, sh, w / sw, sw)
    return patches.movedim((-3, -1), (-4, -3)).flatten(-5, -3)


def largest_singular_value(Q: Tensor) -> float:
    """Over a batch of complex matrices: an upper bound, from the eigenvalues of QᴴQ in double precision."""
    Q = Q.detach().to(torch.complex128)
    gram = Q @ Q.mH if Q.shape[-2] < Q.shape[-1] else Q.mH @ Q
    rounding = 4 * sum(Q.shape[-2:]) * torch.finfo(torch.float64).eps
    return float(torch.linalg.eigvalsh(gram).max().clamp(min=0).sqrt()) * (1 + rounding)
