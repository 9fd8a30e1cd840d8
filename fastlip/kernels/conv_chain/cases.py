"""Named inputs for the agreement tests and the benchmarks. Length: the products in one output, over all layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.case import Case
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.conv_chain import reference


class _Chain(Case):
    """Tensors named weight0, bias0, weight1, ...: the op takes them as two lists.

    x and the weights are multiples of 1/2 and the biases of a pair's channels differ by 1/64: products are exact, so
    that every backend sorts the pairs alike; one that it sorts differently would be an error of order 1.
    """

    def make(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Standard normal tensors, rounded."""
        tensors = super().make(dtype, device, seed)
        for name, tensor in tensors.items():
            tensor.mul_(2).round_().div_(2)
            if name.startswith("bias"):
                tensor.add_(torch.arange(len(tensor), device=device).to(dtype) / 64)
        return tensors

    def arguments(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """X, weights and biases as lists, and the options."""
        lists = {"weights": "weight", "biases": "bias", "scales": "scale"}
        values = {name: [t for key, t in tensors.items() if key.startswith(one)] for name, one in lists.items()}
        return {"x": tensors["x"], **values, **self.options}


def _case(
    batch: int,
    channels: tuple[int, ...],
    size: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    layout: str = "contiguous",
    bench: bool = False,
    scales: bool = False,
    **options: Any,
) -> Case:
    shapes: dict[str, tuple[int, ...]] = {"x": (batch, channels[0], *size)}
    for i, (inputs, outputs) in enumerate(pairwise(channels)):
        shapes[f"weight{i}"] = (outputs, inputs, *kernel)
        shapes[f"bias{i}"] = (outputs,)
        if scales:
            shapes[f"scale{i}"] = (inputs,)
    length = sum(channels) * kernel[0] * kernel[1]
    return _Chain(shapes, options, length, layout, bench)


def _network(batch: int, channels: int, side: int, kernel: int = 3) -> Case:
    return _case(batch, (channels,) * 6, (side, side), (kernel, kernel), "channels_last", bench=True)


CASES = {
    "one channel": _case(2, (1, 1), (3, 3)),
    "one layer": _case(2, (3, 4), (7, 5)),
    "three layers": _case(2, (2, 4, 6, 2), (5, 4)),
    "odd channels": _case(2, (3, 5, 7), (4, 3)),
    "halves": _case(2, (4, 34, 18), (3, 4), pairing="halves"),
    "no activation": _case(2, (3, 17, 2), (5, 4), pairing="none"),
    "scales": _case(2, (3, 5, 4), (5, 4), scales=True),
    "zeros": _case(2, (3, 6, 4), (5, 4), padding_mode="zeros"),
    "1x1": _case(3, (4, 6, 2), (2, 3), (1, 1)),
    "one row": _case(2, (3, 4, 2), (5, 4), (1, 3)),
    "even kernel": _case(2, (3, 4, 2), (5, 4), (2, 4)),
    "even kernel zeros": _case(2, (3, 4, 2), (5, 4), (2, 4), padding_mode="zeros"),
    "kernel larger than the image": _case(2, (3, 4, 4), (2, 1), (5, 7)),
    "dilation": _case(2, (3, 4, 4), (7, 6), dilation=(2, 3)),
    "dilation zeros": _case(2, (3, 4, 4), (7, 6), dilation=(2, 3), padding_mode="zeros"),
    "channels_last": _case(2, (17, 18, 4), (5, 6), layout="channels_last"),
    "strided": _case(2, (4, 4, 4), (5, 4), layout="strided"),
    "empty batch": _case(0, (3, 4, 4), (4, 4)),
    "network 16": _network(256, 16, 32),
    "network 64": _network(256, 64, 8),
    "network 128": _network(64, 128, 8),
    "network 256": _network(64, 256, 4),
    "network 512": _network(64, 512, 2, kernel=1),
}


def channels_last(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], scales: list[Tensor], **options: Any
) -> Tensor:
    """The reference on channels-last images and weights."""
    weights = [weight.contiguous(memory_format=torch.channels_last) for weight in weights]
    x = x.contiguous(memory_format=torch.channels_last)
    pairing = options.pop("pairing", "adjacent")
    geometries = [ConvGeometry.like(weight, **{"padding_mode": "circular", **options}) for weight in weights]
    return reference.conv_chain(x, weights, biases, scales, geometries, pairing)


BASELINES = {"channels_last": channels_last}
