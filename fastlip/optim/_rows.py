"""Matrices whose rows several processes divide (``torch.distributed.fsdp.fully_shard``), and those of one process."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor


def is_sharded(matrix: Tensor) -> bool:
    """Whether each process has some of the rows: a ``DTensor``.

    Args:
        matrix: a parameter or its gradient.

    Raises:
        ValueError: it is divided along another dimension.
    """
    module: Any = sys.modules.get("torch.distributed.tensor")
    if module is None or not isinstance(matrix, module.DTensor):
        return False
    for placement in matrix.placements:  # pyright: ignore[reportAttributeAccessIssue]
        if not (placement.is_replicate() or placement.is_shard(0)):
            raise ValueError(f"matrix: divided as {placement}, expected by rows (Shard(0)), as fully_shard does")
    return True


def own_rows(matrix: Tensor) -> Tensor:
    """The rows that this process has, as a plain tensor with the same memory."""
    return matrix.to_local() if is_sharded(matrix) else matrix  # pyright: ignore[reportAttributeAccessIssue]


def gathered(matrix: Tensor) -> Tensor:
    """All rows, as a plain tensor."""
    return matrix.full_tensor() if is_sharded(matrix) else matrix  # pyright: ignore[reportAttributeAccessIssue]


def summed(part: Tensor, matrix: Tensor) -> Tensor:
    """The sum of a plain tensor over the processes that divide the rows of the matrix."""
    if not is_sharded(matrix):
        return part
    from torch.distributed.tensor import DTensor, Partial, Replicate

    like: Any = matrix
    kinds = [Partial() if placement.is_shard() else Replicate() for placement in like.placements]
    return DTensor.from_local(part, like.device_mesh, kinds, run_check=False).full_tensor()


def rows_of(whole: Tensor, matrix: Tensor) -> Tensor:
    """The rows of a plain tensor, of the shape of the matrix, that this process has of the matrix."""
    if not is_sharded(matrix):
        return whole
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    like: Any = matrix
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    return whole.narrow(0, offset[0], shape[0]) if shape[0] else whole[:0]


def divided(whole: Tensor, matrix: Tensor) -> Tensor:
    """A plain tensor of the matrix's shape, divided as the matrix is."""
    if not is_sharded(matrix):
        return whole
    from torch.distributed.tensor import DTensor

    like: Any = matrix
    local = rows_of(whole, matrix).contiguous()
    shape, stride = like.shape, like.stride()
    return DTensor.from_local(local, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)


def put_rows(whole: Tensor, matrix: Tensor) -> None:
    """Writes a plain tensor into the matrix, each process its rows."""
    own_rows(matrix.detach()).copy_(rows_of(whole, matrix))
