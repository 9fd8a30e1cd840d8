"""Which gradients a backward is asked for: fewer than its inputs require, as where only the images' is wanted."""

from __future__ import annotations

from typing import Any

import torch

_will_execute = torch._C._will_engine_execute_node
_LEAF = torch._C._functions.AccumulateGrad  # pyright: ignore[reportAttributeAccessIssue]


def asked(ctx: Any) -> list[bool]:
    """For each tensor among the arguments of an operator, those in lists one by one: whether its gradient is used.

    ``ctx.needs_input_grad`` says which require a gradient at all. What ``torch.autograd.grad`` computes for other
    tensors alone is thrown away.
    """
    return [node is not None and _is_asked(node) for node, _ in ctx.next_functions]


def _is_asked(node: Any) -> bool:
    if type(node) is _LEAF:  # torch does not say it of a leaf, and its exception takes as long as a small kernel
        return True
    try:
        return _will_execute(node)
    except RuntimeError:
        return True
