"""The geometry of convolutions: torch.nn.Conv2d's arguments, checked, and padding that keeps a bound."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip import ops
from fastlip.kernels.common.literals import Backend, PaddingMode
from fastlip.kernels.common.padding import Pads, pad, same_pads
from fastlip.nn import _spectra
from fastlip.nn._base import LipschitzLayer, as_it_runs, check_positive_int, make_bias

Pair = tuple[int, int]
# What shapes and padding are derived from.
GEOMETRY = (
    *("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups"),
    *("padding", "padding_mode", "pads"),
)


class LipschitzConv2d(LipschitzLayer):
    """``torch.nn.Conv2d``'s arguments and shapes, for convolutions with a constrained weight.

    ``padding="same"`` keeps the image's size at stride 1, with the odd element of an even kernel's padding
    after the image, and is subsampled at larger strides. Circular padding wraps by index and may exceed the
    image; its total per axis is at most ``dilation * (kernel_size - 1)``: beyond that, outputs repeat and the
    bound is lost. A method names its ``padding_modes``, its default first, and implements ``make_parameters``,
    ``reset_parameters``, ``parametrize`` and ``forward``.
    """

    fixed = GEOMETRY
    padding_modes = ("circular", "zeros")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: str | int | Pair = "same",
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode | None = None,
        device: Any = None,
        dtype: Any = None,
        backend: Backend = "auto",
    ):
        super().__init__(backend)
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.out_channels = check_positive_int("out_channels", out_channels)
        self.kernel_size = make_pair("kernel_size", kernel_size)
        self.stride = make_pair("stride", stride)
        self.dilation = make_pair("dilation", dilation)
        self.groups = check_groups(groups, in_channels, out_channels)
        padding_mode = padding_mode or self.padding_modes[0]
        if padding_mode not in self.padding_modes:
            raise ValueError(f"padding_mode={padding_mode!r}: allowed are {', '.join(map(repr, self.padding_modes))}")
        self.padding_mode: PaddingMode = padding_mode
        self.padding = padding
        self.pads = self._check_padding(padding)
        self.bias = make_bias(out_channels, bias, device, dtype)
        self.make_parameters(device, dtype)
        self.reset_parameters()

    def _check_padding(self, padding: Any) -> Pads:
        """Resolves padding to (left, right, top, bottom), as F.pad orders them."""
        if padding == "same":
            return same_pads(self.kernel_size, self.dilation)
        if padding == "valid":
            return 0, 0, 0, 0
        if isinstance(padding, str):
            raise ValueError(f"padding={padding!r}: allowed are 'same', 'valid', an int or a pair of ints")
        vertical, horizontal = make_pair("padding", padding, least=0)
        reach = tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        if self.padding_mode == "circular" and (2 * vertical > reach[0] or 2 * horizontal > reach[1]):
            raise ValueError(
                f"padding={padding!r}: circular padding repeats outputs beyond a total of dilation * "
                f"(kernel_size - 1) = {reach} per axis, where the Lipschitz bound is lost; "
                f"allowed are at most {reach[0] // 2} and {reach[1] // 2} on each side, or 'same'"
            )
        return horizontal, horizontal, vertical, vertical

    def check_input(self, x: Tensor) -> None:
        """Raises ValueError unless x is (n, in_channels, h, w) or (in_channels, h, w) and parameters have numbers."""
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (n, {self.in_channels}, h, w) or ({self.in_channels}, h, w)"
            )
        self.check_numbers(x)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """F.conv2d with this layer's stride, padding, dilation and groups."""
        left, right, top, bottom = self.pads
        if x.dim() == 4 and x.shape[-2:] == weight.shape[2:] == (1, 1) and not any(self.pads) and self.groups == 1:
            return F.linear(x.flatten(1), weight.flatten(1), bias)[
                :, :, None, None
            ]  # oneDNN would reorder the weight
        if self.padding_mode == "zeros" and left == right and top == bottom:
            return F.conv2d(x, weight, bias, self.stride, (top, left), self.dilation, self.groups)
        return F.conv2d(
            pad(x, self.pads, self.padding_mode), weight, bias, self.stride, 0, self.dilation, self.groups
        )

    def kernel_norm(self, weight: Tensor, input_shape: tuple[int, ...]) -> float:
        """An upper bound of the norm of :meth:`convolve` with this kernel on images of this shape."""
        size = input_shape[-2], input_shape[-1]
        geometry = self.stride, self.pads, self.dilation, self.groups, self.padding_mode
        return ops.spectral_norm(as_it_runs(weight), size, *geometry).item()

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}"
        text += f", bias={self.bias is not None}, padding_mode={self.padding_mode!r}, backend={self.backend!r}"
        return text


class KernelConv2d(LipschitzConv2d):
    """A drop-in ``torch.nn.Conv2d``: a method gives the convolution's kernel by ``parametrize() -> (weight,)``."""

    @property
    def weight(self) -> Tensor:
        """The effective kernel, (out_channels, in_channels / groups, kh, kw); differentiable in training."""
        return self.only_weight()

    def factors(self) -> tuple[Tensor, Tensor | None]:
        """The effective kernel as W diag(s): W and the factors s of its input channels, or the kernel and None."""
        return self.effective()[0], None

    def forward(self, x: Tensor) -> Tensor:
        """Weight * x + bias: ``conv2d``, or in evaluation by the kernel's spectrum where that is cheaper."""
        self.check_input(x)
        if torus := self.torus_for(x):
            return self.apply_spectrum(x, torus)
        return self.convolve(x, self.effective()[0], self.bias)

    def torus_for(self, x: Tensor) -> Pair | None:
        """The torus on which evaluation applies the kernel to x by its spectrum; None: by ``conv2d``."""
        return _spectra.torus_for(self, x, (self.in_channels, self.out_channels))

    def apply_spectrum(self, x: Tensor, torus: Pair, pairing: str = "none") -> Tensor:
        """Weight * x + bias by the kernel's spectrum on a torus, and MaxMin behind it if a pairing is given."""
        (weight,) = self.effective()
        compute = partial(_spectra.spectra_of, weight, torus, self.dilation)
        (spectrum,) = self.derive("spectra", torus, (weight,), compute)
        return _spectra.apply(x, spectrum, self.bias, pairing)

    @torch.no_grad()
    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """The norm of the convolution on images of this shape."""
        return self.kernel_norm(self.weight, input_shape)


def make_pair(name: str, value: Any, least: int = 1) -> Pair:
    """An int or a pair of ints as a pair; TypeError or ValueError name the argument."""
    pair = (value, value) if isinstance(value, int) else value
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        raise TypeError(f"{name}={value!r}: expected an int or a pair of ints")
    for item in pair:
        if isinstance(item, bool) or not isinstance(item, int):
            raise TypeError(f"{name}={value!r}: expected an int or a pair of ints")
        if item < least:
            raise ValueError(f"{name}={value!r}: expected at least {least}")
    return int(pair[0]), int(pair[1])


def check_groups(groups: Any, in_channels: int, out_channels: int) -> int:
    """Returns groups if it divides both channel counts, or raises ValueError."""
    check_positive_int("groups", groups)
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"groups={groups}: expected a divisor of in_channels={in_channels} and out_channels={out_channels}"
        )
    return groups
