"""Upper bound of the L2 operator norm of a convolution on images of one size, or of a matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.literals import Backend, PaddingMode
from fastlip.kernels.spectral_norm import reference

PADDING_MODES = ("circular", "zeros")
OP = Op("spectral_norm", backends=())


def spectral_norm(
    weight: Tensor,
    image_size: tuple[int, int] | None = None,
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    padding_mode: PaddingMode = "circular",
    *,
    backend: Backend = "auto",
) -> Tensor:
    r"""Upper bound of the spectral norm of ``conv2d`` with this kernel on images of this size, in float64.

    .. math:: \max_k \sigma_{\max}\Bigl(\sum_\tau W_\tau e^{-i\varphi_{k\tau}}\Bigr)

    over the frequencies k of a torus (Sedghi, Gupta, Long, *The Singular Values of Convolutional Layers*, ICLR
    2019), from float64 eigenvalues; where those are too dear (many frequencies of many channels) by Gram
    iteration, at most 1 % above (Delattre, Barthélemy, Araujo, Allauzen, *Efficient Bound of Lipschitz Constant
    for Convolutional Layers by Gram Iteration*, ICML 2023). Enlarged by a bound of its own rounding errors.

    Circular padding of dilation * (kernel_size - 1) in total per axis: the torus is the image, and the result is
    the exact norm if the stride divides the side; otherwise the norm at stride 1, which bounds it. Zero padding:
    a bound, since the convolution is a part of the circular one on a torus that the padding enlarges.

    Args:
        weight: (cout, cin / groups, kh, kw), or (out_features, in_features) for a matrix's 2-norm.
        image_size: (h, w) of the input, before padding. Not used for a matrix.
        stride, dilation: per axis (vertical, horizontal).
        pads: (left, right, top, bottom), as ``F.pad`` orders them.
        groups: as ``F.conv2d``.
        padding_mode: ``"circular"`` or ``"zeros"``.
        backend: ``"auto"`` or ``"reference"``: this op has no kernels.

    Returns:
        A float64 scalar on the CPU, without gradient.

    Raises:
        ValueError: an argument out of range, or NaN or Inf in weight.
    """
    OP.choose(backend)
    weight = _check_weight(weight, groups)
    if weight.dim() == 2:
        return reference.matrix_norm(weight)
    if image_size is None or min(image_size) < 1:
        raise ValueError(f"image_size={image_size!r}: expected the height and width of the input, at least 1")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode={padding_mode!r}: allowed are {', '.join(map(repr, PADDING_MODES))}")
    if len(pads) != 4 or min(pads) < 0:
        raise ValueError(f"pads={pads!r}: expected (left, right, top, bottom), at least 0")
    for name, pair in (("stride", stride), ("dilation", dilation)):
        if len(pair) != 2 or min(pair) < 1:
            raise ValueError(f"{name}={pair!r}: expected a pair of ints, at least 1")
    left, right, top, bottom = pads
    geometry = ConvGeometry(
        (weight.shape[2], weight.shape[3]), (stride[0], stride[1]), (left, right, top, bottom),
        (dilation[0], dilation[1]), groups, padding_mode,
    )  # fmt: skip
    return reference.convolution_norm(weight, image_size, geometry)


def _check_weight(weight: Any, groups: int) -> Tensor:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(
            f"weight: got {getattr(weight, 'dtype', type(weight).__name__)}, expected a floating-point tensor"
        )
    if weight.dim() not in (2, 4):
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected two or four dimensions")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups={groups}: expected a divisor of the {weight.shape[0]} output channels")
    weight = weight.detach().to("cpu", torch.float64)
    if not weight.isfinite().all():
        raise ValueError("weight: contains NaN or Inf")
    return weight
