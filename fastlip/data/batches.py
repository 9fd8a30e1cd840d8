"""Batches of a data set. Order and augmentation depend on (seed, epoch, batch) only, so there is no state to save."""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastlip.data.images import DataError, Images
from fastlip.kernels.common.checks import boolean, usable_device

_Pair = tuple[Tensor, Tensor]
# What a random generator of a batch is for, besides shifts and flips.
_OPERATIONS = 3


class Operations(Protocol):
    """Protocol of random changes of images in [0, 1]."""

    def __call__(self, x: Tensor, generator: torch.Generator, rows: slice, total: int) -> Tensor:
        """Returns changed images x, which are these rows of a batch of ``total``."""
        ...


@dataclass(frozen=True)
class Augmentation:
    """Random shifts and horizontal flips of training images.

    Args:
        shift: largest shift in pixels, up, down, left and right; zeros enter at the border. 0 shifts nothing.
        flip: whether to mirror each image with probability 1/2.

    Examples:
        >>> augmentation = fastlip.data.Augmentation(shift=2, flip=True)
        >>> augmentation(torch.rand(16, 3, 32, 32), torch.Generator().manual_seed(0)).shape
        torch.Size([16, 3, 32, 32])
    """

    shift: int = 0
    flip: bool = False

    def __call__(
        self, x: Tensor, generator: torch.Generator, rows: slice = slice(None), total: int | None = None
    ) -> Tensor:
        """Returns a randomly moved copy of images.

        Args:
            x: images (b, c, h, w); if they are only some rows of a batch, each moves as it would in the whole batch.
            generator: source of the random numbers.
            rows: the rows of the batch that x holds; by default all.
            total: number of images in the batch; by default b.
        """
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
    """The part of every batch that one of several processes takes; the parts differ in size by at most 1.

    Args:
        rank: number of the process, from 0.
        of: number of processes.

    Examples:
        >>> [fastlip.data.Share(rank, of=3).rows(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
    """

    rank: int = 0
    of: int = 1

    def rows(self, total: int) -> slice:
        """Returns the rows of a batch that this process takes; if there are too few images, some processes get none.

        Args:
            total: number of images in the batch.
        """
        return slice(total * self.rank // self.of, total * (self.rank + 1) // self.of)


class Batches:
    """Batches (x, y) of images and labels: x is float32 (b, c, h, w), y is int64 (b,).

    x is the stored value divided by ``divisor``, minus ``mean``. Iteration gives every image once, in order.
    ``epoch`` gives the batches of a training epoch: shuffled and augmented, and the same for the same seed and epoch.

    Args:
        images: the images and their labels.
        divisor: number by which stored values are divided, so that they lie in [0, 1].
        batch_size: number of images in a batch, over all processes.
        mean: one number per channel that is subtracted; default (): nothing is.
        seed: seed of the order and the augmentation of training batches; default 0.
        augmentation: random shifts and flips of training batches; None for none.
        operations: other random changes of training images, before the mean is subtracted and before shifts and
            flips, such as :class:`ImageOperations`; None for none.
        device: device to which batches are copied; default ``"cpu"``.
        channels_last: whether images have channels-last memory format; default False.
        share: the part of each batch that this process takes; None takes all of it. The parts of all processes
            together are the batch of a single process.
        workers: number of processes of ``torch.utils.data.DataLoader`` that read and augment, each a batch at a time;
            0 uses a thread of this process; default 0.

    Raises:
        TypeError: images that are not those of this module, a divisor or batch_size that is no number.
        ValueError: a divisor or batch_size that is not positive, a device that torch cannot use.

    Examples:
        >>> data = fastlip.data.digits()
        >>> batches = fastlip.data.Batches(data.train, data.divisor, batch_size=64)
        >>> images, labels = next(iter(batches.epoch(0)))
        >>> len(batches), images.shape, labels.shape
        (23, torch.Size([64, 1, 8, 8]), torch.Size([64]))
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
        operations: Operations | None = None,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        share: Share | None = None,
        workers: int = 0,
    ):
        if not (hasattr(images, "labels") and hasattr(images, "pixels")):
            kind = type(images).__name__
            raise TypeError(
                f"images: got {kind}, expected images of this module, such as fastlip.data.digits().train"
            )
        self.images = images
        self.divisor = _positive("divisor", divisor)
        if isinstance(batch_size, float):
            raise TypeError(f"batch_size={batch_size!r}: expected an int, got float")
        self.batch_size = _positive("batch_size", batch_size)
        self.mean = torch.tensor(mean or 0.0).view(-1, 1, 1)
        self.seed = seed
        self.augmentation = augmentation or Augmentation()
        self.operations = operations
        usable_device(device)
        self.device = torch.device(device)
        last = boolean("channels_last", channels_last)
        self.memory_format = torch.channels_last if last else torch.contiguous_format
        self.share = share or Share()
        self.workers = workers

    def __len__(self) -> int:
        return -(-self.image_count // self.batch_size)

    @property
    def image_count(self) -> int:
        """Number of images in one pass over the data, over all processes."""
        return len(self.images.labels)

    def counts(self, batch: int) -> tuple[int, int]:
        """Returns the number of images of a batch that this process takes, and the number of all its images.

        Args:
            batch: index of the batch in an epoch.
        """
        total = min(self.batch_size, self.image_count - batch * self.batch_size)
        rows = self.share.rows(total)
        return rows.stop - rows.start, total

    def __iter__(self) -> Iterator[_Pair]:
        batches = [batch for batch in range(len(self)) if self.counts(batch)[0]]
        return self._ahead(_Ordered(self), batches)

    def epoch(self, number: int, start: int = 0, stop: int | None = None) -> Iterator[_Pair]:
        """Yields the training batches of an epoch.

        All processes get the same number of batches: a process that has no image of a batch gets the batch's first
        one, which ``counts`` tells.

        Args:
            number: number of the epoch, from 0.
            start: index of the first batch to yield; default 0.
            stop: index before which to stop; None goes to the end of the epoch.
        """
        return self._ahead(_Shuffled(self, number), range(start, len(self) if stop is None else stop))

    def _ahead(self, prepare: _Ordered, batches: Sequence[int]) -> Iterator[_Pair]:
        """Prepares the next batches while the model works on the current one."""
        for pair in _by_workers(prepare, batches) if self.workers else _by_thread(prepare, batches):
            if isinstance(pair, DataError):
                raise pair
            yield self._to_device(*pair)

    @property
    def description(self) -> dict[str, int]:
        """A checkpoint's entry for a second set of images; empty, as there is none."""
        return {}

    def order(self, epoch: int | None) -> Tensor:
        """Returns the indices of the images of an epoch, batch after batch, int64 (image_count,).

        Args:
            epoch: number of the epoch; None: in order.
        """
        return self._permuted(self.image_count, epoch)

    def _permuted(self, count: int, epoch: int | None) -> Tensor:
        if epoch is None:
            return torch.arange(count)
        return torch.randperm(count, generator=self.generator(epoch))

    def fetch(self, indices: Tensor, change: Callable[[Tensor], Tensor] | None = None) -> _Pair:
        """Returns scaled images and their labels.

        Args:
            indices: indices of the images, int64 (b,).
            change: changes the images before the mean is subtracted; default None: they stay as they are.
        """
        x = self.images.pixels(indices).float().div_(self.divisor)
        x = x if change is None else change(x)
        return x.sub_(self.mean), self.images.labels[indices]

    def generator(self, *position: int) -> torch.Generator:
        """Returns the random generator of an epoch, or of a batch of an epoch.

        Args:
            position: number of the epoch, for the augmentation of a batch also 1 + its index (0: no batch), and for
                anything else a number that stands for it.
        """
        state = np.random.SeedSequence([self.seed, *position]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))

    def _to_device(self, x: Tensor, y: Tensor) -> _Pair:
        x = x.contiguous(memory_format=self.memory_format)
        if self.device.type == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


class _Ordered(Dataset):
    """Maps a batch's number to (x, y) in order, or to the DataError of a file in it.

    The error is returned, because exceptions of worker processes lose their text.
    """

    def __init__(self, batches: Batches, epoch: int | None = None):
        self.batches = batches
        self.order = batches.order(epoch)

    def __getitem__(self, batch: int) -> _Pair | DataError:
        indices = self.order[batch * self.batches.batch_size :][: self.batches.batch_size]
        try:
            return self.prepare(batch, indices, self.batches.share.rows(len(indices)))
        except DataError as error:
            return error

    def prepare(self, batch: int, indices: Tensor, rows: slice) -> _Pair:
        """Reads these rows of the batch that consists of the images at these indices."""
        return self.batches.fetch(indices[rows])


class _Shuffled(_Ordered):
    """Maps a batch's number to the shuffled and augmented (x, y) of an epoch."""

    def __init__(self, batches: Batches, epoch: int):
        super().__init__(batches, epoch)
        self.epoch = epoch

    def prepare(self, batch: int, indices: Tensor, rows: slice) -> _Pair:
        rows = rows if rows.stop > rows.start else slice(0, 1)
        change, where = None, (self.epoch, batch + 1)
        if self.batches.operations is not None:
            generator = self.batches.generator(*where, _OPERATIONS)
            change = partial(self.batches.operations, generator=generator, rows=rows, total=len(indices))
        x, y = self.batches.fetch(indices[rows], change)
        generator = self.batches.generator(*where)
        return self.batches.augmentation(x, generator, rows, len(indices)), y


def _by_thread(prepare: _Ordered, batches: Sequence[int]) -> Iterator[_Pair | DataError]:
    """Prepares each batch in a thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(prepare.__getitem__, batch) for batch in batches[:1])
        for batch in batches[1:]:
            waiting.append(pool.submit(prepare.__getitem__, batch))
            yield waiting.popleft().result()
        if waiting:
            yield waiting.popleft().result()


def _by_workers(prepare: _Ordered, batches: Sequence[int]) -> Iterator[_Pair | DataError]:
    """Prepares batches in worker processes."""
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
    # Ctrl-C reaches every process of the terminal, but the main process decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _shifted(x: Tensor, most: int, offsets: Tensor) -> Tensor:
    """Images moved up and left by offsets - most pixels; offsets (2, b, 1) are from 0 to 2 most."""
    b, _, h, w = x.shape
    rows = (offsets[0] + torch.arange(h))[:, None, :, None]  # (b, 1, h, 1)
    columns = (offsets[1] + torch.arange(w))[:, None, None, :]  # (b, 1, 1, w)
    padded = F.pad(x, (most, most, most, most))
    return padded[torch.arange(b)[:, None, None, None], torch.arange(x.shape[1])[:, None, None], rows, columns]


def _positive(name: str, value: Any) -> Any:
    """The value; TypeError or ValueError unless it is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: expected a number, got {type(value).__name__}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name}={value!r}: expected a positive number")
    return value
