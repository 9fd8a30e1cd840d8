"""Quasi-residual parametrizations: an identity that is added before a weight is made orthogonal.

    V = I + s gamma W

takes the place of the parameter W of a square layer, where I is the identity (at the centre tap of a kernel), s a
constant, and gamma a learnt factor for each row (Hu, Leino, Wang, Fredrikson, *A Recipe for Improved Certifiable
Robustness*, ICLR 2024; Lai et al., ICML 2025). Networks of this depth take s = depth^(-1/2). The method then makes V
orthogonal as it would W, so that every bound is the same with and without the option.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastlip.kernels.common.geometry import Pair
from fastlip.nn.arguments import make_parameter


def check_quasi_residual(value: Any, channels: Pair, stride: Pair = (1, 1)) -> float:
    """Returns s, where True is 1; 0 if the option is off.

    Args:
        value: the argument: False, True or s.
        channels: inputs and outputs of the layer.
        stride: its stride.

    Raises:
        TypeError: the value is not a number.
        ValueError: s is not a positive finite number, or the layer is not square.
    """
    if value is False:
        return 0.0
    if not isinstance(value, (int, float)):
        raise TypeError(f"quasi_residual={value!r}: expected False, True or a number, got {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"quasi_residual={value!r}: expected False, True or a positive finite number")
    if channels[0] != channels[1] or max(stride) > 1:
        raise ValueError(
            f"quasi_residual={value!r}: expected as many outputs as inputs and stride 1, where an identity exists; "
            f"got {channels[0]} inputs, {channels[1]} outputs, stride={stride}"
        )
    return float(value)


def add_gamma(layer: Any, shape: tuple[int, ...], device: Any, dtype: Any) -> None:
    """Gives the layer the factors ``gamma`` of the rows of its weight, if its ``quasi_residual`` is on.

    Args:
        layer: has ``quasi_residual``.
        shape: of the weight, up to its columns.
        device: of the factors.
        dtype: of the factors.
    """
    if layer.quasi_residual:
        layer.gamma = make_parameter(shape, device, dtype)


def reset_quasi_residual(layer: Any, weight: Tensor, entries: float) -> bool:
    """Fills the weight with normal numbers over ``entries``, as published, and gamma with ones.

    Args:
        layer: has ``quasi_residual``; if that is off, nothing is filled.
        weight: W.
        entries: rows of a group times taps; infinity: the weight is 0.

    Returns:
        Whether the option is on.
    """
    if not layer.quasi_residual:
        return False
    nn.init.normal_(weight, std=1 / entries)
    nn.init.ones_(layer.gamma)
    return True


def with_identity(layer: Any, weight: Tensor, identity: Tensor | None = None) -> Tensor:
    """I + s gamma W, or the weight itself if the layer's option is off.

    Args:
        layer: has ``quasi_residual`` (s), ``gamma`` and, if it has them, ``groups``.
        weight: W, (rows, columns, *taps) in at least float32; of any shape with an identity.
        identity: I where it is not that of each group at the centre tap.
    """
    if not layer.quasi_residual:
        return weight
    gamma = layer.gamma
    factor = layer.quasi_residual * gamma.to(weight.dtype)
    V = factor.view(*gamma.shape, *[1] * (weight.dim() - gamma.dim())) * weight
    if identity is not None:
        return V + identity
    centre = V[(..., *((taps - 1) // 2 for taps in weight.shape[2:]))]
    centre.unflatten(0, (getattr(layer, "groups", 1), -1)).diagonal(dim1=1, dim2=2).add_(1)
    return V
