"""Images and matrices for the agreement tests and the benchmarks. Length: the sums of transforms and products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.case import Case
from fastlip.kernels.spectral_conv.frequencies import Size, unique_frequencies


class _ComplexMatrices(Case):
    """Q is complex, in the precision of the other tensors."""

    def make(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Standard normal x and bias; the parts of Q are so scaled that y is of the size of x."""
        tensors = super().make(dtype, device, seed)
        parts = tensors["Q"].unflatten(0, (2, -1)) / (2 * tensors["Q"].shape[-1]) ** 0.5
        tensors["Q"] = torch.complex(*parts.unbind())
        return tensors


def _case(
    n: int,
    cin: int,
    cout: int,
    image: Size,
    fft_size: Size | None = None,
    groups: int = 1,
    bias: bool = True,
    layout: str = "contiguous",
    bench: bool = False,
) -> Case:
    area = fft_size or image
    shapes: dict[str, tuple[int, ...]] = {
        "x": (n, cin, *image),
        "Q": (2 * len(unique_frequencies(area)), cout, cin // groups),
    }
    if bias:
        shapes["bias"] = (cout,)
    options: dict[str, Any] = {"groups": groups} if groups > 1 else {}
    if fft_size:
        options["fft_size"] = fft_size
    length = max(n, cin, cout) * area[0] * area[1]
    return _ComplexMatrices(shapes, options, length, layout, bench)


def _square(channels: int, side: int, layout: str = "contiguous") -> Case:
    return _case(256, channels, channels, (side, side), layout=layout, bench=True)


CASES = {
    "c8_s4": _case(3, 8, 8, (4, 4)),
    "c1_s1": _case(5, 1, 1, (1, 1)),
    "c1_s7": _case(5, 1, 1, (7, 7)),
    "c3_to_5_s3": _case(2, 3, 5, (3, 3)),
    "c17_s2_channels_last": _case(3, 17, 17, (2, 2), layout="channels_last"),
    "c63_s5": _case(13, 63, 63, (5, 5)),
    "c63_to_17_s8_channels_last": _case(9, 63, 17, (8, 8), layout="channels_last"),
    "c3_to_63_s7_strided": _case(3, 3, 63, (7, 7), layout="strided"),
    "c17_s9": _case(4, 17, 20, (9, 9), bias=False),
    "c5_s16": _case(2, 5, 6, (16, 16)),
    "c20_s32": _case(2, 20, 18, (32, 32)),
    "c6_s12x20": _case(3, 6, 4, (12, 20), layout="channels_last"),
    "c4_s13x1": _case(3, 4, 4, (13, 1)),
    "c4_s1x6": _case(3, 4, 4, (1, 6)),
    "c1_s32": _case(1, 1, 1, (32, 32)),
    "c2_s21x20": _case(1, 2, 2, (21, 20)),
    "c1_s29x31_channels_last": _case(2, 1, 1, (29, 31), bias=False, layout="channels_last"),
    "c3_s22x49": _case(2, 3, 3, (22, 49)),
    "torus_s4_6": _case(4, 18, 17, (4, 4), (6, 6)),
    "torus_s32_34_channels_last": _case(2, 17, 16, (32, 32), (34, 34), layout="channels_last"),
    "torus_s3x5_to_10x7": _case(3, 4, 5, (3, 5), (10, 7)),
    "groups_torus_s22x27_to_24x30": _case(1, 2, 2, (22, 27), (24, 30), groups=2, layout="channels_last"),
    "groups": _case(3, 12, 20, (5, 4), groups=4),
    "groups_s3x2": _case(2, 4, 6, (3, 2), groups=2),
    "groups_of_17_channels_last": _case(3, 34, 36, (6, 6), groups=2, layout="channels_last"),
    "depthwise_torus": _case(7, 8, 8, (4, 3), (6, 5), groups=8),
    "c130_s2": _case(9, 130, 136, (2, 2)),
    "one_image": _case(1, 16, 33, (8, 8)),
    "empty_batch": _case(0, 4, 5, (4, 4)),
    "net_16_s32": _square(16, 32),
    "net_64_s32": _square(64, 32),
    "net_64_s32_channels_last": _square(64, 32, "channels_last"),
    "net_128_s16": _square(128, 16),
    "net_64_s8": _square(64, 8),
    "net_256_s8": _square(256, 8),
    "net_512_s4": _square(512, 4),
}
