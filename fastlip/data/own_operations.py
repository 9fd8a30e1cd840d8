"""Random changes of training images by a function of one's own, with random numbers that a run can repeat."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlip.data.images import DataError
from fastlip.data.own import called

# Held while torch's, NumPy's and Python's generators have another state than that of the run.
GENERATORS = threading.Lock()
_ROUNDING = 0.01  # how far beyond [0, 1] values may go, which are then cut off


class OwnOperations:
    """Random changes of training images by the function that ``module:function`` returns.

    The function that it returns takes an image, float32 (1, c, h, w) in [0, 1], and returns one of the same shape and
    scale: a transform of torchvision or kornia does. It may draw from the generators of torch, NumPy and Python,
    which are seeded for each image by the seed, the epoch and the batch. So runs resume bit for bit, and several
    processes draw what one would.

    Args:
        place: ``module:function``; modules in the current folder are found too.
        probability: fraction of the images that are changed, from 0 (exclusive) to 1.

    Raises:
        DataError: (a ValueError) no such module or function, or the function returns nothing that can be called.
    """

    def __init__(self, place: str, probability: float = 1.0):
        self.place = place
        self.probability = probability
        self.change = called(place, "augment")
        if not callable(self.change):
            raise DataError(f"augment={place!r}: got {type(self.change).__name__}, expected a function of images")

    def __call__(self, x: Tensor, generator: torch.Generator, rows: slice, total: int) -> Tensor:
        """Returns images of which some are changed.

        Args:
            x: images (b, c, h, w) in [0, 1]: some rows of a batch.
            generator: source of the random numbers of the batch.
            rows: the rows of the batch that x holds.
            total: number of images in the batch.
        """
        chosen = (torch.rand(total, generator=generator) < self.probability)[rows]
        seeds = torch.randint(2**31, (total,), generator=generator)[rows]
        x = x.clone()
        with _own_generators(), torch.no_grad():
            for index in chosen.nonzero().flatten().tolist():
                _seed(int(seeds[index]))
                x[index] = self._checked(self.change(x[index : index + 1].clone()), x[index : index + 1])[0]
        return x

    def _checked(self, y: Any, x: Tensor) -> Tensor:
        if not isinstance(y, Tensor) or y.shape != x.shape:
            got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise DataError(f"augment={self.place!r}: returned {got} for an image of shape {tuple(x.shape)}")
        y = y.float() / 255 if y.dtype == torch.uint8 else y.float()
        low, high = y.amin().item(), y.amax().item()
        if not -_ROUNDING <= low <= high <= 1 + _ROUNDING:
            raise DataError(
                f"augment={self.place!r}: returned values from {low:.4g} to {high:.4g}, expected [0, 1], on which "
                "scale radii are"
            )
        return y.clamp(0, 1)

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "probability": self.probability}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # in a worker process: functions need not be picklable


@contextmanager
def _own_generators() -> Iterator[None]:
    """Lends the generators of torch, NumPy and Python, and puts their states back."""
    with GENERATORS:
        states = torch.get_rng_state(), np.random.get_state(), random.getstate()
        try:
            yield
        finally:
            torch.set_rng_state(states[0])
            np.random.set_state(states[1])
            random.setstate(states[2])


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
