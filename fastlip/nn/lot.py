"""LOT: layer-wise orthogonal training (Xu, Li, Li, NeurIPS 2022)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.polar.reference import join, ridged_newton, split
from fastlip.nn._orthogonal import OrthogonalConv2d, OrthogonalLinear
from fastlip.nn.aol import centre_orthogonal_
from fastlip.nn.method import Method


def check_iteration(ridge: float | None, steps: int | None) -> tuple[float | None, int | None]:
    """Returns ridge and steps, both given or neither, or raises ValueError."""
    if (ridge is None) != (steps is None):
        raise ValueError(f"ridge={ridge!r}, steps={steps!r}: expected both or neither")
    if ridge is not None and not ridge > 0:
        raise ValueError(f"ridge={ridge!r}: expected a positive number")
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps!r}: expected at least 1")
    return ridge, steps


def polar(V: Tensor, ridge: float | None, steps: int | None, backend: Backend, reals: int = 0) -> Tensor:
    """The exact polar factor, or the published iteration's approximation."""
    if ridge is None or steps is None:
        return ops.polar(V, reals, backend=backend)
    return join([ridged_newton(part, ridge, steps) for part in split(V, reals)], V.dtype)


class LOTConv2d(OrthogonalConv2d):
    r"""Orthogonal convolution: at each frequency k, the polar factor of the kernel's matrix.

    .. math:: Q_k = (\hat W_k \hat W_k^H)^{-1/2} \hat W_k

    the matrix with orthonormal rows (or columns) nearest to the one of the unconstrained kernel.
    Xu, Li, Li, *LOT: Layer-wise Orthogonal Training on Improving l2 Certified Robustness*, NeurIPS 2022.

    Guarantee: circular padding, orthogonal (all singular values 1; with in_channels != out_channels, orthonormal
    rows or columns at every frequency), for every image size, kernel size, dilation and groups, singular matrices
    included. Zero padding: Lipschitz constant at most 1 (the image is embedded in zeros on a torus larger by
    dilation * (kernel_size - 1), convolved there, and cropped). With a stride, the image's stride x stride
    patches become channels, then follows a convolution of ceil(kernel_size / stride) taps; an image whose side
    the stride does not divide is padded with zeros.
    With ridge and steps: the published code's function, (W W^H + ridge I)^{-1/2} W by that many coupled Newton
    steps, whose singular values are below 1 (ridge=1e-4, steps=10, padding_mode="zeros", odd kernels).
    Cost: in training one polar factor per unique frequency (h w / 2 of them: two or three inverses each in C++, a
    decomposition in the reference and where channels change) and two Fourier transforms; in eval mode the factors
    are computed once per image size. A kernel of one tap has one real matrix, decomposed, and no transform.

    Args: as ``torch.nn.Conv2d``, ``backend``, and ``ridge``, ``steps``. padding is "same" (or ints that equal it),
    padding_mode "circular" (default) or "zeros", dilation 1 where stride exceeds 1. Initialised at the Dirac
    kernel (square) or at an orthogonal matrix in the kernel's centre, bias 0.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride)).
    Parameters: ``raw_weight`` (out_channels, in_channels / groups * stride^2, *ceil(kernel_size / stride)),
    ``bias`` (out_channels). Raises ValueError for other paddings, padding modes and dilated strides.
    """

    fixed = (*OrthogonalConv2d.fixed, "ridge", "steps")

    def __init__(self, *args: Any, ridge: float | None = None, steps: int | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.ridge, self.steps = check_iteration(ridge, steps)
        self.orthogonal = ridge is None

    def reset_parameters(self) -> None:
        """Each group: identity (square) or orthogonal matrix at the kernel's centre; bias 0."""
        centre_orthogonal_(self.raw_weight, self.groups)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def parametrize(self, *torus: int) -> tuple[Tensor, ...]:
        """(Q,): (F, cout, cin / groups) at the torus's unique frequencies; (cout, cin / groups, 1, 1) without."""
        if not torus or self.ridge is not None:
            return super().parametrize(*torus)
        size = torus[0], torus[1]
        return (ops.spectral_polar(self.scaled_weight(), size, self.dilation, self.groups, backend=self.backend),)

    def orthogonalize(self, V: Tensor, reals: int = 0) -> Tensor:
        """The polar factor."""
        return polar(V, self.ridge, self.steps, self.backend, reals)

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        return f"{super().extra_repr()}, ridge={self.ridge}, steps={self.steps}"


class LOTLinear(OrthogonalLinear):
    r"""Dense layer y = Q x + b, Q the polar factor of W: orthogonal, or orthonormal rows or columns.

    Xu, Li, Li, NeurIPS 2022. Lipschitz constant 1. Args and shapes as ``torch.nn.Linear``, ``backend``, and
    ``ridge``, ``steps`` as in :class:`LOTConv2d`. Parameters: ``raw_weight`` (out_features, in_features),
    initialised orthogonal (identity if square), ``bias``. ``weight`` is Q; in eval mode it is computed once.
    """

    fixed = (*OrthogonalLinear.fixed, "ridge", "steps")

    def __init__(self, *args: Any, ridge: float | None = None, steps: int | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.ridge, self.steps = check_iteration(ridge, steps)
        self.orthogonal = ridge is None

    def reset_parameters(self) -> None:
        """Identity (square) or an orthogonal matrix; bias 0."""
        centre_orthogonal_(self.raw_weight, 1)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def orthogonalize(self, V: Tensor) -> Tensor:
        """The polar factor."""
        return polar(V, self.ridge, self.steps, self.backend)

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        return f"{super().extra_repr()}, ridge={self.ridge}, steps={self.steps}"


METHOD = Method("lot", LOTConv2d, LOTLinear, settings={"digits": {"optimizer.lr": 0.02, "loss.temperature": 0.1}})
