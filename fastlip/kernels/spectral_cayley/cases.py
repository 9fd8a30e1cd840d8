"""Kernels for the agreement tests and the benchmarks, and the same function composed of two ops.

Length: the backward is two products of n terms each, of complex numbers two parts each, and a sum over the taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.cayley.reference import cayley
from fastlip.kernels.common.case import Case
from fastlip.kernels.common.fourier import Size
from fastlip.kernels.spectral_conv.frequencies import kernel_spectrum


@dataclass(frozen=True)
class _Scaled(Case):
    """Kernels whose matrices have entries of variance 1 at each frequency, as in the cases of ``cayley``."""

    def make(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """The weight."""
        weight = super().make(dtype, device, seed)["weight"]
        return {"weight": weight.mul_((weight.shape[2] * weight.shape[3]) ** -0.5)}


def _case(
    outputs: int,
    inputs: int,
    taps: Size,
    fft_size: Size,
    bench: bool = False,
    layout: str = "contiguous",
    **options: Any,
) -> Case:
    length = (2 * max(outputs, inputs)) ** 2 * taps[0] * taps[1]
    return _Scaled({"weight": (outputs, inputs, *taps)}, {"fft_size": fft_size, **options}, length, layout, bench)


CASES = {
    "c3": _case(3, 3, (3, 3), (4, 6)),
    "c1": _case(1, 1, (3, 3), (5, 5)),
    "c17_odd": _case(17, 17, (3, 3), (5, 3)),
    "c5_one_pixel": _case(5, 5, (3, 3), (1, 1)),
    "c4_taps_wrap": _case(4, 4, (5, 5), (3, 4)),
    "groups_dilation": _case(8, 4, (3, 2), (6, 6), groups=2, dilation=(2, 1)),
    "groups_tall": _case(6, 2, (3, 3), (4, 4), groups=2),
    "tall": _case(6, 3, (3, 3), (4, 4)),
    "wide": _case(3, 6, (3, 3), (4, 4)),
    "strided": _case(4, 4, (3, 3), (4, 4), layout="strided"),
    "channels_last": _case(4, 4, (3, 3), (4, 4), layout="channels_last"),
    "c16_s32": _case(16, 16, (3, 3), (32, 32), bench=True),
    "c32_s32": _case(32, 32, (3, 3), (32, 32), bench=True),
    "c64_s16": _case(64, 64, (3, 3), (16, 16), bench=True),
    "c128_s8": _case(128, 128, (3, 3), (8, 8), bench=True),
}


def composed(weight: Tensor, fft_size: Size, dilation: Size = (1, 1), groups: int = 1) -> Tensor:
    """The transform of the spectrum, differentiated by autograd."""
    return cayley(kernel_spectrum(weight, fft_size, dilation).unflatten(1, (groups, -1))).flatten(1, 2)


BASELINES = {"composed": composed}
