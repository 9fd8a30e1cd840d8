"""The export of a whole model, by the rules of its modules."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from fastlip import nn as lip
from fastlip._evaluation import check_finite, compiled_from, evaluating
from fastlip.exporting.rules import Target, exported
from fastlip.nn._conv import LipschitzConv2d

FOURIER = ("fft", "matrices")


def export(model: nn.Module, input_shape: tuple[int, ...] | None = None, *, fourier: str = "fft") -> nn.Module:
    r"""A copy of the model, in eval mode, whose fastlip modules became ``torch.nn`` layers of the same function.

    ``torch.nn.Conv2d`` (AOC, AOL, BCOP, one-tap kernels), ``ConvTranspose2d`` (AOC), ``Linear`` (all matrices),
    ``ZeroPad``, ``PixelUnshuffle`` and ``Sequential`` where they agree exactly. What torch.nn has no layer for
    (residual layers, convolution exponentials, spectral convolutions, sorting activations, paddings that Conv2d
    lacks) becomes a ``torch.fx.GraphModule`` that holds its tensors and its code, which calls torch only. Modules
    of other packages are copied as they are.

    The result runs, is copied and moved without fastlip, and so does ``torch.load(file, weights_only=False)`` of
    what ``torch.save(plain, file)`` wrote; ``torch.export`` and ONNX take it. Weights are those that eval mode
    uses, constants now: training the result further would lose the Lipschitz bound. ``fastlip.audit`` and
    ``fastlip.certify`` take it too, and measure its own weights: the bound is that of the original, up to rounding
    (AOL: 1e-6, where the original's Gram certificate was the smaller bound).

    Args:
        model: any module; fastlip layers are found at any depth. It is left as it was.
        input_shape: of one sample, such as (3, 32, 32); None: the ``input_shape`` that the model carries, as those
            of ``fastlip.models`` do. Spectral layers (Cayley, LOT, spectral SOC) and CPL convolutions compute a
            different function for each image size: they are exported for the sizes that they have then, the
            spectral ones refuse others.
        fourier: ``"fft"``, or ``"matrices"``: spectral layers transform by products with real matrices: slower
            for large images, but ONNX has them.

    Raises:
        TypeError: a module of fastlip, or a subclass with a forward of its own, that no rule knows.
        ValueError: NaN or Inf in a weight; a layer that depends on the image size without an input_shape; one
            that is called on several sizes.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    if fourier not in FOURIER:
        raise ValueError(f"fourier={fourier!r}: allowed are {', '.join(map(repr, FOURIER))}")
    model = compiled_from(model) or model
    check_finite(model)
    if input_shape is None:
        input_shape = getattr(model, "input_shape", None)
    with evaluating(model), torch.no_grad():
        shapes = {} if input_shape is None else _input_shapes(model, tuple(input_shape))
        memo: dict[int, Any] = {}
        # Children first: a container of ours is rebuilt from its converted children.
        for name, module in reversed(list(model.named_modules())):
            if _is_ours(module):
                memo[id(module)] = _convert(module, Target(name or "model", shapes.get(id(module)), fourier), memo)
        return copy.deepcopy(model, memo).eval()


def _is_ours(module: nn.Module) -> bool:
    return any(base.__module__.startswith("fastlip.") for base in type(module).__mro__)


def _convert(module: nn.Module, target: Target, memo: dict[int, Any]) -> nn.Module:
    if isinstance(module, nn.Sequential) and type(module).forward in (nn.Sequential.forward, lip.Chain.forward):
        return nn.Sequential(
            OrderedDict((name, copy.deepcopy(child, memo)) for name, child in module.named_children())
        )
    known = next((base for base in type(module).__mro__ if base in exported.registry and base is not object), None)
    hooks = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    if known is None or hooks or not _has_our_forward(module):
        raise TypeError(
            f"model: no rule exports {target.name} ({type(module).__name__}): register one for its type with "
            "fastlip.exporting.exported, and remove its hooks"
        )
    return exported(module, target)


def _has_our_forward(module: nn.Module) -> bool:
    definer = next(base for base in type(module).__mro__ if "forward" in vars(base))
    return definer in exported.registry or definer.__module__.startswith("fastlip.")


def _input_shapes(model: nn.Module, input_shape: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """The shape, without batch, of what each module of ours gets."""
    shapes: dict[int, tuple[int, ...]] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        shape = tuple(arguments[0].shape[1:])
        if shapes.setdefault(id(module), shape) != shape and isinstance(module, LipschitzConv2d):
            raise ValueError(
                f"model: {type(module).__name__} is called on inputs of {shapes[id(module)]} and of {shape}: "
                "exported layers have one size"
            )

    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    handles = [module.register_forward_pre_hook(note) for module in model.modules() if _is_ours(module)]
    try:
        model(torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
    return shapes
