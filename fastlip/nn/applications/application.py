"""The base class of applications of weights: the operator, its norm, and how it runs fused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.padding import pad

if TYPE_CHECKING:
    from fastlip.nn.base import LipschitzLayer
    from fastlip.nn.fusion import Fusion


@dataclass(frozen=True)
class Application:
    """How a layer applies its effective weights. It holds no tensor and no layer: copies of a layer share it."""

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """Applies the effective weights of the layer to x."""
        raise NotImplementedError

    def bound(self, layer: Any, input_shape: tuple[int, ...]) -> float:
        """An upper bound of the norm of this operator on inputs of this shape, without the batch dimension."""
        raise NotImplementedError

    def fused(self, layer: LipschitzLayer, activation: nn.Module) -> Fusion | None:
        """How the layer and the activation after it run as one; None if they run one after the other.

        Asked by ``fastlip.nn.fusion.fusion_of``, where nothing has touched the call of either.
        """
        return None

    def describe(self, layer: Any) -> str:
        """The layer's arguments as its ``repr`` shows them."""
        raise NotImplementedError


@dataclass(frozen=True)
class ConvApplication(Application):
    """An application to images.

    Args:
        geometry: stride, padding, dilation and groups.
        orthogonal: whether the layer is an isometry with circular padding and as many outputs as inputs.
    """

    geometry: ConvGeometry
    orthogonal: bool = False

    def describe(self, layer: Any) -> str:
        """The arguments of ``torch.nn.Conv2d``, and the backend."""
        text = f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}, stride={layer.stride}"
        text += f", padding={layer.padding!r}, dilation={layer.dilation}, groups={layer.groups}"
        return (
            f"{text}, bias={layer.bias is not None}, padding_mode={layer.padding_mode!r}, backend={layer.backend!r}"
        )

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``conv2d`` or ``conv3d`` with this stride, padding, dilation and groups."""
        geometry = self.geometry
        if geometry.axes != 2:
            return geometry.convolve(x, weight, bias)
        left, right, top, bottom = pads = geometry.pads
        if (
            x.dim() == 4
            and x.shape[-2:] == weight.shape[2:] == (1, 1)
            and pads == (0, 0, 0, 0)
            and geometry.groups == 1
        ):
            y = F.linear(x.flatten(1), weight.flatten(1), bias)  # oneDNN would reorder the weight
            return y[:, :, None, None]
        stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
        if left == right and top == bottom and (geometry.padding_mode == "zeros" or left == top == 0):
            return F.conv2d(x, weight, bias, stride, (top, left), dilation, groups)
        return F.conv2d(pad(x, pads, geometry.padding_mode), weight, bias, stride, 0, dilation, groups)

    def strided_size(self, image_size: tuple[int, ...]) -> tuple[int, ...]:
        """The sides after the stride's patches became channels: rounded up."""
        stride = self.geometry.stride
        return tuple([-(-side // step) for side, step in zip(image_size[-len(stride) :], stride, strict=True)])


# The attributes of a convolution that its constructor reads, as ``torch.nn.Conv2d`` has them.
CONV_ARGUMENTS = (
    *("application", "in_channels", "out_channels", "kernel_size", "stride", "padding"),
    *("dilation", "groups", "padding_mode"),
)


def show_conv_arguments(layer: Any, in_channels: int, out_channels: int, padding: Any) -> None:
    """Sets the attributes that ``torch.nn.Conv2d`` (``Conv1d``, ``Conv3d``) has, from the application's geometry."""
    geometry = layer._application.geometry
    layer.in_channels, layer.out_channels = in_channels, out_channels
    layer.padding = padding[-layer._axes :] if isinstance(padding, tuple) else padding
    for name in ("kernel_size", "stride", "dilation"):
        setattr(layer, name, getattr(geometry, name)[-layer._axes :])
    layer.groups, layer.padding_mode = geometry.groups, geometry.padding_mode
