"""Checks the models that audits, certificates and attacks take, and sets how these are evaluated."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastlip._extras import needed_for
from fastlip._progress import WIDTH
from fastlip.inspection.copying import copied
from fastlip.kernels.common.checks import boolean, usable_device
from fastlip.kernels.common.precision import everything_ieee
from fastlip.nn._cache import clear_all
from fastlip.nn._fingerprint import fingerprint, plain_of
from fastlip.nn.base import LipschitzLayer

_NUMBERS = (int, float, np.number)


def check_model(model: Any, dtype: torch.dtype | None) -> None:
    """Raises TypeError or ValueError for no module, training mode, NaN or Inf in parameters, and other dtypes."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    training = [name or "model" for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"model: {training[0]!r} is in training mode; call model.eval() first")
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype={dtype!r}: allowed are torch.float32, torch.float64 and None")
    check_finite(model)


def check_finite(model: nn.Module) -> None:
    """Raises ValueError naming the layers whose parameters or buffers contain NaN or Inf, or no values yet."""
    for name, module in model.named_modules():
        for tensor_name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if is_lazy(tensor) or tensor.is_meta or (tensor.is_floating_point() and not tensor.isfinite().all()):
                found = _missing_in(tensor)
                raise ValueError(f"layer {name or 'model'!r} ({type(module).__name__}): {tensor_name} {found}")


def _missing_in(tensor: Tensor) -> str:
    """Returns why a parameter or buffer is not made of finite numbers."""
    if is_lazy(tensor):
        return "has no shape yet; call the model on a batch first"
    if tensor.is_meta:
        return "is on the meta device, without values; call model.to_empty(device=...) and load a state dict first"
    return "contains NaN or Inf"


def compiled_from(module: nn.Module) -> nn.Module | None:
    """The module that ``torch.compile`` wrapped in this one; None if it is no such wrapper."""
    # Loading the compiler takes long: without it nothing is compiled.
    frames = sys.modules.get("torch._dynamo.eval_frame")
    is_wrapper = frames is not None and isinstance(module, frames.OptimizedModule)
    return module.get_submodule("_orig_mod") if is_wrapper else None


def check_eps(eps: Sequence[float]) -> None:
    """Raises ValueError for a radius that is negative or not finite, TypeError for a value that is not a number."""
    for value in eps:
        if isinstance(value, bool) or not isinstance(value, _NUMBERS):
            raise TypeError(f"eps={value!r}: expected a number, at least 0")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"eps={value!r}: expected numbers, at least 0")


def radii_of(eps: float | Iterable[float] | Tensor) -> tuple[float, ...]:
    """Returns one radius or several as numbers; an error names what is negative, not finite or not a number."""
    if isinstance(eps, Tensor):
        eps = eps.tolist()
    values = (eps,) if isinstance(eps, (int, float)) or not isinstance(eps, Iterable) else tuple(eps)
    if isinstance(eps, str) or not all(
        [isinstance(value, _NUMBERS) and not isinstance(value, bool) for value in values]
    ):
        raise TypeError(f"eps={eps!r}: expected a number or a sequence of numbers, such as 36 / 255 or [0.1, 0.5]")
    check_eps(values)
    return tuple(map(float, values))


def prepare(model: nn.Module, device: Any, dtype: torch.dtype | None) -> tuple[nn.Module, Tensor]:
    """The model, or a copy if its device or dtype must change, and a tensor of the dtype and device of its inputs."""
    forget(model)  # what a copy shows holds for a frozen model only if its weights are those of its parameters
    floating = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    if dtype is None and floating & {torch.float16, torch.bfloat16}:
        dtype = torch.float32
    devices = {tensor.device for tensor in model.parameters()}
    moves = device is not None and devices != {usable_device(device)}
    if moves or (dtype is not None and floating != {dtype}):
        model = copied(model).to(device=device, dtype=dtype)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return model, parameter.detach()
    return model, torch.zeros((), device=device, dtype=dtype)


def check_shape(input_shape: Any) -> None:
    """Raises TypeError or ValueError unless this is the shape of a sample: sides of at least 1."""
    if isinstance(input_shape, Tensor):
        got, expected = tuple(input_shape.shape), "a tuple of ints, such as tuple(x.shape[1:])"
        raise TypeError(f"input_shape: got a tensor of shape {got}, expected {expected}")
    if not isinstance(input_shape, (tuple, list)) or not all([isinstance(side, int) for side in input_shape]):
        raise TypeError(f"input_shape={input_shape!r}: expected a tuple of ints, such as (3, 32, 32)")
    if min(input_shape, default=1) < 1:
        raise ValueError(f"input_shape={input_shape!r}: expected sides of at least 1")


def bar(loader: Iterable[Any], what: str, progress: bool) -> Iterable[Any]:
    """The loader, with a progress bar if asked for."""
    if not progress:
        return loader
    boolean("progress", progress)
    with needed_for("progress=True"):
        from tqdm import tqdm

    return tqdm(loader, desc=what, unit="batch", leave=False, ncols=WIDTH)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Sets eval mode and restores the modes on exit; weights are computed from the parameters meanwhile."""
    with ExitStack() as stack:
        stack.enter_context(from_parameters(model))
        for module in model.modules():
            if module.training:
                stack.callback(setattr, module, "training", True)
                module.training = False
        yield


def forget(model: nn.Module) -> list[LipschitzLayer]:
    """Empties the evaluation caches of the model's fastlip layers, and returns these."""
    layers: list[LipschitzLayer] = []
    for module in model.modules():
        if isinstance(module, LipschitzLayer):
            layers.append(module)
    clear_all(layers)
    return layers


@contextmanager
def from_parameters(model: nn.Module) -> Iterator[None]:
    """Computes weights from the parameters, in frozen layers too, which are frozen with the new weights on exit."""
    with ExitStack() as stack:
        for layer in forget(model):
            stack.callback(setattr, layer._cache, "frozen", layer._cache.frozen)
            layer._cache.frozen = False
        yield


class Unchanged:
    """Refuses parameters that change while a model is certified: the model would not run as it was audited."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.before = self._state()

    def check(self, index: int) -> None:
        """Raises ValueError naming the batch after which the parameters are not those at the beginning."""
        if self._state() != self.before:
            raise ValueError(f"model: its parameters changed before the end of batch {index}: they must stay fixed")

    def _state(self) -> Any:
        return fingerprint(plain_of(self.model.parameters()))


@contextmanager
def certified_precision(device: str) -> Iterator[None]:
    """Switches off autocast, and TF32 and bfloat16 inside float32 products; restores the settings on exit."""
    with ExitStack() as stack:
        stack.enter_context(everything_ieee())
        for name in {"cpu", device}:
            stack.enter_context(torch.autocast(name, enabled=False))
        yield
