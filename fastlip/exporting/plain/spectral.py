"""The convolution by a matrix per frequency, with complex transforms or with real matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlip.exporting.plain._module import PASSES, Plain, Shape
from fastlip.kernels.common.fourier import angles
from fastlip.nn.applications.frequency import largest_singular_value


class SpectralConvolution(Plain):
    """IDFT(Q_k DFT(x)_k) + bias with transforms of size ``torus``, for images of one size.

    spectrum: (frequencies of rfft2, groups, cout / groups, cin / groups, 2), real and imaginary parts (no complex
    parameter, which ``module.to(dtype)`` would truncate). fourier: ``"fft"``, or ``"matrices"``: the transforms as
    products by real matrices, which ONNX runtimes have, or ``"matrices64"``: those products in float64, whose sums of
    many terms then lose less than a fast Fourier transform in float32.
    """

    TENSORS = ("spectrum", "bias")
    spectrum: Tensor
    bias: Tensor | None
    image: tuple[int, int]
    torus: tuple[int, int]
    groups: int
    fourier: str

    def make_tables(self) -> None:
        """The matrices of the transforms, in double precision."""
        if self.fourier != "fft":
            for name, table in zip(
                ("across", "down", "up", "back"), _transforms(self.image, self.torus), strict=True
            ):
                self.register_buffer(name, table)

    def forward(self, x: Tensor) -> Tensor:
        """Q * x + bias; images of another size are refused."""
        self.check_size(x)
        y = self.convolve(x.to(self.spectrum.dtype), self.spectrum)
        y = y if self.bias is None else y + self.bias.view(-1, 1, 1)
        return y.to(x.dtype)

    def check_size(self, x: Tensor) -> None:
        """Refuses images of another size."""
        for axis, side in ((-2, self.image[0]), (-1, self.image[1])):
            torch._assert(x.shape[axis] == side, f"exported for images of {self.image} (after its stride)")

    def convolve(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """Q * x for images in the precision of Q."""
        return self.by_fft(x, spectrum) if self.fourier == "fft" else self.by_matrices(x, spectrum)

    def by_fft(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """Q * x with complex transforms."""
        (height, width), columns = self.torus, self.torus[1] // 2 + 1
        X = torch.fft.rfft2(x, s=self.torus).flatten(-2).unflatten(-2, (self.groups, -1))
        Y = torch.einsum("fgoi,...gif->...gof", torch.view_as_complex(spectrum), X)
        y = torch.fft.irfft2(Y.flatten(-3, -2).unflatten(-1, (height, columns)), s=(height, width))
        return y.narrow(-2, 0, self.image[0]).narrow(-1, 0, self.image[1])

    def by_matrices(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """Q * x with real matrices; comments give the last axes, where 2 stands for real and imaginary parts."""
        (height, _), (rows, columns) = self.image, (self.torus[0], self.torus[1] // 2 + 1)
        inner = spectrum.dtype
        dtype = torch.float64 if self.fourier == "matrices64" else inner
        X = x.to(dtype) @ self.get_buffer("across").to(dtype)
        X = X.unflatten(-1, (2, columns)).movedim(-2, -3).flatten(-3, -2)  # (c, 2 h, columns)
        X = (self.get_buffer("down").to(dtype) @ X).unflatten(-2, (2, rows)).flatten(-2)  # (c, 2, frequencies)
        X = X.unflatten(-3, (self.groups, -1)).movedim(-2, -3).flatten(-3, -2)  # (group, 2 cin, frequencies)
        real, imaginary = spectrum.select(-1, 0), spectrum.select(-1, 1)
        matrices = torch.cat((torch.cat((real, -imaginary), -1), torch.cat((imaginary, real), -1)), -2)
        Y = torch.einsum("fgoi,...gif->...gof", matrices, X.to(inner)).to(dtype)
        Y = Y.unflatten(-2, (2, -1)).movedim(-3, -2).flatten(-4, -3)  # (cout, 2, frequencies)
        Y = Y.unflatten(-1, (rows, columns)).flatten(-3, -2)
        Y = self.get_buffer("up").to(dtype) @ Y  # (cout, 2 h, columns)
        return Y.unflatten(-2, (2, height)).movedim(-3, -2).flatten(-2) @ self.get_buffer("back").to(dtype)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """The largest singular value of the matrices: transforms, embedding and cropping add no norm."""
        return largest_singular_value(torch.view_as_complex(self.spectrum.detach().contiguous()))

    def roundings(self, input_shape: Shape) -> float:
        """Complex sums along rows and columns, over the channels, and back."""
        lengths = *self.torus, *self.torus, self.spectrum.shape[3]
        return PASSES * sum(math.sqrt(2 * length) for length in lengths)


def _transforms(image: tuple[int, int], fft_size: tuple[int, int]) -> tuple[Tensor, ...]:
    """The matrices of rfft2 of an image with zeros after it, along rows and columns, and of irfft2, cropped to it."""
    (height, width), (rows, all_columns) = image, fft_size
    columns = all_columns // 2 + 1
    cosine, sine = _waves(width, columns, all_columns)  # (width, columns)
    twice = torch.full((columns,), 2.0, dtype=torch.float64)
    twice[0] = 1
    if all_columns % 2 == 0:
        twice[-1] = 1
    across = torch.cat((cosine, -sine), 1)
    back = torch.cat((cosine * twice, -sine * twice), 1).T.contiguous() / all_columns
    cosine, sine = _waves(rows, height, rows)  # (rows, height)
    down = torch.cat((torch.cat((cosine, sine), 1), torch.cat((-sine, cosine), 1)))
    return across, down, down.T.contiguous() / rows, back


def _waves(first: int, second: int, period: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of 2 pi a b / period for a below first and b below second, in float64."""
    found = angles(torch.arange(first), torch.arange(second), period)
    return found.cos(), found.sin()
