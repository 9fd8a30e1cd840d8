"""Running means of training, which transforms of functions cannot update."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_wrapped(x: Tensor) -> bool:
    """Whether a tensor stands for several in one of ``torch.func``'s transforms."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)  # pyright: ignore[reportAttributeAccessIssue]


def move(owner: nn.Module, buffer: Tensor, value: Tensor) -> None:
    """Writes a value into a buffer; ValueError in a transform that only knows the value."""
    if not torch.compiler.is_compiling() and is_wrapped(value) and not is_wrapped(buffer):
        name = type(owner).__name__
        raise ValueError(
            f"{name}: training mode updates a running mean, which torch.func.grad and vmap cannot; use {name}.eval()"
        )
    buffer.copy_(value)
