"""Circular convolution of images by matrices given per frequency."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.asked import asked
from fastlip.kernels.common.dispatch import Op, differentiated
from fastlip.kernels.common.gate import refusal
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.precision import autocasts, without_autocast
from fastlip.kernels.spectral_conv import reference, tables
from fastlip.kernels.spectral_conv.fixed import FixedSpectrum, fix_spectrum
from fastlip.kernels.spectral_conv.frequencies import (
    Size,
    half_plane,
    kernel_spectrum,
    own_frequencies,
    per_frequency,
    unique_frequencies,
)

__all__ = [
    "FixedSpectrum",
    "fix_spectrum",
    "half_plane",
    "kernel_spectrum",
    "own_frequencies",
    "per_frequency",
    "spectral_conv",
    "spectral_conv_fixed",
    "unique_frequencies",
]

OP = Op("spectral_conv")
ACTIVATIONS = {"none": 0, "relu": 1, "maxmin": 2}  # as csrc/spectral_conv/finish.h numbers them


def spectral_conv(
    x: Tensor,
    Q: Tensor,
    bias: Tensor | None = None,
    torus: Size | None = None,
    groups: int = 1,
    *,
    backend: Backend = "auto",
) -> Tensor:
    r"""y = IDFT(Q_k DFT(x)_k) + bias: the circular convolution whose matrix at frequency k is Q_k.

    Its singular values are those of the Q_k, all of them: unitary Q_k make it an orthogonal map. On a torus larger
    than the image, x is embedded in zeros and the result is cropped, which adds no norm.

    Args:
        x: (n, cin, h, w) or (cin, h, w). Transformed and multiplied in the precision of Q, also under autocast.
        Q: (F, cout, cin / groups), complex, at the unique frequencies of the torus in the order of
            :func:`unique_frequencies`, F = (h w + g) / 2 with g the number of self-conjugate ones: what
            :func:`kernel_spectrum` and :func:`per_frequency` return. An imaginary part at those g has no effect.
        bias: (cout,).
        torus: (height, width) of the circular image, at least that of x, which is the default.
        groups: as in ``torch.nn.functional.conv2d``.
        backend: ``"auto"``, ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        (n, cout, h, w) or (cout, h, w), in the dtype of x, or that of ``conv2d`` under autocast. Kernels keep the
        memory format of x.

    Raises:
        TypeError: x is not real, or of more precision than Q; Q is not complex64 or complex128.
        ValueError: shapes that do not fit; an empty image; unknown backend.
    """
    torus = torus or (x.shape[-2], x.shape[-1])
    _check(x, Q, torus, groups)
    dtype = x.dtype
    if dtype == torch.float32 and autocasts(x.device):
        dtype = torch.get_autocast_dtype(x.device.type)
    images = x if x.dim() == 4 else x[None]
    bias = bias if bias is None else bias.to(reference.REAL[Q.dtype])
    chosen = OP.choose(backend, images, Q, bias, torus, groups)
    if chosen == "reference":
        with without_autocast(x.device):
            y = reference.spectral_conv(images, Q, bias, torus, groups)
    else:
        if chosen == "triton":
            tables.prepare((torus[0], torus[1]), (x.shape[-2], x.shape[-1]), reference.REAL[Q.dtype], x.device)
        y = _forward(images, Q, bias, torus, groups, chosen)
    return (y if x.dim() == 4 else y[0]).to(dtype)


def spectral_conv_fixed(
    x: Tensor,
    spectrum: FixedSpectrum,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
    memory_format: torch.memory_format | None = None,
    factor: float = 1.0,
) -> Tensor:
    r"""activation(z), or activation(residual - z), of a fixed convolution z = factor Q * x + bias.

    What :func:`spectral_conv` computes, with matrices that are laid out beforehand (by :func:`fix_spectrum`), and
    with the activation and the residual in the last stage of the transforms instead of passes of their own. Native
    only, and without a derivative: for evaluation.

    Args:
        x: (n, cin, h, w), float32 or float64.
        spectrum: of a torus at least as large as x, in the precision of x.
        bias: (cout,).
        residual: (n, cout, h, w).
        activation: ``"none"``, ``"relu"``, or ``"maxmin"`` of the channels 2i and 2i + 1.
        memory_format: of the result, ``torch.contiguous_format`` or ``torch.channels_last``; None: that of x.
        factor: of Q.

    Returns:
        (n, cout, h, w).

    Raises:
        ValueError: shapes, dtypes or activations that do not fit, or no native kernels here.
    """
    if not torch.compiler.is_compiling() and (reason := refusal((x, spectrum.panels, bias, residual))):
        raise ValueError(f"fastlip.ops.spectral_conv_fixed cannot run here: {reason}")
    n, channels, height, width = x.shape
    fits = channels == spectrum.inputs and height <= spectrum.torus[0] and width <= spectrum.torus[1]
    if not fits or x.dtype != spectrum.panels.dtype:
        raise ValueError(
            f"x: got shape {tuple(x.shape)} of {x.dtype}, expected (n, {spectrum.inputs}, h, w) of "
            f"{spectrum.panels.dtype}, with sides of at most {spectrum.torus}"
        )
    expected = n, spectrum.outputs, height, width
    if residual is not None and (residual.shape != expected or residual.dtype != x.dtype):
        raise ValueError(
            f"residual: got shape {tuple(residual.shape)} of {residual.dtype}, expected {expected} of {x.dtype}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: allowed are {', '.join(map(repr, ACTIVATIONS))}")
    last = (memory_format or dense_format(x)) is torch.channels_last
    options = spectrum.outputs, spectrum.torus, activation, last, factor
    return _fixed(x, spectrum.panels, bias, residual, *options, "native")


def _check(x: Tensor, Q: Tensor, torus: Size, groups: int) -> None:
    if Q.dtype not in reference.REAL:
        raise TypeError(f"Q: got {Q.dtype}, allowed are {', '.join(map(str, reference.REAL))}")
    if not x.is_floating_point() or torch.promote_types(x.dtype, Q.dtype) != Q.dtype:
        raise TypeError(
            f"x: got {x.dtype}, expected {reference.REAL[Q.dtype]} or a shorter real type for Q of {Q.dtype}"
        )
    if x.dim() not in (3, 4) or 0 in x.shape[-2:]:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected (n, cin, h, w) or (cin, h, w) with h, w at least 1"
        )
    if torus[0] < x.shape[-2] or torus[1] < x.shape[-1]:
        raise ValueError(f"torus={torus}: expected at least the size {tuple(x.shape[-2:])} of x")
    own = (2 - torus[0] % 2) * (2 - torus[1] % 2)
    frequencies = (torus[0] * torus[1] + own) // 2
    if Q.dim() != 3 or Q.shape[0] != frequencies:
        raise ValueError(f"Q: got shape {tuple(Q.shape)}, expected ({frequencies}, cout, cin) for torus={torus}")
    if x.shape[-3] != groups * Q.shape[2] or Q.shape[1] % groups:
        raise ValueError(
            f"groups={groups}: {x.shape[-3]} channels of x and Q of shape {tuple(Q.shape)} do not fit; "
            f"expected (F, cout, cin / groups) with cout divisible by groups"
        )


def dense_format(x: Tensor) -> torch.memory_format:
    """The memory format that kernels read and write: channels-last where x is, otherwise contiguous."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _fake_forward(x: Tensor, Q: Tensor, *_: Any) -> Tensor:
    shape = (x.shape[0], Q.shape[1], x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=reference.REAL[Q.dtype], device=x.device, memory_format=dense_format(x))


def _fake_fixed(
    x: Tensor,
    panels: Tensor,
    bias: Any,
    residual: Any,
    outputs: int,
    torus: Size,
    activation: str,
    channels_last: bool,
    *_: Any,
) -> Tensor:
    return empty_images(x, outputs, channels_last)


def empty_images(x: Tensor, channels: int, channels_last: bool) -> Tensor:
    """Uninitialised images like x, with so many channels."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = x.shape[0], channels, x.shape[2], x.shape[3]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _fake_backward(
    gradient: Tensor, x: Tensor, Q: Tensor, torus: Size, groups: int, wanted: list[bool], backend: Backend
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients(x, Q, wanted)


def empty_gradients(x: Tensor, Q: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised gradients of x, Q and the bias, without elements where they are not wanted."""
    return (
        torch.empty_like(x, memory_format=dense_format(x)) if wanted[0] else x.new_empty(0),
        Q.new_empty(Q.shape if wanted[1] else 0),
        Q.new_empty(Q.shape[1] if wanted[2] else 0, dtype=reference.REAL[Q.dtype]),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, Q, _, *ctx.options = inputs
    ctx.save_for_backward(x, Q)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    torus, groups, backend = ctx.options
    x_wanted, Q_wanted, *bias_wanted = asked(ctx)
    wanted = [x_wanted, Q_wanted, any(bias_wanted)]
    gradients = _backward.outputs(gradient, *ctx.saved_tensors, torus, groups, wanted, backend)
    found = (value if want else None for value, want in zip(gradients, wanted, strict=True))
    return *found, None, None, None


def _plain_gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    torus, groups, _ = ctx.options
    needs_x, needs_Q, needs_bias = ctx.needs_input_grad[:3]

    def function(x: Tensor, Q: Tensor) -> Tensor:
        with without_autocast(x.device):
            return reference.spectral_conv(x, Q, None, (torus[0], torus[1]), groups)

    found = differentiated(function, ctx.saved_tensors, (needs_x, needs_Q), gradient)
    return *found, gradient.sum((0, 2, 3)) if needs_bias else None, None, None, None


_forward = OP.define(
    "spectral_conv_forward(Tensor x, Tensor Q, Tensor? bias, int[] torus, int groups, str backend) -> Tensor",
    fake=_fake_forward,
    setup_context=_save,
    backward=_gradients,
    plain_backward=_plain_gradients,
)
_backward = OP.define(
    "spectral_conv_backward(Tensor gradient, Tensor x, Tensor Q, int[] torus, int groups, bool[] wanted, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
)
_fixed = OP.define(
    "spectral_conv_fixed(Tensor x, Tensor panels, Tensor? bias, Tensor? residual, int outputs, int[] torus,"
    " str activation, bool channels_last, float factor, str backend) -> Tensor",
    fake=_fake_fixed,
)
