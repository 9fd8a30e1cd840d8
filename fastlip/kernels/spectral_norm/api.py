"""Upper bound of the L2 operator norm of a convolution on images of one size, or of a matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.checks import kind_of
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.literals import Backend, PaddingMode
from fastlip.kernels.spectral_norm import reference

PADDING_MODES = ("circular", "zeros")
OP = Op("spectral_norm", backends=())


def spectral_norm(
    weight: Tensor,
    image_size: tuple[int, ...] | None = None,
    stride: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    dilation: tuple[int, ...] | None = None,
    groups: int = 1,
    padding_mode: PaddingMode = "circular",
    *,
    backend: Backend = "auto",
) -> Tensor:
    r"""Returns an upper bound of the spectral norm of a matrix, or of a convolution on images of one size.

    .. math:: \max_k \sigma_{\max}\Bigl(\sum_\tau W_\tau e^{-i\varphi_{k\tau}}\Bigr)

    over the frequencies k of the FFT (Sedghi, Gupta, Long, *The Singular Values of Convolutional Layers*, ICLR 2019),
    from float64 eigenvalues. Where those cost too much (many frequencies of many channels), Gram iteration gives a
    bound that is at most 1 % larger (Delattre, Barthélemy, Araujo, Allauzen, *Efficient Bound of Lipschitz Constant
    for Convolutional Layers by Gram Iteration*, ICML 2023). A bound of the rounding errors is added.

    With circular padding of dilation * (kernel_size - 1) in total per axis, the FFT size is the image's, and the
    result is the exact norm if the stride divides the side; otherwise it is the norm at stride 1, which bounds it.
    With zero padding the result is a bound, because the convolution is a part of the circular one at a larger FFT
    size.

    Args:
        weight: (cout, cin / groups, kh, kw), of volumes (cout, cin / groups, kd, kh, kw), or (out_features,
            in_features) for the norm of a matrix.
        image_size: (h, w) of the input before padding, of volumes (d, h, w); default None, for a matrix, which has
            none.
        stride: step between two outputs, (vertical, horizontal) or (depth, vertical, horizontal); default None: 1.
        pads: (left, right, top, bottom), of volumes also (front, back), as ``F.pad`` orders them; default None: 0.
        dilation: distance between two taps, in the order of stride; default None: 1.
        groups: number of groups of channels, as in ``conv2d``; default 1.
        padding_mode: ``"circular"`` (default) or ``"zeros"``.
        backend: ``"auto"`` (default) or ``"reference"``: this op has no kernels.

    Returns:
        A float64 scalar on the CPU, without gradient.

    Raises:
        TypeError: weight is not a floating-point tensor.
        ValueError: an argument is out of range, or weight has NaN or Inf.

    >>> f"{fastlip.ops.spectral_norm(torch.ones(1, 1, 3, 3), (8, 8), pads=(1, 1, 1, 1)).item():.4f}"
    '9.0000'
    """
    OP.choose(backend)
    weight = _check_weight(weight, groups)
    if weight.dim() == 2:
        return reference.matrix_norm(weight)
    axes = weight.dim() - 2
    one, ints = (1,) * axes, "a pair of ints" if axes == 2 else "three ints"
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode={padding_mode!r}: allowed are {', '.join(map(repr, PADDING_MODES))}")
    stride, dilation, pads = stride or one, dilation or one, (0, 0) * axes if pads is None else pads
    if len(pads) != 2 * axes or min(pads) < 0:
        expected = "(left, right, top, bottom)" if axes == 2 else "(left, right, top, bottom, front, back)"
        raise ValueError(f"pads={pads!r}: expected {expected}, at least 0")
    for name, value in (("stride", stride), ("dilation", dilation)):
        if len(value) != axes or min(value) < 1:
            raise ValueError(f"{name}={value!r}: expected {ints}, at least 1")
    geometry = ConvGeometry(
        tuple(weight.shape[2:]), tuple(stride), tuple(pads), tuple(dilation), groups, padding_mode
    )
    return convolution_norm(weight, image_size, geometry)


def convolution_norm(weight: Tensor, image_size: tuple[int, ...] | None, geometry: ConvGeometry) -> Tensor:
    """:func:`spectral_norm` of a convolution of this geometry."""
    weight = _check_weight(weight, geometry.groups)
    if image_size is None or len(image_size) != geometry.axes or min(image_size) < 1:
        sides = "height and width" if geometry.axes == 2 else "depth, height and width"
        raise ValueError(f"image_size={image_size!r}: expected the {sides} of the input, at least 1")
    return reference.convolution_norm(weight, image_size, geometry)


def _check_weight(weight: Any, groups: int) -> Tensor:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError(f"weight: got {kind_of(weight)}, expected a floating-point tensor")
    if weight.dim() not in (2, 4, 5):
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected two, four or five dimensions")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups={groups}: expected a divisor of the {weight.shape[0]} output channels")
    weight = weight.detach().to("cpu", torch.float64)
    if not weight.isfinite().all():
        raise ValueError("weight: contains NaN or Inf")
    return weight
