"""The training loop, from the start or from exactly where a checkpoint stopped, by one process or several."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastlip.data import Data
from fastlip.training import checkpoint, logs
from fastlip.training.distributed import World
from fastlip.training.progress import Progress
from fastlip.training.recipe import Recipe
from fastlip.training.setup import batches_of, compiled, loss_of, optimizer_of, scheduler_of, steps_of
from fastlip.training.sharing import SharedWeights, buffers_kept
from fastlip.training.watch import (
    Interrupt,
    Interrupted,
    NotFiniteError,
    explain_not_finite,
    require_finite_parameters,
)

# While training, CRA at this radius is reported on the word of the layers, L = 1; certificates are audited.
EPS = 36 / 255


class Training:
    """A run: a model, how it is trained, and how far it is.

    Args:
        model: scores (b, classes) for images (b, c, h, w).
        recipe: how it is trained.
        data: what it is trained on.
        folder: where ``checkpoint.pt``, ``log.csv`` and TensorBoard's events go; it must exist.
        state: a loaded checkpoint to continue from, bit for bit on a CPU (with as many processes as before).
        world: the processes that share the work. Gradients, and so weights, are those of one process but for
            rounding: each step's loss is the mean over the images of all processes, also where they have
            unequal parts. Only the first writes; every process must call the same methods.

    ``model`` is what is trained, ``network`` the same as it runs in training: compiled, or distributed.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        data: Data,
        folder: Path,
        state: dict[str, Any] | None = None,
        world: World | None = None,
    ):
        self.model = model
        self.recipe = recipe
        self.data = data
        self.folder = folder
        self.world = world or World()
        self.loss = loss_of(recipe, reduction="sum", multi_gpu=self.world.size > 1)
        self.train_batches = batches_of(recipe, data, data.train, augment=True, share=self.world.share)
        self.test_batches = batches_of(recipe, data, data.test, share=self.world.share)
        self._check_shares()
        self.shared = self._shared_weights()
        self.network: nn.Module = compiled(model, data.shape) if recipe.compile else model
        if self.shared is None:
            self.network = self.world.wrap(self.network)
        self.interrupt = Interrupt(patient=self.world.size > 1)
        self.optimizer = optimizer_of(recipe, model)
        self.steps = steps_of(recipe, len(self.train_batches))
        self.scheduler = scheduler_of(recipe, self.optimizer, len(self.train_batches))
        self.progress = Progress()
        if state is not None:
            self._restore(state)

    @property
    def epochs(self) -> int:
        """Epochs that the run begins; the last one may be cut short."""
        return -(-self.steps // len(self.train_batches))

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.progress.epoch >= self.epochs

    @property
    def images(self) -> int:
        """Images of all steps of the run."""
        whole, rest = divmod(self.steps, len(self.train_batches))
        return whole * self.train_batches.image_count + rest * self.recipe.batch_size

    def fit(self, stop_after: int = 0, tensorboard: bool = True) -> None:
        """Trains to the run's last step, or through stop_after further epochs if that is positive.

        Raises:
            NotFiniteError: the loss or a parameter is not finite; the last checkpoint stays.
            Interrupted: SIGINT or SIGTERM arrived; the state after the current step has been saved.
        """
        last = self.epochs
        if stop_after > 0:
            last = min(last, self.progress.epoch + stop_after)
        done = self.progress.epoch * self.train_batches.image_count + self.progress.images
        with (
            self.interrupt,
            logs.Console(self.epochs, self.images, done, quiet=not self.world.is_chief) as console,
            logs.Board(self.folder, self.progress.epoch + 1, tensorboard and self.world.is_chief) as board,
        ):
            while self.progress.epoch < last:
                self._train_epoch(console)
                row = self._close_epoch()
                console.epoch(row)
                board.epoch(row)
                if self._agree_to_stop():
                    raise Interrupted(self.interrupt.number)

    def _check_shares(self) -> None:
        """HKR compares the classes of a whole batch: every process must have some of it."""
        fewest = self.train_batches.counts(len(self.train_batches) - 1)[1]
        if self.recipe.loss == "hkr" and fewest < self.world.size:
            raise ValueError(
                f"batch_size={self.recipe.batch_size}: the last step of an epoch has {fewest} images for"
                f" {self.world.size} processes, and loss='hkr' needs one for each"
            )

    def save(self) -> None:
        """Writes the checkpoint, then the log that belongs to it; refuses parameters that are not finite."""
        require_finite_parameters(self.model)
        if not self.world.is_chief:
            return
        state = {
            "recipe": self.recipe.to_dict(),
            "data": checkpoint.describe(self.data),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "progress": asdict(self.progress),
        }
        checkpoint.save(self.folder / checkpoint.FILE_NAME, state)
        logs.write_csv(self.folder / logs.FILE_NAME, self.progress.history)

    def _restore(self, state: dict[str, Any]) -> None:
        if not state["optimizer"]:
            raise checkpoint.CheckpointError("checkpoint: holds weights that were imported, no run to continue")
        checkpoint.load_model(self.model, state, self.data)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.progress = Progress(**state["progress"])
        checkpoint.restore_random_state(state["random"])

    def _train_epoch(self, console: logs.Console) -> None:
        self.network.train()
        progress = self.progress
        started = time.perf_counter() - progress.seconds
        stop = min(len(self.train_batches), self.steps - progress.epoch * len(self.train_batches))
        for x, y in self.train_batches.epoch(progress.epoch, progress.batch, stop):
            total = self.train_batches.counts(progress.batch)[1]
            progress.add(total, *self.step(x, y))
            progress.seconds = time.perf_counter() - started
            console.step(total, *progress.averages())
            if self._agree_to_stop():
                self.save()
                raise Interrupted(self.interrupt.number)
            if self.recipe.save_every and progress.batch % self.recipe.save_every == 0:
                self.save()

    def step(self, x: Tensor, y: Tensor) -> Sequence[float]:
        """One update from this process's images of the batch; the loss and counts of the whole batch."""
        mine, total = self.train_batches.counts(self.progress.batch)
        figures = torch.zeros(3, dtype=torch.float64, device=x.device)
        self.optimizer.zero_grad()
        parts = self.parts(mine)
        with self._sharing(x):
            for index, (x_part, y_part) in enumerate(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True)):
                last = index == parts - 1
                # Each part sees the step's buffers as they were: what a power iteration adds, it adds once.
                with nullcontext() if last else buffers_kept(self.model):
                    # A process without images of its own runs one and counts none.
                    figures += self._add_gradients(x_part, y_part, mine, total, last)
        own_loss, figures = figures[0].clone(), self.world.sum(figures)
        values = figures.tolist()  # waits for a GPU
        if not math.isfinite(values[0]):
            raise self._not_finite_loss(values[0], own_loss.item(), x)
        self.optimizer.step()
        self.scheduler.step()
        return values

    def _shared_weights(self) -> SharedWeights | None:
        """Where one process takes a step in parts, or several share the layers; a compiler computes its own."""
        alone = self.world.size == 1
        if self.recipe.compile or not (self.recipe.accumulate > 1 if alone else self.recipe.share):
            return None
        x = torch.zeros(2, *self.data.shape, device=self.train_batches.device)
        return SharedWeights(self.model, x, self.world)

    @contextmanager
    def _sharing(self, x: Tensor) -> Iterator[None]:
        """Effective weights, and their adjoints, once for all parts of the step."""
        if self.shared is None:
            yield
            return
        with self.shared.lent():
            with self._explaining(x):
                self.shared.hand_out()
            yield
            self.shared.collect()

    def _add_gradients(self, x: Tensor, y: Tensor, mine: int, total: int, last: bool) -> Tensor:
        """Adds those of a part of the step; the part's figures."""
        with self._sending_gradients(last):
            scores, y = self.forward(x)[:mine], y[:mine]
            loss = self.loss(scores, y) / total if mine else scores.sum()
            with torch.no_grad():
                figures = torch.stack((loss, *self._correct_and_certified(scores, y)))
            # DistributedDataParallel takes the mean over processes, shared weights the sum.
            (loss if self.shared else loss * self.world.size).backward()
        return figures

    def parts(self, images: int) -> int:
        """In how many parts a step takes so many images of this process."""
        return max(1, min(self.recipe.accumulate, images))

    @contextmanager
    def _sending_gradients(self, last: bool) -> Iterator[None]:
        """Gradients of the parts of a step add up; after the last they become the mean over processes."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            with self.network.no_sync():
                yield
        else:
            yield

    def _agree_to_stop(self) -> bool:
        """Whether a signal has reached any process; then all have its number."""
        self.interrupt.number = self.world.largest(self.interrupt.number, self.train_batches.device)
        return bool(self.interrupt.number)

    def _correct_and_certified(self, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """How many are right, and how many by a margin that EPS cannot close if the layers keep their word."""
        true = scores.gather(1, y[:, None])[:, 0]
        others = scores.scatter(1, y[:, None], -math.inf).amax(1)
        margin = true - others
        slope = getattr(self.model, "margin_slope", math.sqrt(2))
        return (margin > 0).sum(), (margin > slope * EPS).sum()

    def forward(self, x: Tensor) -> Tensor:
        """The scores as training computes them: compiled, distributed, in the recipe's precision."""
        with self._explaining(x):
            if self.recipe.precision == "fp32":
                return self.network(x)
            with torch.autocast(x.device.type, torch.bfloat16):
                scores = self.network(x)
            return scores.float()

    @contextmanager
    def _explaining(self, x: Tensor) -> Iterator[None]:
        try:
            yield
        except torch.linalg.LinAlgError as error:  # what a decomposition makes of NaN
            reason = explain_not_finite(self.model, x)
            raise self._not_finite(f"a decomposition failed: {reason}") from error

    def _not_finite_loss(self, loss: float, own_loss: float, x: Tensor) -> NotFiniteError:
        """The reason that the process gives whose loss is not finite."""
        own = "" if math.isfinite(own_loss) else explain_not_finite(self.model, x)
        reason = next(filter(None, self.world.gather(own)), "the sum over processes overflows")
        return self._not_finite(f"loss is {loss}: {reason}")

    def _not_finite(self, what: str) -> NotFiniteError:
        where = f"epoch {self.progress.epoch + 1}, step {self.progress.batch + 1}"
        return NotFiniteError(f"{where}: {what}")

    def _close_epoch(self) -> dict[str, float]:
        progress = self.progress
        require_finite_parameters(self.model)
        loss, accuracy, cra = progress.averages()
        test_accuracy, test_cra = self._evaluate()
        row = {
            "epoch": progress.epoch + 1,
            "lr": self.scheduler.get_last_lr()[0],
            "train_loss": loss,
            "train_accuracy": accuracy,
            "train_cra": cra,
            "test_accuracy": test_accuracy,
            "test_cra": test_cra,
            "images_per_second": progress.images / progress.seconds,
            "seconds": progress.seconds,
        }
        progress.close_epoch(row)
        self.save()
        return row

    def _evaluate(self) -> tuple[float, float]:
        """Accuracy and CRA on the test images: a forward pass, cheaper than the audited certificate."""
        self.model.eval()
        counts = torch.zeros(2, dtype=torch.float64, device=self.test_batches.device)
        with torch.no_grad():
            for x, y in self.test_batches:
                counts += torch.stack(self._correct_and_certified(self.model(x), y))
        correct, certified = self.world.sum(counts).tolist()
        return correct / self.test_batches.image_count, certified / self.test_batches.image_count
