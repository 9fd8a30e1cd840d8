"""The convolution by a matrix per frequency, with complex transforms or with real matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlip.exporting.plain import transforms
from fastlip.exporting.plain._module import PASSES, Plain, Shape
from fastlip.nn.applications.frequency import largest_singular_value


class SpectralConvolution(Plain):
    """IDFT(Q_k DFT(x)_k) + bias with transforms of size ``fft_size``, for images, or volumes, of one size.

    spectrum: (frequencies of rfft2 or rfftn, groups, cout / groups, cin / groups, 2), real and imaginary parts (no
    complex parameter, which ``module.to(dtype)`` would truncate). fourier: ``"fft"``, or ``"matrices"``: the
    transforms as products by real matrices, which ONNX runtimes have, or ``"matrices64"``: those products in float64,
    whose sums of many terms then lose less than a fast Fourier transform in float32.
    """

    TENSORS = ("spectrum", "bias")
    spectrum: Tensor
    bias: Tensor | None
    image: tuple[int, ...]
    fft_size: tuple[int, ...]
    groups: int
    fourier: str

    def make_tables(self) -> None:
        """The matrices of the transforms, in double precision."""
        if self.fourier != "fft":
            make = transforms.of_images if len(self.image) == 2 else transforms.of_volumes
            for name, table in make(self.image, self.fft_size).items():
                self.register_buffer(name, table)

    def forward(self, x: Tensor) -> Tensor:
        """Q * x + bias; images of another size are refused."""
        self.check_size(x)
        y = self.convolve(x.to(self.spectrum.dtype), self.spectrum)
        y = y if self.bias is None else y + self.bias.view(-1, *[1] * len(self.image))
        return y.to(x.dtype)

    def check_size(self, x: Tensor) -> None:
        """Refuses images of another size."""
        for axis, side in zip(range(-len(self.image), 0), self.image, strict=True):
            torch._assert(x.shape[axis] == side, f"exported for images of {self.image} (after its stride)")

    def convolve(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """Q * x for images in the precision of Q."""
        if len(self.image) == 3:
            return self.of_volumes(x, spectrum)
        return self.by_fft(x, spectrum) if self.fourier == "fft" else self.by_matrices(x, spectrum)

    def by_fft(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """Q * x with complex transforms."""
        (height, width), columns = self.fft_size, self.fft_size[1] // 2 + 1
        X = torch.fft.rfft2(x, s=self.fft_size).flatten(-2).unflatten(-2, (self.groups, -1))
        Y = torch.einsum("fgoi,...gif->...gof", torch.view_as_complex(spectrum), X)
        y = torch.fft.irfft2(Y.flatten(-3, -2).unflatten(-1, (height, columns)), s=(height, width))
        return y.narrow(-2, 0, self.image[0]).narrow(-1, 0, self.image[1])

    def by_matrices(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """Q * x with real matrices; comments give the last axes, where 2 stands for real and imaginary parts."""
        (height, _), (rows, columns) = self.image, (self.fft_size[0], self.fft_size[1] // 2 + 1)
        inner = spectrum.dtype
        dtype = torch.float64 if self.fourier == "matrices64" else inner
        X = x.to(dtype) @ self.get_buffer("across").to(dtype)
        X = X.unflatten(-1, (2, columns)).movedim(-2, -3).flatten(-3, -2)  # (c, 2 h, columns)
        X = (self.get_buffer("down").to(dtype) @ X).unflatten(-2, (2, rows)).flatten(-2)  # (c, 2, frequencies)
        X = X.unflatten(-3, (self.groups, -1)).movedim(-2, -3).flatten(-3, -2)  # (group, 2 cin, frequencies)
        Y = self.by_real_products(X.to(inner), spectrum).to(dtype)
        Y = Y.unflatten(-2, (2, -1)).movedim(-3, -2).flatten(-4, -3)  # (cout, 2, frequencies)
        Y = Y.unflatten(-1, (rows, columns)).flatten(-3, -2)
        Y = self.get_buffer("up").to(dtype) @ Y  # (cout, 2 h, columns)
        return Y.unflatten(-2, (2, height)).movedim(-3, -2).flatten(-2) @ self.get_buffer("back").to(dtype)

    def of_volumes(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """Q * x for volumes, with complex transforms or with real matrices."""
        axes, sizes = (-3, -2, -1), (*self.fft_size[:-1], self.fft_size[-1] // 2 + 1)
        if self.fourier == "fft":
            X = torch.fft.rfftn(x, s=self.fft_size, dim=axes).flatten(-3).unflatten(-2, (self.groups, -1))
            Y = torch.einsum("fgoi,...gif->...gof", torch.view_as_complex(spectrum), X)
            y = torch.fft.irfftn(Y.flatten(-3, -2).unflatten(-1, sizes), s=self.fft_size, dim=axes)
            for axis, side in zip(axes, self.image, strict=True):
                y = y.narrow(axis, 0, side)
            return y
        dtype = torch.float64 if self.fourier == "matrices64" else spectrum.dtype
        across, back, deep, surface, down, up = (self.get_buffer(name).to(dtype) for name in transforms.OF_VOLUMES)
        X = transforms.analyse_volumes(x.to(dtype), across, deep, down)
        X = X.flatten(-3).unflatten(-3, (self.groups, -1)).movedim(-2, -3).flatten(-3, -2)
        Y = self.by_real_products(X.to(spectrum.dtype), spectrum).to(dtype)
        Y = Y.unflatten(-2, (2, -1)).movedim(-3, -2).flatten(-4, -3).unflatten(-1, sizes)
        return transforms.synthesise_volumes(Y, back, surface, up)

    @staticmethod
    def by_real_products(X: Tensor, spectrum: Tensor) -> Tensor:
        """Q X for real and imaginary parts (group, 2 cin, frequencies) to (group, 2 cout, frequencies)."""
        real, imaginary = spectrum.select(-1, 0), spectrum.select(-1, 1)
        matrices = torch.cat((torch.cat((real, -imaginary), -1), torch.cat((imaginary, real), -1)), -2)
        return torch.einsum("fgoi,...gif->...gof", matrices, X)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """The largest singular value of the matrices: transforms, embedding and cropping add no norm."""
        return largest_singular_value(torch.view_as_complex(self.spectrum.detach().contiguous()))

    def roundings(self, input_shape: Shape) -> float:
        """Complex sums along rows and columns, over the channels, and back."""
        lengths = *self.fft_size, *self.fft_size, self.spectrum.shape[3]
        return PASSES * sum(math.sqrt(2 * length) for length in lengths)
