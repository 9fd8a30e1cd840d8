"""Shapes at which MaxMin is tested and timed, and the same algebra in pure PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common.case import Case

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALVES = {"pairing": "halves"}

CASES = {
    "image": Case({"x": (4, 16, 9, 7)}),
    "image_halves": Case({"x": (4, 16, 9, 7)}, HALVES),
    "image_channels_last": Case({"x": (4, 16, 9, 7)}, layout="channels_last"),
    "image_channels_last_halves": Case({"x": (2, 34, 3, 5)}, HALVES, layout="channels_last"),
    "odd_channels": Case({"x": (3, 17, 5, 3)}),
    "odd_channels_halves": Case({"x": (3, 17, 5, 3)}, HALVES),
    "odd_channels_last": Case({"x": (3, 63, 2, 2)}, layout="channels_last"),
    "one_channel": Case({"x": (3, 1, 4, 4)}),
    "one_pixel": Case({"x": (5, 8, 1, 1)}),
    "strided": Case({"x": (2, 6, 5, 7)}, layout="strided"),
    "matrix": Case({"x": (7, 63)}),
    "matrix_halves": Case({"x": (7, 63)}, HALVES),
    "sequence_last_dim": Case({"x": (2, 5, 12)}, {"dim": -1}),
    "unbatched_image": Case({"x": (6, 5, 7)}, {"dim": -3}),
    "four_pixels_odd": Case({"x": (3, 15, 2, 2)}),
    "four_pixels_halves": Case({"x": (3, 12, 4)}, HALVES),
    "volume": Case({"x": (2, 4, 3, 2, 3)}),
    "empty_batch": Case({"x": (0, 4, 3, 3)}),
    "net_256x64x32": Case({"x": (256, 64, 32, 32)}, bench=True),
    "net_256x64x32_channels_last": Case({"x": (256, 64, 32, 32)}, layout="channels_last", bench=True),
    "net_256x128x16": Case({"x": (256, 128, 16, 16)}, bench=True),
    "net_256x256x2": Case({"x": (256, 256, 2, 2)}, bench=True),
    "dense_256x512": Case({"x": (256, 512)}, bench=True),
    "tiny": Case({"x": (2, 4)}, bench=True),
}


def by_extrema(x: Tensor, pairing: str = "adjacent", dim: int = 1) -> Tensor:
    """MaxMin by maximum and minimum, as usually published: ties share their gradient, both inputs are saved."""
    if pairing == "halves":
        a, b = x.chunk(2, dim)
        return torch.cat((torch.maximum(a, b), torch.minimum(a, b)), dim)
    a, b = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
    return torch.stack((torch.maximum(a, b), torch.minimum(a, b)), dim + 1).flatten(dim, dim + 1)


BASELINES = {"maximum_minimum": by_extrema}
