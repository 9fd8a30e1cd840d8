"""SOC: skew orthogonal convolutions (Singla, Feizi, ICML 2021), by the series or per frequency."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastlip import ops
from fastlip.nn._base import MatrixLinear, as_it_runs, at_least_float32
from fastlip.nn._conv import LipschitzConv2d
from fastlip.nn._orthogonal import largest_singular_value, space_to_depth
from fastlip.ops._padding import Pads, same_pads
from fastlip.ops.conv_exp import check_terms
from fastlip.ops.conv_exp.truncation import largest_modulus, stable_norm
from fastlip.ops.spectral_exp import kernel_exp

EXPONENTIALS = ("series", "spectral")
DEFAULT_TERMS = 4
# The paper's limit is 0.7 k for the best of four reshaped kernels; ours is the cheapest of them, 8 to 20 % above.
_NORM_PER_SIDE = 0.8
_LARGEST_NORM = 2.8  # 4, 8, 12 and 16 terms are 1-Lipschitz up to here, and 8, 12, 16 up to 3.3
_SQUARINGS = 5  # the bound of a c x c matrix is at most c^(1/128) too large: 2 % for c = 16, 4 % for c = 256
_INITIAL_DEVIATION = 0.1  # of the paper's: near the identity, a deep network learns faster


def skew(raw: Tensor) -> Tensor:
    """(K - K^T) / 2 of (groups, c, c, kh, kw): the adjoint of a convolution has the transposed, flipped kernel."""
    return (raw - raw.transpose(1, 2).flip(3, 4)) / 2


def norm_bound(kernel: Tensor) -> Tensor:
    """:func:`_norm_bound`, which is computed again for the gradient: it would keep twice the kernel's memory."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return _norm_bound(kernel)
    return checkpoint(_norm_bound, kernel, use_reentrant=False, preserve_rng_state=False)


def _norm_bound(kernel: Tensor) -> Tensor:
    """(groups,): bounds of the norms of the convolutions (groups, c, c, kh, kw), for any image, zeros or circular.

    K at any frequency is R E with R the c x (kh kw c) matrix of the taps and E of norm sqrt(kh kw) (Singla, Feizi,
    *Fantastic Four*, ICLR 2021); ||R||^2 <= |(R R^T)^(2^n)|_F^(1 / 2^n). No singular value decomposition, no
    synchronisation with the host; differentiable, finite at 0.
    """
    R = kernel.flatten(2)
    size = R.detach().abs().amax((1, 2))
    size = torch.where(size > 0, size, 1)
    R = R / size[:, None, None]
    # The largest entry of R is 1: eps hardly enlarges the bound, and keeps the gradient finite at R = 0.
    identity = torch.eye(R.shape[1], dtype=R.dtype, device=R.device)
    gram = R @ R.mT + torch.finfo(R.dtype).eps * identity
    norm = torch.linalg.matrix_norm(gram)
    logarithm = norm.log()
    for step in range(1, _SQUARINGS + 1):
        gram = gram / norm[:, None, None]
        gram = gram @ gram
        norm = torch.linalg.matrix_norm(gram)
        logarithm = logarithm + norm.log() / 2**step
    return size * math.sqrt(math.prod(kernel.shape[3:])) * (logarithm / 2).exp()


class SOCConv2d(LipschitzConv2d):
    r"""Convolution exponential of a skew kernel, y = exp(L) x + b.

    .. math:: L = s\,(K - K^T)/2, \qquad s = \min(1, m / \mathrm{bound}(\lVert L \rVert)), \qquad
              y = g \sum_{t \le T} L^t x / t! + b

    Singla, Feizi, *Skew Orthogonal Convolutions*, ICML 2021; K^T is the kernel transposed and flipped. L is a skew
    operator, so exp(L) is orthogonal, for zero padding too. The paper scales every kernel to a norm that a power
    iteration approaches from below; here the bound is an upper one, valid for every image size, and kernels
    below m are left as they are.

    ``exponential="series"`` truncates after T = ``terms``. The largest |p_T(i theta)| for |theta| <= m, p_T the
    truncated series, is its Lipschitz constant; the gain g divides by it. It is 1 for T = 4, 8, 12, 16 and the
    default m, so that g = 1; it is 1.005 for the paper's T = 5 and m = 2.4.
    ``exponential="spectral"``, with circular padding only, takes the exact exponential of each frequency's matrix
    and is orthogonal in training and evaluation; parameters are the same. A 1 x 1 kernel is one exact exponential
    of a matrix, without a limit on its norm.

    Guarantee: Lipschitz constant at most 1 for odd kernels, every dilation, groups and stride, zero or circular
    padding. Spectral form and 1 x 1 kernels: orthogonal where no channels are truncated
    (in_channels * stride^2 <= out_channels); series: all singular values at least the smallest |p_T(i theta)| up
    to the norm of L: at T = 4, 0.994 for a norm of 1 and 0.97 for 1.3, at T = 8 0.9999 for both.
    Cost: T convolutions, in evaluation too, and some 50 c^3 operations for the bound (spectral: a
    matrix exponential per frequency in training, one spectral convolution). Training and evaluation compute the
    same function unless ``eval_terms`` says otherwise (the paper: ``terms=5, eval_terms=12``).

    A stride first moves patches into channels (images that it does not divide are padded with zeros at their end);
    fewer channels than max(in_channels * stride^2, out_channels) are padded with zeros, more are truncated after
    the exponential, within each group.

    Args: as ``torch.nn.Conv2d``, with the padding "same" (or ints that equal it), and ``backend``; keyword-only:
        exponential: ``"series"`` or ``"spectral"``.
        terms: T, 1 to 16.
        eval_terms: T in eval mode; None: ``terms``.
        max_norm: m; None: min(0.8 sqrt(kh kw), 2.8), or a larger norm up to which T terms are 1-Lipschitz.
        padding_mode: None: "zeros" for the series, "circular" for the spectral form.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to the same with out_channels, sides divided by the
    stride and rounded up. Parameters: ``raw_weight`` (c, c / groups, kh, kw), c the padded channels, initialised
    normal with standard deviation 0.1 sqrt(groups / c), near the identity (the paper: 10 times that); ``bias``
    (out_channels), initialised 0. Options are read at construction.
    Raises ValueError for even kernels, other paddings and padding modes, and the spectral form without circular
    padding.
    """

    padding_modes = ("zeros", "circular")

    def __init__(
        self,
        *args: Any,
        exponential: str = "series",
        terms: int = DEFAULT_TERMS,
        eval_terms: int | None = None,
        max_norm: float | None = None,
        **kwargs: Any,
    ):
        if exponential not in EXPONENTIALS:
            raise ValueError(f"exponential={exponential!r}: allowed are {', '.join(map(repr, EXPONENTIALS))}")
        self.exponential = exponential
        self.orthogonal = exponential == "spectral"
        if self.orthogonal:
            self.padding_modes = ("circular",)
        super().__init__(*args, **kwargs)
        self.terms = check_terms("terms", terms)
        self.eval_terms = self.terms if eval_terms is None else check_terms("eval_terms", eval_terms)
        self.max_norm = self._default_norm() if max_norm is None else float(max_norm)
        if not 0 < self.max_norm < math.inf:
            raise ValueError(f"max_norm={max_norm}: expected a positive number")
        self._gains = {t: 1 / largest_modulus(t, self.max_norm) for t in (self.terms, self.eval_terms)}

    def _default_norm(self) -> float:
        limit = min(max(stable_norm(t), _LARGEST_NORM) for t in (self.terms, self.eval_terms))
        return min(_NORM_PER_SIDE * math.sqrt(math.prod(self.kernel_size)), limit)

    def _check_padding(self, padding: Any) -> Pads:
        if any(side % 2 == 0 for side in self.kernel_size):
            raise ValueError(f"kernel_size={self.kernel_size}: allowed are odd sides: even ones are never skew")
        pads, same = super()._check_padding(padding), same_pads(self.kernel_size, self.dilation)
        if pads != same:
            raise ValueError(f"padding={padding!r}: allowed are 'same' and what equals it, {same} as F.pad orders")
        return pads

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """raw_weight."""
        self.width = max(self.in_channels * math.prod(self.stride), self.out_channels)
        shape = (self.width, self.width // self.groups, *self.kernel_size)
        self.raw_weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Normal, standard deviation 0.1 / sqrt(channels of a group); bias 0."""
        nn.init.normal_(self.raw_weight, std=_INITIAL_DEVIATION * self.raw_weight.shape[1] ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def parametrize(self, *context: Any) -> tuple[Tensor, ...]:
        """(a matrix as 1 x 1 kernel,), (skew kernel,), or for an image size (unitary matrices per frequency,)."""
        kernel = skew(at_least_float32(self.raw_weight).unflatten(0, (self.groups, -1)))
        if self.kernel_size == (1, 1):
            exponential = ops.spectral_exp(kernel[..., 0, 0], backend=self.backend)
            inputs = self.in_channels * math.prod(self.stride) // self.groups
            matrices = exponential[:, : self.out_channels // self.groups, :inputs]
            return (matrices.flatten(0, 1)[:, :, None, None],)
        scale = self.max_norm / norm_bound(kernel).clamp_min(self.max_norm)
        kernel = kernel * scale[:, None, None, None, None]
        return (self._per_frequency(kernel, context),) if context else (kernel.flatten(0, 1),)

    def _per_frequency(self, kernel: Tensor, size: tuple[int, int]) -> Tensor:
        return kernel_exp(kernel.flatten(0, 1), size, self.dilation, self.groups, backend=self.backend)

    @property
    def is_spectral(self) -> bool:
        """Whether the layer is one ``fastlip.ops.spectral_conv``."""
        whole = self.width == self.out_channels == self.in_channels * math.prod(self.stride)
        return whole and self.exponential == "spectral" and self.kernel_size != (1, 1)

    def spectral_arguments(self, x: Tensor) -> tuple[Any, ...]:
        """What ``fastlip.ops.spectral_conv`` takes for the input x, by position."""
        self.check_input(x)
        x = space_to_depth(x, self.stride)
        size = x.shape[-2], x.shape[-1]
        return x, self.effective(*size)[0], self.bias, size, self.groups

    def forward(self, x: Tensor) -> Tensor:
        """exp(L) x + bias."""
        if self.is_spectral:
            return ops.spectral_conv(*self.spectral_arguments(x), backend=self.backend)
        self.check_input(x)
        x = space_to_depth(x, self.stride)
        if self.kernel_size == (1, 1):
            return F.conv2d(x, self.effective()[0], self.bias, groups=self.groups)
        x = _pad_channels(x, self.width, self.groups)
        if self.exponential == "spectral":
            (Q,) = self.effective(x.shape[-2], x.shape[-1])
            y = ops.spectral_conv(x, Q, groups=self.groups, backend=self.backend)
        else:
            (kernel,) = self.effective()
            geometry = self.dilation, self.groups, self.padding_mode
            y = ops.conv_exp(x, kernel, self._terms(), *geometry, backend=self.backend)
            gain = self._gains[self._terms()]
            y = y if gain == 1 else y * gain
        y = _first_channels(y, self.out_channels, self.groups)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]

    def _terms(self) -> int:
        return self.terms if self.training else self.eval_terms

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """The largest |p_T(i theta)| up to the skew kernel's norm on images of this size, T of the present mode.

        The spectral form and 1 x 1 kernels: the largest singular value.
        """
        height, width = (-(-side // step) for side, step in zip(input_shape[-2:], self.stride, strict=True))
        geometry = {"dilation": self.dilation, "groups": self.groups, "padding_mode": self.padding_mode}
        with torch.no_grad():
            if self.kernel_size == (1, 1):
                return ops.spectral_norm(as_it_runs(self.effective()[0]), (height, width), groups=self.groups).item()
            if self.exponential == "spectral":
                (Q,) = self.effective(height, width)
                return largest_singular_value(Q.unflatten(1, (self.groups, -1)))
            (kernel,) = self.effective()
            norm = ops.spectral_norm(as_it_runs(kernel), (height, width), pads=self.pads, **geometry).item()
        return largest_modulus(self._terms(), norm) * self._gains[self._terms()]

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        text = f"{super().extra_repr()}, exponential={self.exponential!r}, terms={self.terms}"
        return f"{text}, eval_terms={self.eval_terms}, max_norm={self.max_norm:.4g}"


def _pad_channels(x: Tensor, width: int, groups: int) -> Tensor:
    """Appends zero channels to each group, up to ``width`` channels in total."""
    if x.shape[-3] == width:
        return x
    channels = x.unflatten(-3, (groups, -1))
    return F.pad(channels, (0, 0, 0, 0, 0, width // groups - channels.shape[-3])).flatten(-4, -3)


def _first_channels(x: Tensor, channels: int, groups: int) -> Tensor:
    """Keeps the first channels of each group, ``channels`` in total."""
    if x.shape[-3] == channels:
        return x
    return x.unflatten(-3, (groups, -1))[..., : channels // groups, :, :].flatten(-4, -3)


class SOCLinear(MatrixLinear):
    r"""Dense layer y = exp((K - K^T) / 2) x + b, the exact exponential of a skew matrix.

    The dense case of Singla, Feizi, *Skew Orthogonal Convolutions*, ICML 2021: orthogonal with determinant 1; rows
    or columns of such a matrix if the features differ. Lipschitz constant 1. Args and shapes as
    ``torch.nn.Linear``, and ``backend``. Parameters: ``raw_weight`` K (c, c) with c = max(in_features,
    out_features), initialised normal with standard deviation 0.1 / sqrt(c), near the identity, and ``bias``,
    initialised 0. ``weight`` is the effective matrix.
    Cost: one matrix exponential per training step; in eval mode it is computed once.
    """

    orthogonal = True

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """raw_weight."""
        size = max(self.in_features, self.out_features)
        self.raw_weight = nn.Parameter(torch.empty(size, size, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Normal, standard deviation 0.1 / sqrt(c); bias 0."""
        nn.init.normal_(self.raw_weight, std=_INITIAL_DEVIATION * self.raw_weight.shape[0] ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def parametrize(self) -> tuple[Tensor, ...]:
        """(Q,): rows and columns of the exponential."""
        raw = at_least_float32(self.raw_weight)
        exponential = ops.spectral_exp((raw - raw.mT) / 2, backend=self.backend)
        return (exponential[: self.out_features, : self.in_features],)
