"""sdp_residual in Triton: the passes between cuDNN's two channels-last convolutions, as in conv_chain.

The convolutional form, one group. Bias and relu follow the first convolution in one pass, x - z, MaxMin the second.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.geometry import NO_PADS, ConvGeometry
from fastlip.kernels.common.halo_triton import compilation, launch, partial_sums, source_pixels, widened
from fastlip.kernels.common.padding import Pads
from fastlip.kernels.common.winograd import Tile
from fastlip.kernels.conv_chain import triton_kernels as conv_chain
from fastlip.kernels.sdp_residual import layer


@triton.jit
def _relu_backward_kernel(
    p_v, p_h, p_scale, p_u, p_extended, p_sums, p_products, pixels, channels, mask_bytes,
    height, width, extended_height, extended_width, left, top, shift_y, shift_x,
    HALO: tl.constexpr, PIXELS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """u = -scale v where h > 0, extended or not; the sums of u and of -v h over the pixels of each program."""
    o_pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    source, inside = source_pixels(
        o_pixel, pixels, height, width, extended_height, extended_width, left, top, shift_y, shift_x, HALO
    )
    o_channel = tl.program_id(1) * 16 * BYTES + tl.arange(0, 16 * BYTES)
    m_channel = o_channel < channels
    mask = (o_pixel < pixels)[:, None] & m_channel[None, :]
    o_source = (source * channels)[:, None] + o_channel[None, :]
    v = widened(tl.load(p_v + o_source, mask=mask, other=0))  # [PIXELS, 16 BYTES]
    h = widened(tl.load(p_h + o_source, mask=mask, other=0))
    scale = widened(tl.load(p_scale + o_channel, mask=m_channel, other=0))
    u = tl.where(h > 0, -scale[None, :] * v, 0)
    if HALO:
        tl.store(p_extended + (o_pixel.to(tl.int64) * channels)[:, None] + o_channel[None, :], u, mask=mask)
    else:
        tl.store(p_u + o_source, u, mask=mask)
    o_sum = tl.program_id(0).to(tl.int64) * channels + o_channel
    tl.store(p_sums + o_sum, tl.sum(tl.where(inside[:, None], u, 0), 0), mask=m_channel)
    tl.store(p_products + o_sum, tl.sum(tl.where(inside[:, None], -v * h, 0), 0), mask=m_channel)


class Passes(conv_chain.Passes):
    """The passes in Triton."""

    def refuses_matrix(self, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, pairing: str) -> str:
        """Matrices have no kernel."""
        return "no kernel for a matrix"

    def hidden(
        self,
        image: Tensor,
        weight: Tensor,
        bias: Tensor,
        geometry: ConvGeometry,
        tile: Tile | None,
        halo: Pads,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        """h = relu(W * image + bias), only if it is to be kept, and h with its halo."""
        z = images.convolve(image, weight, geometry)
        h, extended, _ = self.activate(z, bias, None, "relu", halo, keep)
        return h, extended

    def relu_backward(self, v: Tensor, h: Tensor, scale: Tensor, halo: Pads) -> tuple[Tensor, Tensor, Tensor]:
        """u = -scale v where h > 0, with its halo, and per channel the sums of u and of -v h."""
        extended = images.empty_with_halo(v, halo) if any(halo) else v
        parts = partial_sums(v, halo, 2)
        # With four warps, ptxas spills float64 on sm_120.
        warps = 8 if v.dtype == torch.float64 else 4
        launch(_relu_backward_kernel, v, halo, v, h, scale, v, extended, *parts, num_warps=warps)
        u_sum, product_sum = parts.sum(1)
        return extended, u_sum, product_sum

    def second(
        self,
        h: Tensor,
        weight: Tensor,
        scale: Tensor,
        residual: Tensor,
        geometry: ConvGeometry,
        pairing: str,
        tile: Tile | None,
    ) -> tuple[Tensor, Tensor]:
        """maxmin(residual - z), z being the adjoint convolution of diag(scale) W of h, and the bits."""
        z = images.adjoint_convolve(h, scale[:, None, None, None] * weight, geometry)
        y, _, mask = self.activate(z, None, residual, pairing, NO_PADS, True)
        return y, mask


_kernels = layer.Kernels(Passes())
supports, sdp_residual_forward, sdp_residual_backward = _kernels.supports, _kernels.forward, _kernels.backward
_POINTERS = ("p_v", "p_h", "p_scale", "p_u", "p_extended", "p_sums", "p_products")
AOT = [
    compilation(_relu_backward_kernel, dtype, _POINTERS, channels, HALO=extended)
    for dtype, channels in (("fp32", 16), ("fp32", 64), ("fp64", 64), ("fp16", 64), ("bf16", 64))
    for extended in (False, True)
]
