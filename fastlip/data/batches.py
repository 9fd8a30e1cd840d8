"""Batches of a data set. Order and augmentation are functions of (seed, epoch, batch): no state to save."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastlip.data.images import DataError, Images

_Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Augmentation:
    """Training only: shifts by up to ``shift`` pixels each way (zeros enter), and horizontal flips."""

    shift: int = 0
    flip: bool = False

    def __call__(
        self, x: Tensor, generator: torch.Generator, rows: slice = slice(None), total: int | None = None
    ) -> Tensor:
        """A randomly moved copy of x (b, c, h, w): the rows of a batch of total images, moved as they are there."""
        total = len(x) if total is None else total
        if self.shift:
            offsets = torch.randint(2 * self.shift + 1, (2, total, 1), generator=generator)
            x = _shifted(x, self.shift, offsets[:, rows])
        if self.flip:
            mirrored = (torch.rand(total, generator=generator) < 0.5)[rows]
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x


@dataclass(frozen=True)
class Share:
    """The part of every batch that this process takes: the rank-th of ``of`` parts of nearly equal size."""

    rank: int = 0
    of: int = 1

    def rows(self, total: int) -> slice:
        """Which rows of a batch of total images; none for some where there are fewer images than processes."""
        return slice(total * self.rank // self.of, total * (self.rank + 1) // self.of)


class Batches:
    """Batches (x, y): x float32 (b, c, h, w), the stored value / divisor - mean; y int64 (b,).

    Iterating gives every image once, in order. ``epoch(number, start, stop)`` gives the training batches of an
    epoch from the start-th on: shuffled and augmented, the same for the same seed, epoch and start.

    Args:
        images: what is read; divisor, mean: its scale.
        batch_size: images in a batch of all processes together.
        seed, augmentation: of the training batches.
        device, channels_last: where batches go, and in which memory format.
        share: this process's part of each batch. The parts of all processes are the batch of a single one.
        workers: processes of ``torch.utils.data.DataLoader`` that read and augment, a batch each at a time; 0: a
            thread of this process.
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
        share: Share | None = None,
        workers: int = 0,
    ):
        self.images = images
        self.divisor = divisor
        self.batch_size = batch_size
        self.mean = torch.tensor(mean or 0.0).view(-1, 1, 1)
        self.seed = seed
        self.augmentation = augmentation or Augmentation()
        self.device = torch.device(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.share = share or Share()
        self.workers = workers

    def __len__(self) -> int:
        return -(-self.image_count // self.batch_size)

    @property
    def image_count(self) -> int:
        """The number of images in one pass of all processes."""
        return len(self.images.labels)

    def counts(self, batch: int) -> tuple[int, int]:
        """How many images of this batch are this process's, and how many there are."""
        total = min(self.batch_size, self.image_count - batch * self.batch_size)
        rows = self.share.rows(total)
        return rows.stop - rows.start, total

    def __iter__(self) -> Iterator[_Pair]:
        batches = [batch for batch in range(len(self)) if self.counts(batch)[0]]
        return self._ahead(_Ordered(self), batches)

    def epoch(self, number: int, start: int = 0, stop: int | None = None) -> Iterator[_Pair]:
        """The training batches of an epoch, from the start-th on, to the end or before the stop-th.

        A process that has no image of a batch gets its first one, so that all have as many batches: see ``counts``.
        """
        return self._ahead(_Shuffled(self, number), range(start, len(self) if stop is None else stop))

    def _ahead(self, prepare: _Ordered, batches: Sequence[int]) -> Iterator[_Pair]:
        """Prepares batches while the model is busy with the ones before."""
        for pair in _by_workers(prepare, batches) if self.workers else _by_thread(prepare, batches):
            if isinstance(pair, DataError):
                raise pair
            yield self._to_device(*pair)

    def fetch(self, indices: Tensor) -> _Pair:
        """The images at these indices, scaled, and their labels."""
        x = self.images.pixels(indices).float().div_(self.divisor).sub_(self.mean)
        return x, self.images.labels[indices]

    def generator(self, *position: int) -> torch.Generator:
        """The random generator of an epoch, or of a batch in it."""
        state = np.random.SeedSequence([self.seed, *position]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))

    def _to_device(self, x: Tensor, y: Tensor) -> _Pair:
        x = x.contiguous(memory_format=self.memory_format)
        if self.device.type == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


class _Ordered(Dataset):
    """Batch number to (x, y), or to the error that a file in it caused: exceptions of workers lose their text."""

    def __init__(self, batches: Batches):
        self.batches = batches
        self.order = torch.arange(batches.image_count)

    def __getitem__(self, batch: int) -> _Pair | DataError:
        indices = self.order[batch * self.batches.batch_size :][: self.batches.batch_size]
        try:
            return self.prepare(batch, indices, self.batches.share.rows(len(indices)))
        except DataError as error:
            return error

    def prepare(self, batch: int, indices: Tensor, rows: slice) -> _Pair:
        """These rows of the batch of images at these indices."""
        return self.batches.fetch(indices[rows])


class _Shuffled(_Ordered):
    def __init__(self, batches: Batches, epoch: int):
        super().__init__(batches)
        self.epoch = epoch
        self.order = torch.randperm(batches.image_count, generator=batches.generator(epoch))

    def prepare(self, batch: int, indices: Tensor, rows: slice) -> _Pair:
        rows = rows if rows.stop > rows.start else slice(0, 1)
        x, y = self.batches.fetch(indices[rows])
        generator = self.batches.generator(self.epoch, batch + 1)
        return self.batches.augmentation(x, generator, rows, len(indices)), y


def _by_thread(prepare: _Ordered, batches: Sequence[int]) -> Iterator[_Pair | DataError]:
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(prepare.__getitem__, batch) for batch in batches[:1])
        for batch in batches[1:]:
            waiting.append(pool.submit(prepare.__getitem__, batch))
            yield waiting.popleft().result()
        if waiting:
            yield waiting.popleft().result()


def _by_workers(prepare: _Ordered, batches: Sequence[int]) -> Iterator[_Pair | DataError]:
    loader = DataLoader(
        prepare,
        batch_size=None,
        sampler=batches,
        num_workers=prepare.batches.workers,
        pin_memory=prepare.batches.device.type == "cuda",
        worker_init_fn=_ignore_interrupts,
    )
    yield from loader


def _ignore_interrupts(_: int) -> None:
    # Ctrl-C reaches every process of the terminal; the training process decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _shifted(x: Tensor, most: int, offsets: Tensor) -> Tensor:
    b, _, h, w = x.shape
    rows = (offsets[0] + torch.arange(h))[:, None, :, None]  # (b, 1, h, 1)
    columns = (offsets[1] + torch.arange(w))[:, None, None, :]  # (b, 1, 1, w)
    padded = F.pad(x, (most, most, most, most))
    return padded[torch.arange(b)[:, None, None, None], torch.arange(x.shape[1])[:, None, None], rows, columns]
