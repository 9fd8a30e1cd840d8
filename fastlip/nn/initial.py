"""Initial values of parameters: orthogonal matrices and kernels, from which deep networks learn well."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def decomposed_dtype() -> torch.dtype:
    """The default dtype, but at least float32: that of random orthogonal matrices, which torch decomposes."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


@torch.no_grad()
def orthogonal_(tensor: Tensor) -> Tensor:
    """Fills a tensor as ``torch.nn.init.orthogonal_`` does, in at least float32."""
    wide = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return tensor.copy_(nn.init.orthogonal_(wide.detach()))


def identity_or_orthogonal(identity: bool, like: Tensor) -> Tensor:
    """The identity, or a random orthogonal matrix, of the shape, dtype and device of ``like``."""
    matrix = torch.eye(*like.shape, dtype=decomposed_dtype())
    return (matrix if identity else nn.init.orthogonal_(matrix)).to(like)


def centre_orthogonal_(weight: Tensor, groups: int = 1) -> None:
    """Fills a kernel with an orthogonal matrix per group at the centre tap, the identity if it is square."""
    with torch.no_grad():
        weight.zero_()
        rows, columns = weight.shape[0] // groups, weight.shape[1]
        centre = tuple((size - 1) // 2 for size in weight.shape[2:])
        for group in weight.unflatten(0, (groups, rows)):
            tap = group[(..., *centre)]
            tap.copy_(identity_or_orthogonal(rows == columns, tap))


def zero_(*tensors: Tensor | None) -> None:
    """Fills tensors with zeros; None is passed over."""
    with torch.no_grad():
        for tensor in tensors:
            if tensor is not None:
                tensor.zero_()
