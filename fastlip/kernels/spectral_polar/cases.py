"""Kernels for the agreement tests and the benchmarks, and the same function through the spectrum's own decomposition.

Weights are the identity and noise, as LOT's are in training. Length: sums over a matrix's entries, whose
errors the condition magnifies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.case import Case
from fastlip.kernels.spectral_conv.frequencies import Size, kernel_spectrum, per_frequency


@dataclass(frozen=True)
class _NearIdentity(Case):
    """A centred identity, and noise of about this norm at each frequency."""

    noise: float = 0.1

    def make(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """The weight."""
        weight = super().make(dtype, device, seed)["weight"]
        taps = weight.shape[2] * weight.shape[3]
        weight *= self.noise / (weight.shape[1] * taps) ** 0.5
        for group in weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2].chunk(self.options.get("groups", 1)):
            group.diagonal().add_(1)
        return {"weight": weight}


def _case(
    outputs: int,
    inputs: int,
    taps: Size,
    size: Size,
    noise: float = 0.3,
    condition: int = 1,
    bench: bool = False,
    **options: Any,
) -> Case:
    length = (4 * max(outputs, inputs) * condition) ** 2 * taps[0] * taps[1]
    shapes = {"weight": (outputs, inputs, *taps)}
    return _NearIdentity(shapes, {"size": size, **options}, length, "contiguous", bench, noise)


CASES = {
    "c3": _case(3, 3, (3, 3), (4, 6)),
    "c1": _case(1, 1, (3, 3), (5, 5)),
    "c23_odd": _case(23, 23, (3, 3), (5, 3)),
    "c5_one_pixel": _case(5, 5, (3, 3), (1, 1)),
    "c4_taps_wrap": _case(4, 4, (5, 5), (3, 4)),
    "groups_dilation": _case(8, 4, (3, 2), (6, 6), groups=2, dilation=(2, 1)),
    "tall": _case(6, 3, (3, 3), (4, 4)),
    "wide": _case(3, 6, (3, 3), (4, 4)),
    "ill_conditioned": _case(9, 9, (1, 3), (4, 4), noise=2.0, condition=600),
    "c40": _case(40, 40, (3, 3), (4, 4)),
    "c32_s32": _case(32, 32, (3, 3), (32, 32), bench=True),
    "c64_s16": _case(64, 64, (3, 3), (16, 16), bench=True),
    "c128_s8": _case(128, 128, (3, 3), (8, 8), bench=True),
    "c256_s4": _case(256, 256, (3, 3), (4, 4), bench=True),
}


def by_svd(weight: Tensor, size: Size, dilation: Size = (1, 1), groups: int = 1) -> Tensor:
    """U Wᴴ from the decompositions, differentiated by autograd."""

    def factor(V: Tensor) -> Tensor:
        U, _, Wh = torch.linalg.svd(V, full_matrices=False)
        return U @ Wh

    spectrum = kernel_spectrum(weight, size, dilation).unflatten(1, (groups, -1))
    return per_frequency(factor, spectrum, size).flatten(1, 2)


BASELINES = {"svd": by_svd}
