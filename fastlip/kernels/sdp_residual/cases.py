"""Named inputs for the agreement tests and the benchmarks. Length: the two sums, over c·k² and m·k² terms."""

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.case import Case


class _ExactSigns(Case):
    """x and weight are multiples of 1/4 and bias an odd multiple of 1/32: W x + b is exact and never 0.

    So every backend and dtype finds the same signs: one that differs would be an error of order 1.
    """

    def make(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Standard normal tensors, rounded."""
        tensors = super().make(dtype, device, seed)
        for name in ("x", "weight", "bias"):
            tensors[name].mul_(4).round_().div_(4)
        tensors["bias"].add_(1 / 32)
        return tensors


def _dense(rows: int, channels: int, inner: int, bench: bool = False) -> Case:
    shapes = {"x": (rows, channels), "weight": (inner, channels), "bias": (inner,), "scale": (inner,)}
    return _ExactSigns(shapes, length=channels + inner, bench=bench)


def _image(
    batch: int,
    channels: int,
    size: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    inner: int = 0,
    groups: int = 1,
    layout: str = "contiguous",
    bench: bool = False,
    **options: Any,
) -> Case:
    inner = inner or channels
    shapes = {
        "x": (batch, channels, *size),
        "weight": (inner, channels // groups, *kernel),
        "bias": (inner,),
        "scale": (inner,),
    }
    length = kernel[0] * kernel[1] * (channels + inner) // groups
    return _ExactSigns(shapes, {"groups": groups, **options}, length, layout, bench)


CASES = {
    "dense 1": _dense(3, 1, 1),
    "dense 17": _dense(5, 17, 3),
    "dense empty batch": _dense(0, 4, 4),
    "dense 512": _dense(256, 512, 512, bench=True),
    "3x3": _image(2, 3, (7, 7)),
    "3x3 channels_last": _image(2, 17, (5, 6), layout="channels_last"),
    "3x3 strided": _image(2, 4, (5, 4), layout="strided"),
    "3x3 circular": _image(2, 3, (7, 5), padding_mode="circular"),
    "kernel larger than the image": _image(2, 3, (2, 1), (5, 7), padding_mode="circular"),
    "even kernel": _image(2, 3, (5, 4), (2, 4)),
    "even kernel circular": _image(2, 3, (5, 4), (2, 4), padding_mode="circular"),
    "1x1": _image(2, 8, (3, 3), (1, 1), inner=5),
    "groups": _image(2, 6, (4, 4), inner=9, groups=3),
    "dilation": _image(2, 4, (7, 6), dilation=(2, 3)),
    "maxmin": _image(3, 6, (5, 4), pairing="adjacent"),
    "recompute": _image(2, 6, (5, 4), inner=4, padding_mode="circular", recompute=True),
    "keep 1x1": _image(2, 8, (3, 3), (1, 1), inner=5, recompute=False),
    "maxmin odd circular": _image(2, 7, (3, 4), pairing="adjacent", padding_mode="circular"),
    "maxmin halves circular": _image(2, 34, (4, 4), pairing="halves", padding_mode="circular"),
    "empty batch": _image(0, 4, (4, 4)),
    "network 16": _image(256, 16, (32, 32), pairing="adjacent", layout="channels_last", bench=True),
    "network 32": _image(64, 32, (32, 32), pairing="adjacent", layout="channels_last", bench=True),
    "network 128": _image(64, 128, (8, 8), pairing="adjacent", layout="channels_last", bench=True),
}
