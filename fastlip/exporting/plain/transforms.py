"""The real matrices of Fourier transforms, which ONNX runtimes multiply by where they have no complex numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common.fourier import angles

OF_VOLUMES = "across", "back", "deep", "surface", "down", "up"


def of_images(image: tuple[int, ...], fft_size: tuple[int, ...]) -> dict[str, Tensor]:
    """The matrices of rfft2 of an image with zeros after it, along rows and columns, and of irfft2, cropped to it."""
    (height, width), (rows, all_columns) = image, fft_size
    cosine, sine, twice = _of_rows(width, all_columns)
    across = torch.cat((cosine, -sine), 1)
    back = torch.cat((cosine * twice, -sine * twice), 1).T.contiguous() / all_columns
    cosine, sine = _waves(rows, height, rows)  # (rows, height)
    down = torch.cat((torch.cat((cosine, sine), 1), torch.cat((-sine, cosine), 1)))
    return {"across": across, "down": down, "up": down.T.contiguous() / rows, "back": back}


def of_volumes(image: tuple[int, ...], fft_size: tuple[int, ...]) -> dict[str, Tensor]:
    """The same of rfftn and irfftn of a volume, with real and imaginary parts as axes of their own.

    ``across`` and ``back`` are (2, columns, width); ``deep`` and ``down``, of the other axes, (2, frequencies, 2,
    side), and ``surface`` and ``up`` their inverses, (2, side, 2, frequencies).
    """
    cosine, sine, twice = _of_rows(image[2], fft_size[2])
    found = {"across": torch.stack((cosine.T, -sine.T))}
    found["back"] = found["across"] * twice[:, None] / fft_size[2]
    for name, inverse, side, length in zip(("deep", "down"), ("surface", "up"), image, fft_size, strict=False):
        cosine, sine = _waves(length, side, length)
        matrix = torch.stack((torch.stack((cosine, sine), 1), torch.stack((-sine, cosine), 1)))
        found |= {name: matrix.contiguous(), inverse: matrix.permute(2, 3, 0, 1).contiguous() / length}
    return found


def analyse_volumes(x: Tensor, across: Tensor, deep: Tensor, down: Tensor) -> Tensor:
    """(..., d, h, w) to the frequencies of rfftn, (..., 2, kd, kh, kw)."""
    X = torch.einsum("qkw,...dhw->...qdhk", across, x)
    X = torch.einsum("pyqh,...qdhk->...pdyk", down, X)
    return torch.einsum("pzqd,...qdyk->...pzyk", deep, X)


def synthesise_volumes(Y: Tensor, back: Tensor, surface: Tensor, up: Tensor) -> Tensor:
    """(..., 2, kd, kh, kw) to volumes (..., d, h, w)."""
    Y = torch.einsum("pdqz,...qzyk->...pdyk", surface, Y)
    Y = torch.einsum("phqy,...qdyk->...pdhk", up, Y)
    return torch.einsum("qkw,...qdhk->...dhw", back, Y)


def _of_rows(width: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines and sines (width, columns) of the transform of real rows, and how often each frequency counts."""
    columns = length // 2 + 1
    twice = torch.full((columns,), 2.0, dtype=torch.float64)
    twice[0] = 1
    if length % 2 == 0:
        twice[-1] = 1
    return *_waves(width, columns, length), twice


def _waves(first: int, second: int, period: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of 2 pi a b / period for a below first and b below second, in float64."""
    found = angles(torch.arange(first), torch.arange(second), period)
    return found.cos(), found.sin()
