"""The Lipschitz constants that the published evaluation takes, layer by layer, and what the layers attain."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip.certification.bounds.weights import linear_weight
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.nn.base import as_it_runs
from fastlip.published.entries import Entries
from fastlip.published.layout import Backbone, Layout

_TINY = 1e-12  # vectors are divided by their norm, or by this
_ATTAINED_STEPS = 100
_ROUNDING = 1e-9  # room for the roundings of a product and two norms in float64


class Constant(NamedTuple):
    """A layer's constant as the published code computes it.

    Attributes:
        value: the constant.
        how: where it comes from.
        vector: the last vector of a power iteration, of one image.
    """

    value: float
    how: str
    vector: Tensor | None = None


def published_constants(
    entries: Entries, layout: Layout, modules: dict[str, nn.Module], steps: int
) -> dict[str, Constant]:
    """The published constants of the layers before the head, by their published names.

    The stem and LiResNet's convolutions are bounded by ``steps`` power steps that start at the stored vectors,
    the neck and Cholesky layers by singular values, and block reflectors by the number 1.

    Args:
        entries: the checkpoint's.
        layout: of its network.
        modules: the modules of :func:`weighted_layers` in the converted network, by their published names.
        steps: power steps; the published evaluation makes 500.
    """
    stem, start = modules["stem.0.weight"], entries["stem.0.init_x"]
    found = {"stem.0.weight": _power(_convolution(stem), start, steps)}
    for part in layout.backbones:
        images = _stored_images(entries, part)
        for index in range(part.depth):
            name = f"{part.name}.weights[{index}]"
            if images is None:
                found[name] = Constant(1.0, "taken as 1")
            else:
                found[name] = _power(_convolution(modules[name]), images[index][None], steps)
    for name in modules.keys() - found:
        is_reflector = name.startswith("linear.") and layout.dense == "reflector"
        found[name] = Constant(1.0, "taken as 1") if is_reflector else _singular(modules[name])
    return {name: found[name] for name in modules}


def attained(module: nn.Module, input_shape: tuple[int, ...], constant: Constant) -> float:
    """A number that the norm of a linear layer reaches: |A x| / |x| in float64 after power steps.

    Args:
        module: the layer; its bias does not count.
        input_shape: the shape of one input.
        constant: its published constant, whose vector is tried too.
    """
    operator = _linear(module)
    generator = torch.Generator().manual_seed(0)
    x = _unit(torch.randn(1, *input_shape, dtype=torch.float64, generator=generator))
    if constant.vector is not None:
        vector = _unit(constant.vector.double())
        x = vector + 0.1 * x  # goes on from there, but never within a space that the stored vector cannot leave
        best = operator(vector).norm().item() / max(vector.norm().item(), _TINY)
    else:
        best = 0.0
    for _ in range(_ATTAINED_STEPS):
        x = _unit(_adjoint(operator, x))
    best = max(best, (operator(x).norm() / x.norm().clamp_min(_TINY)).item())
    return best * (1 - _ROUNDING)


def _stored_images(entries: Entries, part: Backbone) -> Tensor | None:
    """(depth, width, side, side): the vectors that the checkpoint has for these convolutions."""
    if part.kind != "linear":
        return None
    return entries[f"{part.name}.init_x"].unflatten(1, (part.depth, -1))[0]


def _power(operator: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> Constant:
    """|A x| after power steps with AᵀA, in the precision of the checkpoint."""
    for _ in range(steps):
        x = _unit(_adjoint(operator, x))
    return Constant(operator(x).norm().item(), f"{steps} power steps", x)


def _singular(module: Any) -> Constant:
    """The largest singular value in the precision of the checkpoint."""
    with torch.no_grad():
        matrix = module._effective()[0].flatten(1)
    return Constant(torch.linalg.matrix_norm(matrix, 2).item(), "singular values")


def _unit(x: Tensor) -> Tensor:
    return x / x.norm().clamp_min(_TINY)


def _adjoint(operator: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """AᵀA x."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = operator(x)
    return torch.autograd.grad(y, x, y.detach())[0].detach()


def _convolution(module: Any, double: bool = False) -> Callable[[Tensor], Tensor]:
    """A convolution or dense layer without its bias, in its own precision or in double."""
    weight = module.weight.detach()
    weight = as_it_runs(weight) if double else weight
    if weight.dim() == 2:
        return lambda x: F.linear(x, weight)
    geometry = ConvGeometry.of_module(module) if isinstance(module, nn.Conv2d) else module._application.geometry
    return lambda x: geometry.convolve(x, weight)


def _linear(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The layer without its bias, in double: with the weight as it runs, or computed in double."""
    if linear_weight(module) is not None:
        return _convolution(module, double=True)
    layer: Any = copy.deepcopy(module).double().requires_grad_(False)
    layer.bias = None
    return layer
