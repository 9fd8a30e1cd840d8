"""The chain's passes in Triton; the convolutions are cuDNN's, on channels-last images.

Each program makes a tile of the extended result (``halo_triton.py``). A bit mask has whole bytes for each pixel,
eight pairs of channels each. Sixteen-bit numbers are added, compared and summed in float32, and rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common import triton_launch
from fastlip.kernels.common.halo_triton import compilation, launch, partial_sums, source_pixels, widened
from fastlip.kernels.common.padding import Pads
from fastlip.kernels.conv_chain import layers
from fastlip.kernels.conv_chain.api import mask_shape

_DTYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16"}
ACTIVATIONS = {"none": 0, "adjacent": 1, "halves": 2, "relu": 3}


@triton.jit
def _load(p_z, p_bias, p_residual, o_row, o_channel, mask, BIAS: tl.constexpr, RESIDUAL: tl.constexpr):
    value = widened(tl.load(p_z + o_row + o_channel, mask=mask, other=0))
    if RESIDUAL:
        value = widened(tl.load(p_residual + o_row + o_channel, mask=mask, other=0)) - value
    if BIAS:
        # Beyond the last channel there is no bias to load either, whichever the row.
        value += widened(tl.load(p_bias + o_channel + 0 * o_row, mask=mask, other=0))
    return value


@triton.jit
def _store(
    p_y, p_extended, value, o_row, o_extended, o_channel, mask, inside, PLAIN: tl.constexpr, HALO: tl.constexpr
):
    if PLAIN:
        tl.store(p_y + o_row + o_channel, value, mask=mask & inside)
    if HALO:
        tl.store(p_extended + o_extended + o_channel, value, mask=mask)


@triton.jit
def _activate_kernel(
    p_z, p_bias, p_residual, p_y, p_extended, p_mask, pixels, channels, mask_bytes,
    height, width, extended_height, extended_width, left, top, shift_y, shift_x,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, PLAIN: tl.constexpr, HALO: tl.constexpr,
    PIXELS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """y = activation(z + bias), or activation(residual - z)."""
    o_pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    source, inside = source_pixels(
        o_pixel, pixels, height, width, extended_height, extended_width, left, top, shift_y, shift_x, HALO
    )
    m_pixel, m_inside = (o_pixel < pixels)[:, None], inside[:, None]
    o_row, o_extended = (source * channels)[:, None], (o_pixel.to(tl.int64) * channels)[:, None]
    first = tl.program_id(1) * BYTES
    o_pair = first * 8 + tl.arange(0, 8 * BYTES)[None, :]
    pairs = channels // 2

    if ACTIVATION == 2:
        # Of an odd number of channels the last one counts as the first of a pair that has no second.
        o_a, o_b = tl.where(o_pair < pairs, o_pair, 2 * pairs), pairs + o_pair
        m_a, m_b = m_pixel & (o_pair < channels - pairs), m_pixel & (o_pair < pairs)
        a = _load(p_z, p_bias, p_residual, o_row, o_a, m_a, BIAS, RESIDUAL)
        b = _load(p_z, p_bias, p_residual, o_row, o_b, m_b, BIAS, RESIDUAL)
    else:
        o_channel = first * 16 + tl.arange(0, 16 * BYTES)[None, :]
        m_both = m_pixel & (o_channel < channels)
        both = _load(p_z, p_bias, p_residual, o_row, o_channel, m_both, BIAS, RESIDUAL)  # [PIXELS, 16 BYTES]
        if ACTIVATION == 1:
            a, b = tl.split(tl.reshape(both, (PIXELS, 8 * BYTES, 2)))

    if ACTIVATION == 1 or ACTIVATION == 2:
        swap = (b > a) & (o_pair < pairs)  # [PIXELS, 8 BYTES]  # pyright: ignore[reportOperatorIssue]
        bits = tl.reshape(swap.to(tl.int32), (PIXELS, BYTES, 8)) << tl.arange(0, 8)[None, None, :]
        o_byte = first + tl.arange(0, BYTES)[None, :]
        m_byte = m_inside & (o_byte < mask_bytes)
        tl.store(p_mask + (source * mask_bytes)[:, None] + o_byte, tl.sum(bits, 2).to(tl.uint8), mask=m_byte)
        high, low = tl.where(swap, b, a), tl.where(swap, a, b)
        if ACTIVATION == 2:
            _store(p_y, p_extended, high, o_row, o_extended, o_a, m_a, m_inside, PLAIN, HALO)
            _store(p_y, p_extended, low, o_row, o_extended, o_b, m_b, m_inside, PLAIN, HALO)
        else:
            both = tl.reshape(tl.join(high, low), (PIXELS, 16 * BYTES))
            _store(p_y, p_extended, both, o_row, o_extended, o_channel, m_both, m_inside, PLAIN, HALO)
    else:
        if ACTIVATION == 3:
            both = tl.where(both < 0, 0, both)  # NaN stays NaN
        _store(p_y, p_extended, both, o_row, o_extended, o_channel, m_both, m_inside, PLAIN, HALO)


@triton.jit
def _deactivate_kernel(
    p_gradient, p_mask, p_y, p_extended, p_sums, pixels, channels, mask_bytes,
    height, width, extended_height, extended_width, left, top, shift_y, shift_x,
    ACTIVATION: tl.constexpr, SUMS: tl.constexpr, PLAIN: tl.constexpr, HALO: tl.constexpr,
    PIXELS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """The pairs swapped back; sums is (programs, channels), of the pixels of each program."""
    o_pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    source, inside = source_pixels(
        o_pixel, pixels, height, width, extended_height, extended_width, left, top, shift_y, shift_x, HALO
    )
    m_pixel, m_inside = (o_pixel < pixels)[:, None], inside[:, None]
    o_row, o_extended = (source * channels)[:, None], (o_pixel.to(tl.int64) * channels)[:, None]
    first = tl.program_id(1) * BYTES
    o_pair = first * 8 + tl.arange(0, 8 * BYTES)[None, :]
    pairs = channels // 2
    p_sum = p_sums + tl.program_id(0).to(tl.int64) * channels

    if ACTIVATION > 0:
        o_byte = o_pair // 8
        byte = tl.load(
            p_mask + (source * mask_bytes)[:, None] + o_byte, mask=m_pixel & (o_byte < mask_bytes), other=0
        )
        swap = (byte.to(tl.int32) >> (o_pair % 8)) & 1 != 0  # [PIXELS, 8 BYTES]
    if ACTIVATION == 2:
        o_a, o_b = tl.where(o_pair < pairs, o_pair, 2 * pairs), pairs + o_pair
        m_a, m_b = m_pixel & (o_pair < channels - pairs), m_pixel & (o_pair < pairs)
        high = widened(tl.load(p_gradient + o_row + o_a, mask=m_a, other=0))
        low = widened(tl.load(p_gradient + o_row + o_b, mask=m_b, other=0))
        a, b = tl.where(swap, low, high), tl.where(swap, high, low)
        _store(p_y, p_extended, a, o_row, o_extended, o_a, m_a, m_inside, PLAIN, HALO)
        _store(p_y, p_extended, b, o_row, o_extended, o_b, m_b, m_inside, PLAIN, HALO)
        if SUMS:
            o_pair = tl.reshape(o_pair, (8 * BYTES,))
            sum_a, sum_b = tl.sum(tl.where(m_inside, a, 0), 0), tl.sum(tl.where(m_inside, b, 0), 0)
            tl.store(p_sum + tl.where(o_pair < pairs, o_pair, 2 * pairs), sum_a, mask=o_pair < channels - pairs)
            tl.store(p_sum + pairs + o_pair, sum_b, mask=o_pair < pairs)
    else:
        o_channel = first * 16 + tl.arange(0, 16 * BYTES)[None, :]
        m_both = m_pixel & (o_channel < channels)
        both = widened(tl.load(p_gradient + o_row + o_channel, mask=m_both, other=0))
        if ACTIVATION == 1:
            high, low = tl.split(tl.reshape(both, (PIXELS, 8 * BYTES, 2)))
            a, b = tl.where(swap, low, high), tl.where(swap, high, low)
            both = tl.reshape(tl.join(a, b), (PIXELS, 16 * BYTES))
        _store(p_y, p_extended, both, o_row, o_extended, o_channel, m_both, m_inside, PLAIN, HALO)
        if SUMS:
            o_sum = first * 16 + tl.arange(0, 16 * BYTES)
            tl.store(p_sum + o_sum, tl.sum(tl.where(m_inside, both, 0), 0), mask=o_sum < channels)


class Passes:
    """The passes in Triton."""

    dtypes = tuple(_DTYPES)
    on_cpu = False
    gradients = staticmethod(images.adjoint_gradients)

    def missing(self, x: Tensor) -> str:
        """Why these passes cannot run on the device of x; empty if they can."""
        return triton_launch.why_not(x, _activate_kernel)

    def with_halo(self, x: Tensor, halo: Pads) -> Tensor:
        """x with its halo."""
        return self.activate(x, None, None, "none", halo, False)[1] if any(halo) else x

    def activate(
        self, z: Tensor, bias: Tensor | None, residual: Tensor | None, pairing: str, halo: Pads, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y = maxmin(z + bias) or maxmin(residual - z), y with its halo, and the bits; y only if it is to be kept.

        The pairing may be "relu" here. Without a halo y takes the place of z; with one, other programs read z still.
        """
        shape = mask_shape(z, z.shape[1], "none" if pairing == "relu" else pairing, "triton")
        mask = torch.empty(shape, dtype=torch.uint8, device=z.device)
        extended = images.empty_with_halo(z, halo) if any(halo) else z
        y = torch.empty_like(z) if keep and any(halo) else z
        launch(
            _activate_kernel, z, halo, z, *(z if other is None else other for other in (bias, residual)),
            y, extended, mask, ACTIVATION=ACTIVATIONS[pairing], BIAS=bias is not None, RESIDUAL=residual is not None,
            PLAIN=keep or not any(halo),
        )  # fmt: skip
        return y, extended, mask

    layer = layers.separately

    def deactivate(
        self, gradient: Tensor, mask: Tensor, pairing: str, halo: Pads, keep: bool, sums: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient before MaxMin (only if kept), the same with its halo, its sums per channel (if wanted)."""
        extended = images.empty_with_halo(gradient, halo) if any(halo) else torch.empty_like(gradient)
        plain = torch.empty_like(gradient) if keep and any(halo) else extended
        parts = partial_sums(gradient, halo) if sums else gradient.new_empty(0)
        launch(
            _deactivate_kernel, gradient, halo, gradient, mask, plain, extended, parts,
            ACTIVATION=ACTIVATIONS[pairing], SUMS=sums, PLAIN=keep or not any(halo),
        )  # fmt: skip
        return plain, extended, parts.sum(0) if sums else parts


_kernels = layers.Kernels(Passes())
supports, conv_chain_forward, conv_chain_backward = _kernels.supports, _kernels.forward, _kernels.backward
_ACTIVATE = ("p_z", "p_bias", "p_residual", "p_y", "p_extended", "p_mask")
_DEACTIVATE = ("p_gradient", "p_mask", "p_y", "p_extended", "p_sums")
AOT = [
    made
    for dtype in _DTYPES.values()
    for channels in ((16, 64) if dtype == "fp32" else (64,))
    for activation in (1, 2, 3)
    for extended in (False, True)
    for made in (
        compilation(
            _activate_kernel, dtype, _ACTIVATE, channels,
            ACTIVATION=activation, BIAS=True, RESIDUAL=False, PLAIN=True, HALO=extended,
        ),
        compilation(
            _deactivate_kernel, dtype, _DEACTIVATE, channels,
            ACTIVATION=activation % 3, SUMS=True, PLAIN=True, HALO=extended,
        ),
    )
] + [
    compilation(
        _activate_kernel, "fp32", _ACTIVATE, 64, ACTIVATION=activation, BIAS=False, RESIDUAL=True, PLAIN=True,
        HALO=False,
    )
    for activation in (0, 1)
] + [
    # A halo alone: Passes.with_halo.
    compilation(
        _activate_kernel, dtype, _ACTIVATE, 64, ACTIVATION=0, BIAS=False, RESIDUAL=False, PLAIN=False, HALO=True
    )
    for dtype in _DTYPES.values()
]  # fmt: skip
