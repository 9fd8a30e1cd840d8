"""CPL: convex potential layers (Meunier, Delattre, Araujo, Allauzen, ICML 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.common.padding import pad, same_pads
from fastlip.kernels.common.precision import for_convolution
from fastlip.kernels.sdp_residual.reference import adjoint
from fastlip.nn._base import at_least_float32
from fastlip.nn._residual import ResidualConv2d, ResidualLinear, safe_scale
from fastlip.nn.method import Method

# Frequencies per axis and unit of the kernel's degree: at 17, sampling loses less than 1 % of sigma.
_DENSITY = 17
# Squarings of the Gram matrix: the bound of a c x c matrix is at most c^(1/128) too large, 2.2 % at c = 16.
_SQUARINGS = 5
TRAINING_SIGMAS = ("bound", "power")
# Of the torus on which power iteration runs, per unit of the kernel's degree; and its steps at initialisation.
_POWER_DENSITY = 6
_POWER_STEPS = 10


def squared_norm_bound(weight: Tensor, sides: tuple[int, int], groups: int) -> Tensor:
    """Upper bound of sigma^2 of each group's kernel over the frequencies of a torus, by Gram iteration.

    weight is (m, c / groups, kh, kw). Differentiable, with the gradient of the bound at the frequency that attains
    it. Delattre, Barthélemy, Araujo, Allauzen, *Efficient Bound of Lipschitz Constant for Convolutional Layers by
    Gram Iteration*, ICML 2023.
    """
    size = weight.detach().abs().amax()
    taps = (weight / torch.where(size > 0, size, 1)).flatten(2).unflatten(0, (groups, -1))  # [g, m, c, t]
    waves = _waves(sides, weight.shape[2:], weight)
    with torch.no_grad():
        every = _gram_bound(*(torch.einsum("gmct,ft->fgmc", taps, wave) for wave in waves))
        bound, worst = every.max(0)
    real, imaginary = (torch.einsum("gmct,gt->gmc", taps, wave[worst]) for wave in waves)
    rounding = 1 + (16 + taps.shape[-1] + taps.shape[-2]) * torch.finfo(bound.dtype).eps
    return _follow(bound, torch.complex(real, imaginary)) * (size * size * rounding)


def _waves(sides: tuple[int, int], kernel_size: torch.Size, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of k tau for half of the frequencies k and all taps tau: two matrices [f, t]."""
    rows = _angles(sides[0], sides[0], kernel_size[0], like.device)[:, None, :, None]
    columns = _angles(sides[1], sides[1] // 2 + 1, kernel_size[1], like.device)[None, :, None, :]
    angles = (rows + columns).flatten(2).flatten(0, 1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _angles(side: int, count: int, taps: int, device: torch.device) -> Tensor:
    turns = torch.outer(torch.arange(count, device=device), torch.arange(taps, device=device)) % side
    return turns.double() * (2 * math.pi / side)


def _gram_bound(real: Tensor, imaginary: Tensor) -> Tensor:
    """|G^n|_F^(1/n), n = 2^5, for G the smaller Gram matrix of real + i imaginary: [..., m, c] to [...].

    Real products cost less: (A + iB)^2 has the imaginary part AB - (AB)^T, for A is symmetric and B is skew.
    """
    if real.shape[-2] > real.shape[-1]:
        real, imaginary = real.mT, imaginary.mT
    cross = imaginary @ real.mT
    symmetric, skew = real @ real.mT + imaginary @ imaginary.mT, cross - cross.mT
    norm = _norm(symmetric, skew)
    bound = norm
    for step in range(1, _SQUARINGS + 1):
        inverse = torch.where(norm > 0, norm, 1).reciprocal()[..., None, None]
        symmetric, skew = symmetric * inverse, skew * inverse
        cross = symmetric @ skew
        symmetric, skew = symmetric @ symmetric - skew @ skew, cross - cross.mT
        norm = _norm(symmetric, skew)
        bound = bound * norm ** (1 / 2**step)
    return bound


def _norm(symmetric: Tensor, skew: Tensor) -> Tensor:
    return (symmetric.square() + skew.square()).sum((-2, -1)).sqrt()


def _follow(bound: Tensor, matrix: Tensor) -> Tensor:
    """The bound |G^n|_F^(1/n) with its gradient, for the matrices [g, m, c] that attained it.

    Homogeneous in G, it is <H, G> with H its gradient, a multiple of G^(2n - 1): the product of G, G^2, ... G^n.
    """
    matrix = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
    gram = matrix @ matrix.mH
    with torch.no_grad():
        power = iterate = _normalise(gram)
        for _ in range(_SQUARINGS):
            iterate = _normalise(iterate @ iterate)
            power = power @ iterate
    inner = (power.conj() * gram).real.sum((-2, -1))
    return bound * (inner / torch.where(inner > 0, inner, 1).detach())


def _normalise(gram: Tensor) -> Tensor:
    norm = torch.linalg.matrix_norm(gram)
    return gram / torch.where(norm > 0, norm, 1)[..., None, None]


def _sample(side: int, kernel_size: int, dilation: int, padding_mode: PaddingMode) -> tuple[int, float]:
    """Along one axis, how many frequencies to look at, and how much sigma^2 may be larger in between.

    Circular: those of the image, exactly. Zeros: the convolution is a part of the circular one on a torus of
    this side. Dilation visits some frequencies of the undilated kernel on the same torus. Never more than N =
    17 (kernel_size - 1): |W(f) v|^2 = p(f) is a trigonometric polynomial of degree d = kernel_size - 1 with
    values in [0, M], and p - M/2 falls from its maximum no faster than cos(d f) (M. Riesz), so that one of N
    equidistant samples is at least M cos^2(pi d / 2N).
    """
    degree = kernel_size - 1
    if degree == 0:
        return 1, 1.0
    samples, torus = _DENSITY * degree, _torus(side, degree, dilation, padding_mode)
    if torus <= samples:
        return torus, 1.0
    return samples, 1 / math.cos(math.pi * degree / (2 * samples)) ** 2


def _torus(side: int, degree: int, dilation: int, padding_mode: PaddingMode) -> int:
    return max(1, side if padding_mode == "circular" else side + -(-dilation * degree // 2))


@torch.no_grad()
def power_step(weight: Tensor, vector: Tensor, groups: int) -> Tensor:
    """W^T W v / |W^T W v| for each group's v, (groups, c / groups, h, w); a v that W maps to 0 stays."""
    image = adjoint(_convolve(weight, vector), weight, ConvGeometry.like(weight, (1, 1), groups, "circular"))
    image = image.reshape_as(vector)
    norm = torch.linalg.vector_norm(image, dim=(1, 2, 3), keepdim=True)
    return torch.where(norm > 0, image / torch.where(norm > 0, norm, 1), vector)


def squared_norm_at(weight: Tensor, vector: Tensor) -> Tensor:
    """|W v|^2 of each group, with its gradient for W: sigma^2 from below, for a v of norm 1 on its torus."""
    return _convolve(weight, vector).reshape(len(vector), -1).square().sum(1)


def _convolve(weight: Tensor, vector: Tensor) -> Tensor:
    image = pad(vector.flatten(0, 1)[None], same_pads(weight.shape[2:], (1, 1)), "circular")
    return F.conv2d(image, weight, groups=len(vector))


def _is_recomputed() -> bool:
    """Whether this forward runs inside a backward: activation checkpointing repeats one that has run."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class _FixedScale:
    """A scale that, once set, takes the place of 2 / sigma^2. The buffer is 0 until then."""

    fixed_scale: Tensor

    def freeze_scale(self, scale: float | Tensor) -> None:
        """Uses this scale rho (one number, or one per group) instead of 2 / sigma^2; 0 undoes it.

        For published checkpoints, whose scale came from a lower bound of sigma. ``lipschitz_bound`` reports what
        it measures: more than 1 if rho sigma^2 > 2.
        """
        value = torch.as_tensor(scale, dtype=self.fixed_scale.dtype, device=self.fixed_scale.device)
        if not (value.isfinite() & (value >= 0)).all():
            raise ValueError(f"scale={scale!r}: expected finite numbers, at least 0")
        with torch.no_grad():
            self.fixed_scale.copy_(value)

    def _scale(self, kernel: Tensor, squared_norm: Tensor) -> Tensor:
        fixed = self.fixed_scale.to(squared_norm.dtype)
        scale = torch.where(fixed > 0, fixed, safe_scale(squared_norm, kernel.dtype))
        return scale.repeat_interleave(kernel.shape[0] // len(scale))


class CPLConv2d(_FixedScale, ResidualConv2d):
    r"""Convolutional residual layer y = x - (2 / sigma^2) W^T relu(W x + b), sigma an upper bound of \|W\|_2.

    Meunier, Delattre, Araujo, Allauzen, *A Dynamical System Perspective for Lipschitz Neural Networks*, ICML
    2022. W is the padded convolution, W^T its exact adjoint; W = 0 gives the identity.

    sigma bounds \|W\|_2 on images of the input's size: by Gram iteration (five squarings, at most 2.2 % too
    large at 16 channels) on every frequency of the image (circular) or of the torus that contains the
    zero-padded image; for large images on 17 (kernel_size - 1) frequencies per axis, enlarged by the 1 % that
    sigma can gain in between. The paper's power iteration approaches \|W\|_2 from below and promises nothing.
    With groups, each has its own sigma.

    Guarantee: Lipschitz constant at most 1, for every kernel size, dilation and groups, zero or circular "same"
    padding, any image size. The function depends on the image size through sigma (not for 1 x 1 kernels, nor
    for images larger than 17 (kernel_size - 1)); in eval mode sigma is computed once per image size. Nothing in the
    state dict depends on the image size.
    Cost: two convolutions at ``width`` channels, and about 17 c^3 multiply-adds for each of n^2 / 2 frequencies.

    With ``training_sigma="power"`` that cost is paid in eval mode only: in train mode sigma comes from one step of a
    power iteration per forward, on a torus of at most 6 (kernel_size - 1) pixels a side, warm-started from the
    buffer ``power_vector``. It is not an upper bound: in train mode the layer may exceed 1 by a little, and
    ``lipschitz_bound`` says by how much. Eval mode, and so every certificate, keeps the guarantee.

    Width, stride, padding of channels: as ``SLLConv2d``.

    Args: as ``torch.nn.Conv2d`` with ``padding="same"`` only and ``padding_mode`` "zeros" or "circular";
    ``inner_channels`` (the rows of W, default width); ``training_sigma`` "bound" (default) or "power";
    ``recompute`` (True keeps half as much for the backward, for one more convolution; default only for 1x1 kernels);
    ``backend``. Initialised at a tenth of Xavier normal (at bias 0 the layer does not depend on the kernel's size,
    and learns faster where it is small), bias 0.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to out_channels and ceil(h / stride_h).
    Parameters: ``kernel`` (inner_channels, width / groups, *kernel_size), ``bias`` (inner_channels). Buffer:
    ``fixed_scale`` (groups), 0 unless ``freeze_scale`` set it; ``power_vector`` with ``training_sigma="power"``.
    Raises ValueError for other paddings, padding modes and values of training_sigma.
    """

    fixed = (*ResidualConv2d.fixed, "training_sigma")
    power_vector: Tensor

    def __init__(self, *args: Any, training_sigma: str = "bound", **kwargs: Any):
        if training_sigma not in TRAINING_SIGMAS:
            raise ValueError(f"training_sigma={training_sigma!r}: allowed are 'bound', 'power'")
        self.training_sigma = training_sigma
        super().__init__(*args, **kwargs)

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """Kernel, bias, the buffer of a frozen scale and that of the power iteration."""
        super().make_parameters(device, dtype)
        self.register_buffer("fixed_scale", torch.zeros(self.groups, device=device, dtype=dtype))
        if self.training_sigma == "power":
            sides = (max(1, _POWER_DENSITY * (k - 1)) for k in self.kernel_size)
            shape = self.groups, self.width // self.groups, *sides
            self.register_buffer("power_vector", torch.empty(shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Kernel at a tenth of Xavier normal in each group; bias 0; some steps of the power iteration."""
        super().reset_parameters()
        self.fixed_scale.zero_()
        if self.training_sigma == "power":
            nn.init.normal_(self.power_vector)
            for _ in range(_POWER_STEPS):
                self._power_step(self.power_vector.shape[2:])

    def context(self, image_size: tuple[int, ...]) -> tuple[int, ...]:
        """The image size: sigma is that of the convolution on such images."""
        return image_size[0], image_size[1]

    def parametrize(self, *image_size: Any) -> tuple[Tensor, ...]:
        """(2 / sigma^2,): the scale of each inner channel, constant in each group."""
        axes = list(zip(image_size, self.kernel_size, self.dilation, strict=True))
        if self.training and self.training_sigma == "power":
            tori = (_torus(side, k - 1, d, self.padding_mode) for side, k, d in axes)
            sides = [min(torus, side) for torus, side in zip(tori, self.power_vector.shape[2:], strict=True)]
            return (self._scale(self.kernel, self._power_step(sides)),)
        (rows, above), (columns, beside) = (_sample(*axis, self.padding_mode) for axis in axes)
        bound = squared_norm_bound(at_least_float32(self.kernel), (rows, columns), self.groups)
        return (self._scale(self.kernel, bound * (above * beside)),)

    def _power_step(self, sides: Sequence[int]) -> Tensor:
        """Sigma^2 of each group after one step on a torus of these sides; the vector is kept for the next.

        A recomputed forward takes the vector of the forward that it repeats, and moves nothing.
        """
        weight, kept = for_convolution(at_least_float32(self.kernel)), self.power_vector[..., : sides[0], : sides[1]]
        vector = kept.detach().clone()
        if not _is_recomputed():
            vector = power_step(weight, vector.to(weight.dtype), self.groups).to(kept.dtype)
            if not torch._C._are_functorch_transforms_active():
                with torch.no_grad():
                    kept.copy_(vector)
        return squared_norm_at(weight, vector.to(weight.dtype))


class CPLLinear(_FixedScale, ResidualLinear):
    r"""Dense residual layer y = x - (2 / sigma^2) W^T relu(W x + b), sigma an upper bound of \|W\|_2.

    Meunier, Delattre, Araujo, Allauzen, ICML 2022, with sigma from Gram iteration (five squarings, at most 2.2 %
    too large at 16 features, 4.5 % at 256). Lipschitz constant at most 1; W = 0 gives the identity.

    Inputs of fewer than out_features features are padded with zeros to ``width`` = max(in_features,
    out_features); the first out_features of the result are kept. Both are 1-Lipschitz.

    Args: as ``torch.nn.Linear``; ``inner_features`` (the rows of W, default width); ``backend``.
    Shapes: (*, in_features) to (*, out_features). Parameters: ``kernel`` (inner_features, width), a tenth of
    Xavier normal; ``bias`` (inner_features), 0. Buffer: ``fixed_scale`` (1), 0 unless ``freeze_scale`` set it.
    """

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """Kernel, bias and the buffer of a frozen scale."""
        super().make_parameters(device, dtype)
        self.register_buffer("fixed_scale", torch.zeros(1, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Kernel at a tenth of Xavier normal; bias 0; no frozen scale."""
        super().reset_parameters()
        self.fixed_scale.zero_()

    def parametrize(self) -> tuple[Tensor, ...]:
        """(2 / sigma^2,): the scale of each inner feature."""
        weight = at_least_float32(self.kernel)[:, :, None, None]
        return (self._scale(self.kernel, squared_norm_bound(weight, (1, 1), 1)),)


# An upper bound of sigma in every training step would cost half of the network's time.
METHOD = Method(
    "cpl", CPLConv2d, CPLLinear, options={"training_sigma": "power"}, settings={"digits": {"optimizer.lr": 0.3}}
)
