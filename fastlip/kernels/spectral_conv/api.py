"""Circular convolution of images by matrices given per frequency."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.asked import asked
from fastlip.kernels.common.derivatives import differentiated
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.gate import refusal
from fastlip.kernels.common.literals import Backend, FusedActivation
from fastlip.kernels.common.precision import autocasts, without_autocast
from fastlip.kernels.spectral_conv import reference, tables
from fastlip.kernels.spectral_conv.fixed import FixedSpectrum
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
    fft_size: Size | None = None,
    groups: int = 1,
    *,
    backend: Backend = "auto",
    torus: Size | None = None,
) -> Tensor:
    r"""Returns the circular convolution of x whose matrix at frequency k is Q_k.

    .. math:: y = \mathrm{IDFT}(Q_k\, \mathrm{DFT}(x)_k) + b

    The singular values of the convolution are those of all Q_k, so unitary Q_k make it an orthogonal map. If the FFT
    size exceeds the image, x is embedded in zeros and the result is cropped, which adds no norm.

    Args:
        x: (n, cin, h, w) or (cin, h, w), or volumes with an FFT size of three sides: (n, cin, d, h, w) or
            (cin, d, h, w), for which there are no kernels; transformed and multiplied in the precision of Q, also
            under autocast.
        Q: (F, cout, cin / groups), complex64 or complex128, at the unique frequencies of the FFT size in the order of
            ``kernel_spectrum``: F = (h w + g) / 2, where g is the number of self-conjugate frequencies, which come
            first. An imaginary part at those has no effect.
        bias: b, (cout,); default None.
        fft_size: (height, width) of the circular image, or (depth, height, width) of the circular volume, at least
            the size of x; default None: the size of x, which is an image then.
        groups: number of groups of channels, as in ``torch.nn.functional.conv2d``; default 1.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        torus: the earlier name of ``fft_size``, which still works; default None.

    Returns:
        The shape of x with cout channels, in the dtype of x, or under autocast in that of ``conv2d``. The kernels
        keep the memory format of x.

    Raises:
        TypeError: x is not real or has more precision than Q, or Q is not complex64 or complex128.
        ValueError: shapes do not fit, the image is empty, or the backend is unknown or cannot run here.

    >>> x, weight = torch.randn(1, 2, 5, 4), torch.randn(3, 2, 3, 3)
    >>> y = fastlip.ops.spectral_conv(x, fastlip.ops.kernel_spectrum(weight, (5, 4)))
    >>> padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
    >>> bool(torch.allclose(y, torch.conv2d(padded, weight), atol=1e-4))
    True
    """
    fft_size = fft_size or torus or (x.shape[-2], x.shape[-1])
    _check(x, Q, fft_size, groups)
    dtype = x.dtype
    if dtype == torch.float32 and autocasts(x.device):
        dtype = torch.get_autocast_dtype(x.device.type)
    images = x if x.dim() == 2 + len(fft_size) else x[None]
    bias = bias if bias is None else bias.to(reference.REAL[Q.dtype])
    if images.device.type != "cpu" and len(fft_size) == 2:
        tables.prepare((fft_size[0], fft_size[1]), (x.shape[-2], x.shape[-1]), reference.REAL[Q.dtype], x.device)
    y = OPERATOR(images, Q, bias, fft_size, groups, backend)
    return (y if images is x else y[0]).to(dtype)


def fix_spectrum(Q: Tensor, fft_size: Size, backend: str) -> FixedSpectrum:
    """Q, (F, cout, cin) complex as in :func:`spectral_conv`, as the kernels of a backend read it.

    Args:
        Q: matrices at the unique frequencies of the FFT size, complex64 or complex128, of one group.
        fft_size: FFT size (height, width).
        backend: ``"native"`` or ``"triton"``.

    Raises:
        ValueError: the backend cannot be imported here.
    """
    if reason := OP.status(backend):
        raise ValueError(f"fastlip.ops.spectral_conv_fixed: backend={backend!r} cannot run here: {reason}")
    _, outputs, inputs = Q.shape
    return FixedSpectrum(OP.modules[backend].panels(Q, fft_size), inputs, outputs, fft_size, backend)


def spectral_conv_fixed(
    x: Tensor,
    spectrum: FixedSpectrum,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: FusedActivation = "none",
    memory_format: torch.memory_format | None = None,
    factor: float = 1.0,
) -> Tensor:
    r"""Returns activation(z), or activation(residual - z), of a fixed convolution z = factor Q * x + bias.

    The convolution is that of :func:`spectral_conv` with matrices that were laid out beforehand by
    :func:`fix_spectrum`. The last stage of the transforms applies the residual and the activation. There is no
    reference and no derivative: it is for evaluation.

    Args:
        x: (n, cin, h, w), float32 or float64.
        spectrum: of an FFT size at least that of x, in the precision of x.
        bias: (cout,); default None.
        residual: (n, cout, h, w); default None.
        activation: ``"none"`` (default), ``"relu"``, or ``"maxmin"`` of the channels 2i and 2i + 1.
        memory_format: of the result, ``torch.contiguous_format`` or ``torch.channels_last``; default None: that of x.
        factor: factor of Q, default 1.

    Returns:
        (n, cout, h, w).

    Raises:
        ValueError: shapes, dtypes or the activation do not fit, or the spectrum's kernels cannot run here.
    """
    backend = spectrum.backend
    reason = "" if torch.compiler.is_compiling() else refusal((x, spectrum.panels, bias, residual))
    if not reason and not (x.is_cpu and backend == "native"):
        reason = OP.status(backend) or OP.modules[backend].supports_fixed(x)
    if reason:
        raise ValueError(f"fastlip.ops.spectral_conv_fixed cannot run here: {reason}")
    n, channels, height, width = x.shape
    fits = channels == spectrum.inputs and height <= spectrum.fft_size[0] and width <= spectrum.fft_size[1]
    if not fits or x.dtype != spectrum.panels.dtype:
        raise ValueError(
            f"x: got shape {tuple(x.shape)} of {x.dtype}, expected (n, {spectrum.inputs}, h, w) of "
            f"{spectrum.panels.dtype}, with sides of at most {spectrum.fft_size}"
        )
    expected = n, spectrum.outputs, height, width
    if residual is not None and (residual.shape != expected or residual.dtype != x.dtype):
        raise ValueError(
            f"residual: got shape {tuple(residual.shape)} of {residual.dtype}, expected {expected} of {x.dtype}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: allowed are {', '.join(map(repr, ACTIVATIONS))}")
    last = (memory_format or dense_format(x)) is torch.channels_last
    if not x.is_cpu:
        fft_size = spectrum.fft_size[0], spectrum.fft_size[1]
        tables.prepare(fft_size, (height, width), spectrum.panels.dtype, x.device)
    options = spectrum.outputs, spectrum.fft_size, activation, last, factor
    return _fixed(x, spectrum.panels, bias, residual, *options, backend)


def _check(x: Tensor, Q: Tensor, fft_size: Size, groups: int) -> None:
    if Q.dtype not in reference.REAL:
        raise TypeError(f"Q: got {Q.dtype}, allowed are {', '.join(map(str, reference.REAL))}")
    if not x.is_floating_point() or torch.promote_types(x.dtype, Q.dtype) != Q.dtype:
        raise TypeError(
            f"x: got {x.dtype}, expected {reference.REAL[Q.dtype]} or a shorter real type for Q of {Q.dtype}"
        )
    axes = len(fft_size)
    if axes not in (2, 3):
        raise ValueError(f"fft_size={fft_size}: expected two sides, or three for volumes")
    sides = tuple(x.shape[-axes:])
    if x.dim() not in (axes + 1, axes + 2) or 0 in sides:
        size = "h, w" if axes == 2 else "d, h, w"
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected (n, cin, {size}) or (cin, {size}) with {size} at least 1"
        )
    area, own = 1, 1
    for length, side in zip(fft_size, sides, strict=True):
        area, own = area * length, own * (2 - length % 2)
        if length < side:
            raise ValueError(f"fft_size={fft_size}: expected at least the size {sides} of x")
    frequencies = (area + own) // 2
    if Q.dim() != 3 or Q.shape[0] != frequencies:
        shape = tuple(Q.shape)
        raise ValueError(f"Q: got shape {shape}, expected ({frequencies}, cout, cin) for the FFT size {fft_size}")
    channels = x.shape[-1 - axes]
    if channels != groups * Q.shape[2] or Q.shape[1] % groups:
        raise ValueError(
            f"groups={groups}: {channels} channels of x and Q of shape {tuple(Q.shape)} do not fit; "
            f"expected (F, cout, cin / groups) with cout divisible by groups"
        )


def dense_format(x: Tensor) -> torch.memory_format:
    """The memory format that kernels read and write: channels-last where x is, otherwise contiguous."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def dense(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in this type and in a memory format that kernels read: itself, or one copy."""
    if x.dtype == dtype:
        return x.contiguous(memory_format=dense_format(x))
    return x.to(dtype, memory_format=dense_format(x))


def _fake_forward(x: Tensor, Q: Tensor, *_: Any) -> Tensor:
    shape = (x.shape[0], Q.shape[1], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=dense_format(x))


def _fake_fixed(
    x: Tensor,
    panels: Tensor,
    bias: Any,
    residual: Any,
    outputs: int,
    fft_size: Size,
    activation: str,
    channels_last: bool,
    *_: Any,
) -> Tensor:
    return empty_images(x, outputs, channels_last)


def empty_images(x: Tensor, channels: int, channels_last: bool) -> Tensor:
    """Uninitialised images like x, with this number of channels."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = x.shape[0], channels, x.shape[2], x.shape[3]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _fake_backward(
    gradient: Tensor, x: Tensor, Q: Tensor, fft_size: Size, groups: int, wanted: list[bool], backend: Backend
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients(x, Q, wanted)


def empty_gradients(x: Tensor, Q: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised gradients of x, Q and the bias, without elements where they are not wanted."""
    return (
        torch.empty_like(x, memory_format=dense_format(x)) if wanted[0] else x.new_empty(0),
        Q.new_empty(Q.shape if wanted[1] else 0),
        Q.new_empty(Q.shape[1] if wanted[2] else 0, dtype=reference.REAL[Q.dtype]),
    )


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    fft_size, groups, backend = ctx.options
    x_wanted, Q_wanted, *bias_wanted = asked(ctx)
    wanted = [x_wanted, Q_wanted, any(bias_wanted)]
    gradients = _backward.outputs(gradient, *ctx.saved_tensors, fft_size, groups, wanted, backend)
    found = (value if want else None for value, want in zip(gradients, wanted, strict=True))
    return *found, None, None, None


def _plain_gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    fft_size, groups, _ = ctx.options
    needs_x, needs_Q, needs_bias = ctx.needs_input_grad[:3]

    def function(x: Tensor, Q: Tensor) -> Tensor:
        with without_autocast(x.device):
            return reference.spectral_conv(x, Q, None, tuple(fft_size), groups)

    _, Q = ctx.saved_tensors
    found = differentiated(function, ctx.saved_tensors, (needs_x, needs_Q), gradient)
    bias = gradient.sum((0, 2, 3), dtype=reference.REAL[Q.dtype]) if needs_bias else None
    return *found, bias, None, None, None


# spectral_conv(x, Q, bias, fft_size, groups, backend), of x (n, cin, h, w) and a bias in the precision of Q; in the
# dtype of x.
OPERATOR = OP.main(
    "spectral_conv_forward(Tensor x, Tensor Q, Tensor? bias, int[] fft_size, int groups, str backend) -> Tensor",
    reference=reference.spectral_conv,
    precision=without_autocast,
    fake=_fake_forward,
    saves=("x", "Q"),
    keeps=("fft_size", "groups", "backend"),
    backward=_gradients,
    plain_backward=_plain_gradients,
)
_backward = OP.define(
    "spectral_conv_backward(Tensor gradient, Tensor x, Tensor Q, int[] fft_size, int groups, bool[] wanted,"
    " str backend) -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
)
_fixed = OP.define(
    "spectral_conv_fixed(Tensor x, Tensor panels, Tensor? bias, Tensor? residual, int outputs, int[] fft_size,"
    " str activation, bool channels_last, float factor, str backend) -> Tensor",
    fake=_fake_fixed,
)
