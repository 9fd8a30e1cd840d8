"""Batches of a data set. Order and augmentation are functions of (seed, epoch, batch): no state to save."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.data.images import Images


@dataclass(frozen=True)
class Augmentation:
    """Training only: shifts by up to ``shift`` pixels each way (zeros enter), and horizontal flips."""

    shift: int = 0
    flip: bool = False

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A randomly moved copy of x (b, c, h, w)."""
        if self.shift:
            x = _shifted(x, self.shift, generator)
        if self.flip:
            mirrored = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x


class Batches:
    """Batches (x, y): x float32 (b, c, h, w), the stored value / divisor - mean; y int64 (b,).

    Iterating gives every image once, in order. ``epoch(number, start)`` gives the training batches of an
    epoch from the start-th on: shuffled and augmented, the same for the same seed, epoch and start.
    """

    def __init__(
        self,
        images: Images,
        divisor: float,
        batch_size: int,
        *,
        mean: Sequence[float] = (),
        seed: int = 0,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ):
        self.images = images
        self.divisor = divisor
        self.batch_size = batch_size
        self.mean = torch.tensor(mean or 0.0).view(-1, 1, 1)
        self.seed = seed
        self.augmentation = augmentation or Augmentation()
        self.device = torch.device(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        return -(-self.image_count // self.batch_size)

    @property
    def image_count(self) -> int:
        """The number of images in one pass."""
        return len(self.images.labels)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.arange(self.image_count).split(self.batch_size)
        return self._ahead(lambda batch: self._fetch(order[batch]), range(len(order)))

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch, from the start-th on."""
        order = torch.randperm(self.image_count, generator=self._generator(number)).split(self.batch_size)

        def prepare(batch: int) -> tuple[Tensor, Tensor]:
            x, y = self._fetch(order[batch])
            return self.augmentation(x, self._generator(number, batch + 1)), y

        return self._ahead(prepare, range(start, len(order)))

    def _ahead(
        self, prepare: Callable[[int], tuple[Tensor, Tensor]], batches: range
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Prepares each batch while the model is busy with the one before."""
        with ThreadPoolExecutor(1) as pool:
            waiting = deque(pool.submit(prepare, batch) for batch in batches[:1])
            for batch in batches[1:]:
                waiting.append(pool.submit(prepare, batch))
                yield self._to_device(*waiting.popleft().result())
            if waiting:
                yield self._to_device(*waiting.popleft().result())

    def _fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x = self.images.pixels(indices).float().div_(self.divisor).sub_(self.mean)
        return x, self.images.labels[indices]

    def _to_device(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x.contiguous(memory_format=self.memory_format)
        if self.device.type == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def _generator(self, *position: int) -> torch.Generator:
        state = np.random.SeedSequence([self.seed, *position]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))


def _shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    b, _, h, w = x.shape
    offsets = torch.randint(2 * most + 1, (2, b, 1), generator=generator)
    rows = (offsets[0] + torch.arange(h))[:, None, :, None]  # (b, 1, h, 1)
    columns = (offsets[1] + torch.arange(w))[:, None, None, :]  # (b, 1, 1, w)
    padded = F.pad(x, (most, most, most, most))
    return padded[torch.arange(b)[:, None, None, None], torch.arange(x.shape[1])[:, None, None], rows, columns]
