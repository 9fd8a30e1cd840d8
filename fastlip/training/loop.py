"""The training loop, from the start or from exactly where a checkpoint stopped, by one process or several."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastlip.data import Data
from fastlip.losses import RECIPE_LOSSES
from fastlip.training import checkpoint, distributed, logs
from fastlip.training.averaging import averaged
from fastlip.training.captured_steps import CapturedSteps, require_graphs
from fastlip.training.distributed import World
from fastlip.training.extra_optimizers import evaluated
from fastlip.training.figures import Figures, Pending
from fastlip.training.gradients import EPS, Gradients, correct_and_certified
from fastlip.training.losses import ramp_of
from fastlip.training.optimization import limit_gradient, optimizer_of, retract, scheduler_of, steps_of
from fastlip.training.progress import Progress
from fastlip.training.recipe import Recipe
from fastlip.training.run_folder import RunFolder
from fastlip.training.setup import batches_of
from fastlip.training.watch import Interrupt, Interrupted, NotFiniteError, require_finite_parameters

__all__ = ["EPS", "Training"]


class Training:
    """A run: a model, how it is trained, and how far training has come.

    Args:
        model: scores (b, classes) for images (b, c, h, w).
        recipe: how it is trained.
        data: the images that it is trained and tested on.
        folder: run folder for checkpoint, log and TensorBoard's events; it must exist.
        state: a loaded checkpoint to continue from, bit for bit on a CPU (with as many processes as before).
        world: the processes that divide the work. Gradients and weights equal those of one process up to
            rounding: each step's loss is the mean over the images of all processes, also where their parts are
            unequal. Only the main process writes. Every process must call the same methods.

    ``model`` is the network that is trained, ``network`` the same network as training runs it: compiled or
    distributed. ``result`` is the network that is evaluated and certified.
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
        self.folder = RunFolder(folder)
        self.world = world or World()
        self.train_batches = batches_of(recipe, data, data.train, augment=True, share=self.world.share)
        self.test_batches = batches_of(recipe, data, data.test, share=self.world.share)
        self._check_shares()
        require_graphs(recipe, self.train_batches.device, self.world)
        self.gradients = Gradients(model, recipe, data.shape, self.world)
        self.network = self.gradients.network
        self.pending = Pending(self.train_batches.device)
        self.interrupt = Interrupt(patient=self.world.size > 1)
        self.average = averaged(model, recipe.ema)
        self.optimizer = optimizer_of(recipe, model)
        self.evaluated = evaluated(recipe, model, self.optimizer)
        self.captured = CapturedSteps(self._add_gradients, self.optimizer, recipe.batch_size)
        self.steps = steps_of(recipe, len(self.train_batches))
        self.scheduler = scheduler_of(recipe, self.optimizer, len(self.train_batches))
        self.ramp = ramp_of(recipe, self.gradients.loss, self.steps)
        self.progress = Progress()
        if state is not None:
            self._restore(state)

    def leave(self) -> None:
        """Leaves the other processes.

        The wrapper of the network is freed first. Freed last, it would free the process group and wait for that
        group's threads while it holds Python's global lock, for which they may wait in turn: a deadlock.
        """
        self.network = self.gradients.network = self.model
        if self.world.size > 1:
            gc.collect()  # the wrapper is part of reference cycles
        distributed.leave()

    @property
    def result(self) -> nn.Module:
        """The network that is evaluated: the moving average of the recipe's ``ema``, or the trained network.

        A schedule-free optimiser has other weights for evaluation, which are then those of a copy.
        """
        return self.average.module if self.average else self._present

    @property
    def _present(self) -> nn.Module:
        """The network after the last step, as it is evaluated."""
        return self.evaluated.refreshed() if self.evaluated else self.model

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

    def fit(self, stop_after: int = 0, tensorboard: bool = True, lines: bool = True) -> None:
        """Trains until the run's last step, or for stop_after further epochs if that is positive.

        Args:
            stop_after: number of epochs after which to stop; 0: do not stop before the end.
            tensorboard: whether to write TensorBoard's events.
            lines: whether to print a line for each epoch.

        Raises:
            NotFiniteError: the loss or a parameter is not finite. The last checkpoint stays as it was.
            Interrupted: SIGINT or SIGTERM arrived. The state after the current step has been saved.
        """
        last = self.epochs
        if stop_after > 0:
            last = min(last, self.progress.epoch + stop_after)
        done = self.progress.epoch * self.train_batches.image_count + self.progress.images
        with (
            self.interrupt,
            self._console(done, lines) as console,
            logs.Board(self.folder.path, self.progress.epoch + 1, tensorboard and self.world.is_main) as board,
        ):
            while self.progress.epoch < last:
                self._train_epoch(console)
                row = self._close_epoch()
                console.epoch(row)
                board.epoch(row)
                if self._agree_to_stop():
                    raise Interrupted(self.interrupt.number)

    def _console(self, done: int, lines: bool) -> logs.Console:
        is_main = self.world.is_main
        return logs.Console(self.epochs, self.images, done, EPS, bar=is_main, lines=is_main and lines)

    def _check_shares(self) -> None:
        """A loss that compares the samples of a whole batch needs some of it in every process."""
        fewest = self.train_batches.counts(len(self.train_batches) - 1)[1]
        if RECIPE_LOSSES[self.recipe.loss].whole_batch and fewest < self.world.size:
            raise ValueError(
                f"batch_size={self.recipe.batch_size}: the last step of an epoch has {fewest} images for"
                f" {self.world.size} processes, and loss={self.recipe.loss!r} needs one for each"
            )

    def save(self) -> None:
        """Writes the checkpoint and the log that belongs to it; NotFiniteError if a parameter is not finite."""
        require_finite_parameters(self.model)
        if not self.world.is_main:
            return
        result = self.result
        state = {
            "recipe": self.recipe.to_dict(),
            "data": checkpoint.describe(self.data),
            "extra": self.train_batches.description,
            "model": result.state_dict(),
            **checkpoint.averaging(self.model, result, self.average),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "loss": self.gradients.loss.state_dict(),
            "ramp": self.ramp.state_dict() if self.ramp else {},
            "progress": asdict(self.progress),
        }
        self.folder.save_state(state, self.progress.history)

    def _restore(self, state: dict[str, Any]) -> None:
        if not state["optimizer"]:
            raise checkpoint.CheckpointError("checkpoint: holds imported weights, not a run that can be continued")
        result = self.result
        checkpoint.load_model(result, state, self.data)
        checkpoint.require_same_extra(state, self.train_batches.description)
        if result is not self.model:
            checkpoint.load_trained(self.model, self.average, state)
        try:
            checkpoint.load_optimizer(self.optimizer, state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.gradients.loss.load_state_dict(state.get("loss", {}))
            if self.ramp:
                self.ramp.load_state_dict(state.get("ramp", {}))
            self.progress = Progress(**state["progress"])
            checkpoint.restore_random_state(state["random"])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise checkpoint.CheckpointError(f"checkpoint: the run in it cannot be continued: {error}") from error

    def _train_epoch(self, console: logs.Console) -> None:
        self.network.train()
        progress = self.progress
        started = time.perf_counter() - progress.seconds
        stop = min(len(self.train_batches), self.steps - progress.epoch * len(self.train_batches))
        for x, y in self.train_batches.epoch(progress.epoch, progress.batch, stop):
            where, total = self._where(), self.train_batches.counts(progress.batch + len(self.pending))[1]
            self.pending.add(Figures(self.step(x, y), total, where))
            batch = progress.batch + len(self.pending)
            stopping = self._agree_to_stop()
            saving = self.recipe.save_every and batch % self.recipe.save_every == 0
            if not (stopping or saving or batch == stop or len(self.pending) == self.pending.limit):
                continue
            for figures, values in self._read_steps(x):
                progress.add(figures.images, *values)
                progress.seconds = time.perf_counter() - started
                console.step(figures.images, progress.epoch + 1, progress.averages()[0])
            if stopping or saving:
                self.save()
            if stopping:
                raise Interrupted(self.interrupt.number)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Takes one step with this process's images of the batch, without waiting for a GPU.

        Returns:
            (4,) The loss and counts of the whole batch, and this process's part of the loss.
        """
        step = self.captured if self.recipe.cuda_graph else self._step_as_usual
        try:
            values = step(x, y, *self.train_batches.counts(self.progress.batch + len(self.pending)))
        except NotFiniteError as error:
            raise NotFiniteError(f"{self._where()}: {error}") from error
        if self.average:
            self.average.update_parameters(self._present)
        self.scheduler.step()
        if self.ramp:
            self.ramp.step()
        return values

    def _step_as_usual(self, x: Tensor, y: Tensor, mine: int, total: int) -> Tensor:
        self.optimizer.zero_grad()
        values = self._add_gradients(x, y, mine, total)
        if self.pending.limit == 1:  # nothing to wait for: before the parameters change
            self.gradients.check(values.tolist(), x)
        self.optimizer.step()
        return values

    def _add_gradients(self, x: Tensor, y: Tensor, mine: int, total: int) -> Tensor:
        """Adds the gradients of a batch, as long as the recipe lets them be."""
        values = self.gradients.add(x, y, mine, total)
        limit_gradient(self.recipe, self.model)
        return values

    def _where(self) -> str:
        return f"epoch {self.progress.epoch + 1}, step {self.progress.batch + len(self.pending) + 1}"

    def _read_steps(self, x: Tensor) -> list[tuple[Figures, Sequence[float]]]:
        """The figures of all steps that are pending; x are the images of the last one."""
        return [(figures, self._check(figures.step, values, x)) for figures, values in self.pending.read()]

    def _check(self, where: str, values: Sequence[float], x: Tensor) -> Sequence[float]:
        try:
            return self.gradients.check(values, x)
        except NotFiniteError as error:
            raise NotFiniteError(f"{where}: {error}") from error

    def _agree_to_stop(self) -> bool:
        """Whether a signal has reached any process; afterwards all have its number."""
        self.interrupt.number = self.world.largest(self.interrupt.number, self.train_batches.device)
        return bool(self.interrupt.number)

    def _close_epoch(self) -> dict[str, float]:
        progress = self.progress
        require_finite_parameters(self.model)
        retract(self.optimizer, self.average)
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
        """Accuracy and CRA on the test images by a forward pass, which is cheaper than the audited certificate."""
        model = self.result.eval()
        counts = torch.zeros(2, dtype=torch.float64, device=self.test_batches.device)
        with torch.no_grad():
            for x, y in self.test_batches:
                counts += torch.stack(correct_and_certified(model, model(x), y))
        correct, certified = self.world.sum(counts).tolist()
        return correct / self.test_batches.image_count, certified / self.test_batches.image_count
