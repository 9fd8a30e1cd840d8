"""The residual map x − Wᵀ diag(scale) relu(W x + b) of SLL and CPL layers, dense and convolutional."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.asked import asked
from fastlip.kernels.common.channels_last import adjoint
from fastlip.kernels.common.checks import kind_of
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.literals import Backend, PaddingMode, PairingOrNone
from fastlip.kernels.common.precision import autocast_dtype, without_autocast
from fastlip.kernels.conv_chain.api import mask_shape, runs_under_autocast
from fastlip.kernels.maxmin.api import PAIRINGS
from fastlip.kernels.sdp_residual import reference

OP = Op("sdp_residual")


def sdp_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    dilation: tuple[int, ...] | None = None,
    groups: int = 1,
    padding_mode: PaddingMode = "zeros",
    pairing: PairingOrNone = "none",
    recompute: bool | None = None,
    second: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    r"""Returns the residual map of SLL and CPL layers, whose second weight is tied to the first.

    .. math:: y = x - W_2\, \mathrm{relu}(W x + b), \qquad W_2 = W^\top \mathrm{diag}(s)

    Araujo et al., *A Unified Algebraic Perspective on Lipschitz Neural Networks*, ICLR 2023 (s = 2/T); Meunier et
    al., *A Dynamical System Perspective for Lipschitz Neural Networks*, ICML 2022 (s = 2/σ²). The map is 1-Lipschitz
    if diag(s)^{1/2} W Wᵀ diag(s)^{1/2} ⪯ 2 I, which this function does not check. The scale is folded into the second
    weight, so no pass over activations applies it.

    W is a matrix, or a convolution at stride 1 whose padding keeps the image's size; an even kernel has the odd
    element of its padding after the image. Wᵀ is the exact adjoint of the padded convolution, also for even kernels,
    circular padding and images smaller than the kernel.

    Args:
        x: (*, c) for a matrix; (n, c, h, w) or (c, h, w) for a convolution, of volumes (n, c, d, h, w) or
            (c, d, h, w).
        weight: W, (m, c) or (m, c / groups, kh, kw), of volumes (m, c / groups, kd, kh, kw), for which there are no
            kernels; m is the inner width.
        bias: b, (m,), or None.
        scale: s, (m,), not negative.
        dilation: distance between two taps, (vertical, horizontal); default None: 1 along each axis.
        groups: number of groups of channels, as in ``conv2d``; default 1.
        padding_mode: ``"zeros"`` (default) or ``"circular"``.
        pairing: of a MaxMin over the channels of y, ``"adjacent"`` or ``"halves"``; ``"none"`` (default): no MaxMin.
        recompute: if True, the backward of the kernels computes relu(W x + b) again, at the cost of one convolution;
            if False it is saved. Default None: True for 1x1 kernels, where it is cheap. The result is the same.
        second: the result of ``folded(weight, scale)`` in this op's module, if it has been computed already; it has
            no gradient of its own. Default None.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        y: the shape of x. Under autocast both products run in its dtype.

    Raises:
        TypeError: weight is not a floating-point tensor.
        ValueError: shapes, groups, dilation, pairing or padding mode do not fit, or the backend is unknown or cannot
            run here.

    >>> fastlip.ops.sdp_residual(torch.tensor([[3.0, -1.0]]), torch.eye(2), None, torch.ones(2))
    tensor([[ 0., -1.]])
    """
    _check(x, weight, bias, scale, groups)
    axes = weight.dim() - 2
    geometry = ConvGeometry.like(weight, dilation or (1,) * axes, groups, padding_mode) if axes else None
    if pairing not in (*PAIRINGS, "none"):
        raise ValueError(f"pairing={pairing!r}: allowed are {', '.join(map(repr, (*PAIRINGS, 'none')))}")
    if recompute is None:
        recompute = geometry is not None and geometry.taps == 1
    training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or scale.requires_grad)
    lowered = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    call = residual_under_autocast if lowered else OPERATOR
    return call(x, weight, bias, scale, second, recompute, training, geometry, pairing, backend)


def residual_under_autocast(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    second: Tensor | None,
    recompute: bool,
    training: bool,
    geometry: ConvGeometry | None,
    pairing: PairingOrNone,
    backend: Backend,
) -> Tensor:
    """The operator; Triton's passes run it for an x of autocast's type. W₂ is made in the type of W, and rounded.

    An x of more precision keeps it in x - W₂ relu(W x + b), where autocast rounds the products alone: so torch does.
    """
    dtype = autocast_dtype(x)
    takes = geometry is not None and geometry.groups == 1 and x.dim() == weight.dim() == 4 and x.dtype == dtype
    if not takes or not runs_under_autocast(x, backend):
        return OPERATOR(x, weight, bias, scale, second, recompute, training, geometry, pairing, backend)
    with without_autocast(x.device):
        if second is None:
            second = folded(weight.detach(), scale.detach())
        tensors = (None if tensor is None else tensor.to(dtype) for tensor in (x, weight, bias, scale, second))
        return OPERATOR(*tensors, recompute, training, geometry, pairing, backend)


def folded(weight: Tensor, scale: Tensor) -> Tensor:
    """The kernel (c, m, kh, kw) of the convolution W₂ = Wᵀ diag(scale), as the kernels read it: channels-last."""
    return adjoint(scale[:, None, None, None] * weight).contiguous(memory_format=torch.channels_last)


def _check(x: Tensor, weight: Any, bias: Tensor | None, scale: Tensor, groups: int) -> None:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        got = kind_of(weight)
        raise TypeError(f"weight: got {got}, expected a floating-point tensor")
    if weight.dim() not in (2, 4, 5):
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected two, four or five dimensions")
    inner = weight.shape[0]
    for name, vector in (("bias", bias), ("scale", scale)):
        if vector is not None and vector.shape != (inner,):
            raise ValueError(f"{name}: got shape {tuple(vector.shape)}, expected ({inner},)")
    if weight.dim() == 2:
        if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (*, {weight.shape[1]})")
        return
    if groups < 1 or inner % groups:
        raise ValueError(f"groups={groups}: expected a divisor of the inner width {inner}")
    channels = groups * weight.shape[1]
    axes, size = weight.dim() - 2, "h, w" if weight.dim() == 4 else "d, h, w"
    if x.dim() not in (axes + 1, axes + 2) or x.shape[-1 - axes] != channels:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (n, {channels}, {size}) or ({channels}, {size})")


def _fake_forward(
    x: Tensor, weight: Tensor, bias: Any, scale: Any, second: Any, recompute: bool, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *_, geometry, pairing, backend = options
    if not geometry:
        return x.new_empty(x.shape), x.new_empty((*x.shape[:-1], len(weight))), x.new_empty(0, dtype=torch.uint8)
    shape = (0, 0, 0, 0) if recompute else (x.shape[0], weight.shape[0], *x.shape[2:])
    h = torch.empty_like(x.new_empty(shape), memory_format=torch.channels_last)
    mask = x.new_empty(mask_shape(x, x.shape[1], pairing, backend), dtype=torch.uint8)
    return torch.empty_like(x, memory_format=torch.channels_last), h, mask


def _fake_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Any, scale: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    _, _, needs_x, needs_weight, geometry, *_ = rest
    if not geometry:
        of_x, of_weight = (
            x.new_empty(x.shape if needs_x else 0),
            weight.new_empty(weight.shape if needs_weight else 0),
        )
        return of_x, of_weight, torch.empty_like(scale), torch.empty_like(scale)
    images = torch.empty_like(x, memory_format=torch.channels_last) if needs_x else x.new_empty(0)
    return (
        images,
        weight.new_empty(weight.shape if needs_weight else 0),
        torch.empty_like(scale),
        torch.empty_like(scale),
    )


def _gradients(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    needs_x, needs_weight = asked(ctx)[:2]
    x, weight, bias, scale, h, mask = ctx.saved_tensors
    options = needs_x, needs_weight, *ctx.options
    x_bar, weight_bar, bias_bar, scale_bar = _backward.outputs(gradient, x, weight, bias, scale, h, mask, *options)
    x_bar, weight_bar = x_bar if needs_x else None, weight_bar if needs_weight else None
    return x_bar, weight_bar, None if bias is None else bias_bar, scale_bar, *[None] * 6


# sdp_residual(x, weight, bias, scale, second, recompute, training, geometry, pairing, backend); a matrix has no
# geometry: None. Where a gradient is asked for (training), kernels may choose a faster convolution that rounds more.
OPERATOR = OP.main(
    "sdp_residual_forward(Tensor x, Tensor weight, Tensor? bias, Tensor scale, Tensor? second, bool recompute,"
    " bool training, int[] geometry, str pairing, str backend) -> (Tensor y, Tensor h, Tensor mask)",
    reference=reference.sdp_residual,
    nested=True,
    without=("second", "recompute", "training"),
    fake=_fake_forward,
    saves=("x", "weight", "bias", "scale", "h if h", "mask"),
    keeps=("geometry", "pairing", "backend"),
    backward=_gradients,
)
_backward = OP.define(
    "sdp_residual_backward(Tensor gradient, Tensor x, Tensor weight, Tensor? bias, Tensor scale, Tensor? h,"
    " Tensor mask, bool needs_x, bool needs_weight, int[] geometry, str pairing, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake_backward,
)
