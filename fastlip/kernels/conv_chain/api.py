"""A chain of "same" convolutions, each with its bias and MaxMin, forward and backward in channels-last passes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.asked import asked
from fastlip.kernels.common.checks import kind_of
from fastlip.kernels.common.derivatives import differentiated
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.geometry import ConvGeometry, from_numbers
from fastlip.kernels.common.literals import Backend, PaddingMode, PairingOrNone
from fastlip.kernels.common.precision import autocast_dtype, without_autocast
from fastlip.kernels.conv_chain import reference
from fastlip.kernels.maxmin.api import PAIRINGS

OP = Op("conv_chain")


def conv_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    scales: Sequence[Tensor] | None = None,
    padding_mode: PaddingMode = "circular",
    dilation: tuple[int, int] = (1, 1),
    pairing: PairingOrNone = "adjacent",
    *,
    exact: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    r"""Returns the output of a chain of convolutions that keep the image's size, each followed by MaxMin.

    .. math:: x_i = \mathrm{maxmin}(W_i \,\mathrm{diag}(s_i) * x_{i-1} + b_i), \qquad i = 1, \dots, L

    The reference pads, convolves, adds the bias and sorts pairs one after the other. The kernels keep images
    channels-last between the layers and need one pass between two convolutions, which writes the biased and sorted
    image, one bit per pair, and the halo that the next circular convolution reads. The backward convolves the
    output's gradient, with its halo, by the flipped kernel, so only W_i, s_i, x_{i-1} and the bits are saved.

    Args:
        x: (n, c_0, h, w).
        weights: W_1 ... W_L, at least one; W_i is (c_i, c_{i-1}, kh, kw).
        biases: b_1 ... b_L, each (c_i,) or None; default None: no biases.
        scales: s_1 ... s_L, each (c_{i-1},): factors of a kernel's input channels; default None: ones.
        padding_mode: ``"circular"`` (default; a kernel may exceed the image) or ``"zeros"``. An even kernel has the
            odd element of its padding after the image.
        dilation: distance between two taps of every layer, (vertical, horizontal); default (1, 1).
        pairing: of MaxMin, ``"adjacent"`` (default) or ``"halves"`` as in ``fastlip.ops.maxmin``; ``"none"``: no
            MaxMin.
        exact: if True, the output is made of sums for which certificates bound the rounding errors, also
            where a gradient is recorded; default False: there another algorithm may run, which rounds more.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        (n, c_L, h, w); from the kernels in channels-last format. Under autocast in its dtype.

    Raises:
        TypeError: x is not a floating-point tensor.
        ValueError: shapes, dilation, pairing or padding mode do not fit, or the backend is unknown or cannot run
            here.

    >>> x, weights = torch.randn(1, 2, 4, 4), [torch.randn(6, 2, 3, 3), torch.randn(4, 6, 3, 3)]
    >>> fastlip.ops.conv_chain(x, weights).shape
    torch.Size([1, 4, 4, 4])
    """
    weights, biases, scales = list(weights), list(biases or [None] * len(weights)), list(scales or [])
    geometries = _check(x, weights, biases, scales, pairing, padding_mode, dilation)
    filled: list[Tensor] = []
    for weight, bias in zip(weights, biases, strict=True):
        filled.append(weight.new_zeros(weight.shape[0]) if bias is None else bias)
    keep = False
    for tensor in (x, *weights, *filled, *scales):
        keep = keep or tensor.requires_grad
    keep = keep and torch.is_grad_enabled()
    # Asked here too, so that no call is made without autocast.
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type) and runs_under_autocast(x, backend):
        return _under_autocast(x, weights, filled, scales, keep, exact, geometries, pairing, backend)
    return OPERATOR(x, weights, filled, scales, keep, exact, geometries, pairing, backend)


def runs_under_autocast(x: Tensor, backend: Backend) -> bool:
    """Whether autocast is on for x, and Triton's passes take images of its type."""
    if backend not in ("auto", "triton") or (dtype := autocast_dtype(x)) is None:
        return False
    with without_autocast(x.device):
        return not OP.why_not("triton", x.new_empty((0, 1, 1, 1), dtype=dtype), [], [], [], [], "none")


def _under_autocast(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], scales: list[Tensor], keep: bool, *options: Any
) -> Tensor:
    """The chain in autocast's type: each kernel is scaled in its own type, and rounded once."""
    dtype = autocast_dtype(x)
    with without_autocast(x.device):
        rounded = [weight.to(dtype) for weight in reference.scaled(weights, scales)]
        return OPERATOR(x.to(dtype), rounded, [bias.to(dtype) for bias in biases], [], keep, *options)


def _check(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    scales: list[Tensor],
    pairing: str,
    padding_mode: PaddingMode,
    dilation: tuple[int, int],
) -> list[ConvGeometry]:
    """Returns the geometry of each layer."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x: got {kind_of(x)}, expected a floating-point tensor")
    if x.dim() != 4:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (n, c, h, w)")
    if not weights:
        raise ValueError("weights: got none, expected at least one")
    for name, values in (("biases", biases), ("scales", scales)):
        if values and len(values) != len(weights):
            raise ValueError(f"{name}: got {len(values)}, expected as many as weights, {len(weights)}")
    channels, geometries = x.shape[1], []
    for i, weight in enumerate(weights):
        if weight.dim() != 4 or weight.shape[1] != channels or 0 in weight.shape:
            raise ValueError(f"weights[{i}]: got shape {tuple(weight.shape)}, expected (cout, {channels}, kh, kw)")
        if scales and scales[i].shape != (channels,):
            raise ValueError(f"scales[{i}]: got shape {tuple(scales[i].shape)}, expected ({channels},)")
        channels = weight.shape[0]
        geometries.append(ConvGeometry.like(weight, dilation, padding_mode=padding_mode))
        if (bias := biases[i]) is not None and bias.shape != (channels,):
            raise ValueError(f"biases[{i}]: got shape {tuple(bias.shape)}, expected ({channels},)")
    if pairing not in (*PAIRINGS, "none"):
        raise ValueError(f"pairing={pairing!r}: allowed are {', '.join(map(repr, (*PAIRINGS, 'none')))}")
    return geometries


def mask_shape(x: Tensor, channels: int, pairing: str, backend: Backend) -> tuple[int, int]:
    """(rows, bytes) of a layer's bit mask. In C++ adjacent pairs of even channels run through a row.

    Otherwise every pixel begins a byte.
    """
    n, _, height, width = x.shape
    return bits_shape((n, height, width), channels, pairing, backend)


def bits_shape(image: tuple[int, int, int], channels: int, pairing: str, backend: str) -> tuple[int, int]:
    """As :func:`mask_shape`, from the batch and the sides."""
    n, height, width = image
    if pairing == "none":
        return n * height, 0
    through = backend == "native" and pairing == "adjacent" and channels % 2 == 0
    return n * height, (width * channels // 2 + 7) // 8 if through else width * ((channels // 2 + 7) // 8)


_Kept = tuple[Tensor, list[Tensor], list[Tensor]]


def _fake_forward(x: Tensor, weights: list[Tensor], *rest: Any) -> _Kept:
    _, _, keep, _, _, pairing, backend = rest
    n, _, height, width = x.shape
    shapes = [(n, weight.shape[0], height, width) for weight in weights]
    outputs = [torch.empty_like(x.new_empty(shape), memory_format=torch.channels_last) for shape in shapes]
    masks = [x.new_empty(mask_shape(x, weight.shape[0], pairing, backend), dtype=torch.uint8) for weight in weights]
    return outputs[-1], outputs[:-1] if keep else [], masks if keep else []


def _fake_backward(gradient: Tensor, x: Tensor, weights: list[Tensor], *rest: Any) -> _Kept:
    _, _, _, needs_weights, needs_biases, *_, backend = rest
    last = torch.channels_last if backend == "triton" else torch.contiguous_format
    weight_gradients = [
        torch.empty_like(w, memory_format=last) if need else w.new_empty(0)
        for w, need in zip(weights, needs_weights, strict=True)
    ]
    bias_gradients = [w.new_empty(w.shape[0] if need else 0) for w, need in zip(weights, needs_biases, strict=True)]
    return torch.empty_like(x, memory_format=torch.channels_last), weight_gradients, bias_gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: _Kept) -> None:
    x, weights, biases, scales, _, _, *ctx.options = inputs
    _, between, masks = output
    ctx.counts = len(weights), len(biases), len(scales), len(between)
    ctx.save_for_backward(x, *weights, *biases, *scales, *between, *masks)


def _gradients(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    x, *rest = ctx.saved_tensors
    weights, _biases, scales, between, masks = _split(rest, ctx.counts)
    counts = len(weights), len(weights), len(scales)
    needs_x, *others = asked(ctx)
    needs_weights, needs_biases, needs_scales = _split(others, counts)[:3]
    # A kernel's gradient costs as much as that of its input: frozen kernels, as of a network under attack, have none.
    needs_kernels = [any(needs) for needs in zip(needs_weights, *[needs_scales] * bool(scales), strict=True)]
    options = needs_x, needs_kernels, list(needs_biases), *ctx.options
    kernels = reference.scaled(weights, scales)
    x_bar, kernel_bars, bias_bars = _backward.outputs(gradient, x, kernels, between, masks, *options)
    weight_bars: list[Tensor | None] = [None] * len(weights)
    scale_bars: list[Tensor | None] = [None] * len(scales)
    for i, bar in enumerate(kernel_bars):
        if needs_weights[i]:
            weight_bars[i] = bar * scales[i][:, None, None] if scales else bar
        if scales and needs_scales[i]:
            scale_bars[i] = (bar * weights[i]).sum((0, 2, 3))
    bias_gradients = [bar if need else None for bar, need in zip(bias_bars, needs_biases, strict=True)]
    return x_bar if needs_x else None, weight_bars, bias_gradients, scale_bars, *[None] * 5


def _plain_gradients(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    x, *rest = ctx.saved_tensors
    weights, biases, scales, _between, _masks = _split(rest, ctx.counts)
    numbers, pairing, _ = ctx.options
    geometries = from_numbers(tuple(numbers))
    inputs = x, *weights, *biases, *scales

    def function(x: Tensor, *tensors: Tensor) -> Tensor:
        weights, biases, scales, _rest = _split(list(tensors), ctx.counts[:3])
        return reference.conv_chain(x, weights, biases, scales, geometries, pairing)

    needs_x, *needed = ctx.needs_input_grad[:4]
    found = differentiated(function, inputs, [needs_x, *chain.from_iterable(needed)], gradient)
    return found[0], *_split(found[1:], ctx.counts[:3])[:3], *[None] * 5


def _split(items: list[Any], counts: tuple[int, ...]) -> list[list[Any]]:
    parts = []
    for count in counts:
        parts.append(items[:count])
        items = items[count:]
    return [*parts, items]


# conv_chain(x, weights, biases, scales, keep, exact, geometries, pairing, backend), with a bias and a geometry per
# weight. Whether to keep what the backward needs is for the caller to say.
OPERATOR = OP.main(
    "conv_chain_forward(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] scales, bool keep,"
    " bool exact, int[] geometry, str pairing, str backend) -> (Tensor, Tensor[], Tensor[])",
    reference=reference.conv_chain,
    without=("keep", "exact"),
    fake=_fake_forward,
    setup_context=_save,
    backward=_gradients,
    plain_backward=_plain_gradients,
)
_backward = OP.define(
    "conv_chain_backward(Tensor gradient, Tensor x, Tensor[] kernels, Tensor[] between, Tensor[] masks,"
    " bool needs_x, bool[] needs_kernels, bool[] needs_biases, int[] geometry, str pairing,"
    " str backend) -> (Tensor, Tensor[], Tensor[])",
    fake=_fake_backward,
)
