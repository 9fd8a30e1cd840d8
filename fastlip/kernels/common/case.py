"""Named inputs of an op, written once for the agreement tests and the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Inputs of one call: tensors by argument name, and the remaining keyword arguments.

    Args:
        shapes: the tensors' shapes by argument name.
        options: the remaining keyword arguments.
        length: length of the longest sum in the computation; rounding errors may grow as its square root.
        layout: memory format of four-dimensional inputs, or "strided": every second element of a larger tensor
            along the last dimension.
        bench: whether benchmarks time the case (CI times the first of them).
    """

    shapes: dict[str, tuple[int, ...]]
    options: dict[str, Any] = field(default_factory=dict)
    length: int = 1
    layout: str = "contiguous"
    bench: bool = False

    def make(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Returns standard normal tensors of the case's shapes, reproducible from the seed."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, shape in self.shapes.items():
            tensors[name] = self._lay_out(shape, generator, dtype, device)
        return tensors

    def arguments(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Returns the keyword arguments of the op's public function for the tensors of :meth:`make`."""
        return {**tensors, **self.options}

    def _lay_out(self, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, device: str) -> Tensor:
        wide = (*shape[:-1], 2 * shape[-1]) if self.layout == "strided" else shape
        drawn = torch.complex128 if dtype.is_complex else torch.float64
        value = torch.randn(*wide, generator=generator, dtype=drawn).to(dtype=dtype, device=device)
        if self.layout == "strided":
            return value[..., ::2]
        if self.layout == "channels_last" and value.dim() == 4:
            return value.contiguous(memory_format=torch.channels_last)
        return value
