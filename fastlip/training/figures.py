"""The loss and counts of steps, read from a GPU for several steps at once, so that no step waits for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 16  # by which a GPU may lag


class Figures(NamedTuple):
    """Figures of one step.

    values: loss, correct and certified images of all processes, and the loss of this process; on the model's device.
    images: of all processes.
    step: which one it was, in words.
    """

    values: Tensor
    images: int
    step: str


class Pending:
    """Steps whose figures have not been read. ``limit`` is how many there may be: 1 on a CPU."""

    def __init__(self, device: torch.device):
        self.limit = STEPS if device.type == "cuda" else 1
        self._steps: list[Figures] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, figures: Figures) -> None:
        """Notes a step."""
        self._steps.append(figures)

    def read(self) -> list[tuple[Figures, list[float]]]:
        """All steps and their figures, which this waits for; none are pending afterwards."""
        steps, self._steps = self._steps, []
        rows = torch.stack([step.values for step in steps]).tolist() if steps else []
        return list(zip(steps, rows, strict=True))
