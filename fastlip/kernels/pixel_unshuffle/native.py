"""pixel_unshuffle in C++ (csrc/pixel_unshuffle): channels-last images, whose channels may be a slice."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common.binding import CPU
from fastlip.kernels.common.sizes import surely_below
from fastlip.kernels.pixel_unshuffle.api import _fake_shuffle, _fake_unshuffle

binding.require()

_NAMES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
# Numbers from which these kernels win, forward and backward: 1.2 of torch's time at half as many, 0.8 at as many.
_WORTHWHILE = 1 << 16


def supports(x: Tensor, factor: int) -> str:
    """Empty, or why these kernels cannot run."""
    if x.dtype not in _NAMES or x.dim() != 4:
        return f"no kernel for dtype {x.dtype} with {x.dim()} dimensions"
    name = "pixel_unshuffle_float32"
    return "" if x.is_cpu and name in CPU else binding.missing(name, x.device)


def unprofitable(x: Tensor, factor: int) -> str:
    """Empty, or why torch's function does better."""
    if x.stride(1) != 1 or x.shape[1] == 1:
        return "the image is not channels-last"
    size = x.numel()
    few = surely_below(size, _WORTHWHILE) if torch.compiler.is_compiling() else size < _WORTHWHILE
    return "torch takes less time for so few numbers than a launch" if few else ""


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """(n, c, f h, f w) -> (n, c f², h, w)."""
    if x.stride(1) != 1:
        x = x.contiguous(memory_format=torch.channels_last)
    y = _fake_unshuffle(x, factor, "native")
    n, _, height, width = y.shape
    strides = x.stride(0), x.stride(2), x.stride(3)
    _launch("pixel_unshuffle", x, y, n, height, width, x.shape[1], factor, *strides)
    return y


def pixel_shuffle(y: Tensor, factor: int) -> Tensor:
    """The adjoint."""
    y = y.contiguous(memory_format=torch.channels_last)
    x = _fake_shuffle(y, factor, "native")
    n, _, height, width = y.shape
    _launch("pixel_shuffle", y, x, n, height, width, x.shape[1], factor)
    return x


def _launch(name: str, source: Tensor, target: Tensor, *sizes: int) -> None:
    binding.launch(f"{name}_{_NAMES[source.dtype]}", source.device, source.data_ptr(), target.data_ptr(), *sizes)
