"""The export of a whole model, by the rules of its modules."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fastlip.exporting import layers, others, sandwich, sequences, volumes  # noqa: F401  (they register their rules)
from fastlip.exporting.folding import fold_shifts
from fastlip.exporting.rules import FOURIER, Fourier, Target, rule_of
from fastlip.inspection.copying import detached_values
from fastlip.inspection.evaluation import check_finite, compiled_from, evaluating
from fastlip.inspection.rules import nearest, written_here
from fastlip.inspection.running import batch_like, is_sequence
from fastlip.inspection.sameness import check_same_outputs
from fastlip.inspection.traces import no_trace
from fastlip.nn._calls import MEASURED, is_touched, overridden


def export(model: nn.Module, input_shape: tuple[int, ...] | None = None, *, fourier: Fourier = "fft") -> nn.Module:
    r"""Returns a copy of the model in eval mode with ``torch.nn`` layers of the same function for fastlip's.

    ``torch.nn.Conv2d`` (AOC, AOL, BCOP, one-tap kernels), ``ConvTranspose2d`` (AOC), ``Linear`` (all matrices),
    ``ZeroPad``, ``PixelUnshuffle`` and ``Sequential`` where they agree exactly. What torch.nn has no layer for
    (residual layers, convolution exponentials, spectral convolutions, sorting activations, paddings that Conv2d
    lacks) becomes a ``torch.fx.GraphModule`` that holds its tensors and its code, which calls torch only. Modules
    of other packages are copied as they are.

    The result runs, is copied and moved without fastlip, and so does ``torch.load(file, weights_only=False)`` of
    what ``torch.save(plain, file)`` wrote; ``torch.export`` and ONNX take it. Weights are those that eval mode
    uses, constants now: training the result further would lose the Lipschitz bound. ``fastlip.audit`` and
    ``fastlip.certify`` take it too, and measure its own weights: the bound is that of the original, up to rounding
    (AOL: 1e-6, where the original's Gram certificate was the smaller bound). Where the input_shape is known, the copy
    and the model are evaluated on a random sample, and a difference beyond rounding is refused.

    Args:
        model: any module; fastlip layers are found at any depth. It is left as it was.
        input_shape: the shape of one sample, such as (3, 32, 32); default None takes the ``input_shape`` that the
            model has, as those of ``fastlip.models`` do. Spectral layers (BRO, Cayley, LOT, spectral SOC) and CPL
            convolutions compute a different function for each image size: they are exported for the sizes that they
            have then, and the spectral ones refuse others. So do circular layers whose padding exceeds the image.
        fourier: ``"fft"`` (default), or ``"matrices"``: spectral layers transform by products with real matrices,
            which are slower for large images, but ONNX has them; or ``"matrices64"``: those products in float64.

    Returns:
        The copy. It holds no reference to the model.

    Raises:
        TypeError: a module of fastlip, or a subclass with a forward of its own, that no rule knows.
        ValueError: NaN or Inf in a weight; a layer that depends on the image size without an input_shape; one
            that is called on several sizes; a copy that computes something else than the model; another fourier.

    Example:
        >>> model = torch.nn.Sequential(lip.AOLConv2d(3, 8, 3, padding_mode="zeros"), torch.nn.ReLU())
        >>> fastlip.export(model, (3, 8, 8))
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
          (1): ReLU()
        )
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    if fourier not in FOURIER:
        raise ValueError(f"fourier={fourier!r}: allowed are {', '.join(map(repr, FOURIER))}")
    model = compiled_from(model) or model
    check_finite(model)
    if input_shape is None:
        input_shape = getattr(model, "input_shape", None)
    with evaluating(model), no_trace(model), torch.inference_mode(False), torch.no_grad():
        memo = parts(model, input_shape, fourier)
        plain = fold_shifts(copy.deepcopy(model, memo).eval())
        if input_shape is not None:
            check_same_outputs(model, plain, batch_like(model, 1, tuple(input_shape)))
        return plain


def parts(model: nn.Module, input_shape: tuple[int, ...] | None, fourier: Fourier) -> dict[int, Any]:
    """The exported form of every module of this package in a model in eval mode, by the module's ``id``.

    It is a memo for ``copy.deepcopy``, which then copies a module that holds such modules with their exported forms.
    """
    shapes = {} if input_shape is None else _input_shapes(model, tuple(input_shape))
    memo = detached_values(model)
    for name, module in _children_first("", model, set()):
        if _is_ours(module):
            memo[id(module)] = _convert(module, _target(name, shapes.get(id(module), []), fourier), memo)
    return memo


def _children_first(name: str, module: nn.Module, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, after all that it contains: containers are rebuilt from converted children."""
    if id(module) in seen:
        return
    seen.add(id(module))
    for child_name, child in module.named_children():
        yield from _children_first(f"{name}.{child_name}" if name else child_name, child, seen)
    yield name, module


def _target(name: str, shapes: list[tuple[int, ...]], fourier: Fourier) -> Target:
    """Where a module stands, without a shape if it is called on several."""
    ranks = {len(shape) for shape in shapes}
    return Target(
        name or "model",
        shapes[0] if len(shapes) == 1 else None,
        fourier,
        ranks.pop() if len(ranks) == 1 else None,
    )


def _is_ours(module: nn.Module) -> bool:
    return any(base.__module__.startswith("fastlip.") for base in type(module).__mro__)


def _convert(module: nn.Module, target: Target, memo: dict[int, Any]) -> nn.Module:
    touched = is_touched(module)
    if is_sequence(module) and not touched:
        # Not named_children(), which leaves out what stands here twice.
        children = ((name, copy.deepcopy(child, memo)) for name, child in module._modules.items())
        return nn.Sequential(OrderedDict((name, child) for name, child in children if child is not None))
    found = rule_of(module)
    # A rule for an application holds for what this package wrote, or its author registered a rule for the class.
    known = None if found is None else found[0] if isinstance(module, found[0]) else written_here(module)
    if found is None or known is None or touched or overridden(module, known, allowed=MEASURED):
        raise TypeError(
            f"model: no rule exports {target.name} ({type(module).__name__}): register one for its type with "
            "fastlip.exporting.exported, and remove its hooks and replaced methods"
        )
    children = {name: copy.deepcopy(child, memo) for name, child in module.named_children()}
    return found[1](module, replace(target, children=children))


def _input_shapes(model: nn.Module, input_shape: tuple[int, ...]) -> dict[int, list[tuple[int, ...]]]:
    """The shapes, without batch, of the inputs of each module of this package."""
    shapes: dict[int, list[tuple[int, ...]]] = {}
    refused: list[str] = []

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        shape, seen = tuple(arguments[0].shape[1:]), shapes.setdefault(id(module), [])
        if shape not in seen:
            seen.append(shape)
        if len(seen) > 1 and nearest(layers.FOR_ONE_SIZE, module):
            several = f"model: {type(module).__name__} is called on inputs of {seen[0]} and of {shape}: "
            refused.append(several + "exported layers have one size")

    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    # Also where calls are wrapped: the layers of a chain that run fused are seen one by one.
    handles = [module.register_forward_pre_hook(note) for module in model.modules() if _is_ours(module)]
    try:
        model(torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device))
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"input_shape={input_shape}: the model does not run on a sample of this shape: {reason}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if refused:
        raise ValueError(refused[0])
    return shapes
