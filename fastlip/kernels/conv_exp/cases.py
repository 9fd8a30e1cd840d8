"""Named inputs for the agreement tests and the benchmarks. Length: the sums of all terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.case import Case
from fastlip.kernels.common.geometry import ConvGeometry


class _SkewKernel(Case):
    """The kernel is made skew, with a norm of about 1 (2.4 is the layers' limit for a 3 x 3 kernel)."""

    def make(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Standard normal x, skew kernel."""
        tensors = super().make(torch.float64, device, seed)
        raw = tensors["kernel"].unflatten(0, (self.options.get("groups", 1), -1))
        skew = (raw - raw.transpose(1, 2).flip(3, 4)).flatten(0, 1)
        tensors["kernel"] = skew / (2 * skew[0].numel()) ** 0.5
        return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def _case(
    n: int,
    channels: int,
    image: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    terms: int = 4,
    groups: int = 1,
    layout: str = "contiguous",
    bench: bool = False,
    bias: bool = False,
    **more: Any,
) -> Case:
    shapes: dict[str, tuple[int, ...]] = {
        "x": (n, channels, *image),
        "kernel": (channels, channels // groups, *kernel),
    }
    if bias:
        shapes["bias"] = (channels,)
    options = {"terms": terms, "groups": groups, **more}
    return _SkewKernel(shapes, options, terms * channels * kernel[0] * kernel[1], layout, bench)


CASES = {
    "one pixel": _case(2, 3, (1, 1)),
    "one channel": _case(2, 1, (7, 3), terms=1),
    "17 channels": _case(2, 17, (5, 7), layout="channels_last"),
    "circular, 8 terms": _case(2, 3, (4, 5), terms=8, padding_mode="circular"),
    "circular, wraps more than once": _case(2, 2, (2, 1), (5, 3), terms=5, padding_mode="circular"),
    "groups, dilation": _case(1, 6, (7, 6), (3, 1), terms=3, dilation=(2, 1), groups=3),
    "bias, recomputed": _case(2, 4, (5, 3), terms=5, bias=True, recompute=True),
    "circular, recomputed": _case(
        2, 3, (3, 6), (3, 5), padding_mode="circular", layout="channels_last", recompute=True
    ),
    "dilation, circular": _case(2, 4, (5, 4), terms=3, dilation=(1, 2), padding_mode="circular", bias=True),
    "coefficients": _case(2, 3, (4, 4), terms=3, bias=True, coefficients=(0.9, 1.1, -0.4, 0.2)),
    "one coefficient": _case(2, 3, (4, 4), terms=1, coefficients=(2.0, 0.5), padding_mode="circular"),
    "1x1": _case(2, 5, (3, 3), (1, 1), terms=12),
    "strided": _case(1, 4, (5, 4), (1, 3), layout="strided"),
    "empty": _case(0, 4, (5, 4)),
    "S, 64 channels": _case(64, 64, (16, 16), terms=5, layout="channels_last", bench=True),
    "S, 64 channels, recomputed": _case(
        64, 64, (16, 16), terms=5, layout="channels_last", recompute=True, bench=True
    ),
    "XS, 16 channels": _case(256, 16, (32, 32), terms=5, layout="channels_last", bench=True),
    "XS, 16 channels, circular": _case(
        256, 16, (32, 32), terms=5, padding_mode="circular", layout="channels_last", bench=True
    ),
    "S, 256 channels": _case(64, 256, (4, 4), terms=5, layout="channels_last", bench=True),
}


def by_terms(x: Tensor, kernel: Tensor, terms: int, recompute: bool = False, **options: Any) -> Tensor:
    """The series term by term, x_t = K x_{t-1} / t, as published: every term is kept."""
    geometry = ConvGeometry.like(kernel, **options)
    term = total = x
    for t in range(1, terms + 1):
        term = geometry.convolve(term, kernel) / t
        total = total + term
    return total


BASELINES = {"term by term": by_terms}
