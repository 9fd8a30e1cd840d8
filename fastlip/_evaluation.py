"""What audits, certificates and attacks share: the models and batches they take, how these are evaluated."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastlip.nn._base import LipschitzLayer


def check_model(model: Any, dtype: torch.dtype | None) -> None:
    """Refuses what is no module, training mode, NaN or Inf in parameters, and dtypes that cannot be vouched for."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    training = [name or "model" for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"model: {training[0]!r} is in training mode; call model.eval() first")
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype={dtype}: allowed are torch.float32, torch.float64 and None")
    check_finite(model)


def check_finite(model: nn.Module) -> None:
    """Raises ValueError naming the layers whose parameters or buffers contain NaN or Inf."""
    for name, module in model.named_modules():
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for tensor_name, tensor in tensors:
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(
                    f"layer {name or 'model'!r} ({type(module).__name__}): {tensor_name} contains NaN or Inf"
                )


def check_eps(eps: Sequence[float]) -> None:
    """Raises ValueError naming a radius that is negative or not finite."""
    for value in eps:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"eps={value!r}: expected numbers, at least 0")


def prepare(model: nn.Module, device: Any, dtype: torch.dtype | None) -> tuple[nn.Module, Tensor]:
    """The model, or a copy where its device or type must change, and a tensor placed where its inputs go."""
    floating = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    if dtype is None and floating & {torch.float16, torch.bfloat16}:
        dtype = torch.float32
    devices = {tensor.device for tensor in model.parameters()}
    moves = device is not None and devices != {torch.device(device)}
    if moves or (dtype is not None and floating != {dtype}):
        model = copy.deepcopy(model).to(device=device, dtype=dtype)
    return model, next((p.detach() for p in model.parameters() if p.is_floating_point()), torch.zeros(()))


def bar(loader: Iterable[Any], what: str, progress: bool) -> Iterable[Any]:
    """The loader, behind a progress bar if asked for."""
    if not progress:
        return loader
    from tqdm import tqdm

    return tqdm(loader, desc=what, unit="batch", leave=False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without a trace: the modes and the evaluation caches are as before afterwards."""
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
            if isinstance(module, LipschitzLayer):
                stack.callback(setattr, module, "_cache", module._cache)
                module._cache = {} if module.training else dict(module._cache)
            module.training = False
        yield


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """No autocast, no TF32 or bfloat16 inside float32 products; the settings come back afterwards."""
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    products = ((torch.backends.cuda, "matmul"), (cudnn, "conv"), (mkldnn, "matmul"), (mkldnn, "conv"))
    switches = [getattr(library, product) for library, product in products]
    with ExitStack() as stack:
        for switch in switches:
            stack.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
            switch.fp32_precision = "ieee"
        for name in {"cpu", device}:
            stack.enter_context(torch.autocast(name, enabled=False))
        yield
