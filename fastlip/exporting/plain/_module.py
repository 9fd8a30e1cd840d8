"""The base of the modules of torch alone: tensors, a configuration, a bound and its roundings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
PASSES = 4.0  # as in fastlip/certification/bounds/layers.py


class Plain(nn.Module):
    """A module given by tensors, which become parameters under their names, and a configuration of plain values."""

    TENSORS: tuple[str, ...] = ()

    def __init__(self, tensors: dict[str, Tensor | None] | None = None, **config: Any):
        super().__init__()
        self.config = config
        for name, value in config.items():
            setattr(self, name, value)
        for name in self.TENSORS:
            tensor = (tensors or {}).get(name)
            # Contiguous, whatever the layer's own tensor is a slice or a view of: files of tensors take no strides.
            copied = None if tensor is None else tensor.detach().clone(memory_format=torch.contiguous_format)
            self.register_parameter(name, None if copied is None else nn.Parameter(copied))
        self.make_tables()

    def make_tables(self) -> None:
        """Registers the buffers that follow from the configuration."""

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """An upper bound of the L2 Lipschitz constant, as it runs."""
        return 1.0

    def roundings(self, input_shape: Shape) -> float:
        """Roundings that lead to an output for a bound of 1, as ``fastlip.certification.Bound`` counts them."""
        return 0.0
