"""The gradients of a step: in parts, in the recipe's precision, by one or several processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastlip.losses import class_slopes
from fastlip.nn.centering import BatchInParts
from fastlip.training.distributed import World
from fastlip.training.losses import loss_of
from fastlip.training.recipe import Recipe
from fastlip.training.setup import compiled, device_of
from fastlip.training.sharing import SharedWeights, buffers_kept
from fastlip.training.watch import UNEXPLAINED, NotFiniteError, explain_not_finite

# The radius of training-time CRA, which assumes L = 1; only certificates are audited.
EPS = 36 / 255


class Gradients:
    """A model as training runs it, and the gradients of its loss.

    Args:
        model: the network that is trained.
        recipe: how it is trained.
        shape: shape (c, h, w) of its images.
        world: the processes that divide the work.

    ``network`` is the model as training runs it: compiled or distributed.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, shape: Sequence[int], world: World):
        self.model = model
        self.recipe = recipe
        self.world = world
        self.loss = loss_of(recipe, reduction="sum", multi_gpu=world.size > 1).to(device_of(recipe))
        self.shared = self._shared_weights(shape)
        network = compiled(model, shape) if recipe.compile else model
        self.network: nn.Module = network if self.shared else world.wrap(network)

    def add(self, x: Tensor, y: Tensor, mine: int, total: int) -> Tensor:
        """Adds the gradients of the mean loss over a step's ``total`` images, of which this process has ``mine``.

        Returns:
            (4,), on the model's device and without waiting for it: over all processes the loss, and the numbers of
            images that are classified correctly and certified; then this process's part of the loss.

        Raises:
            NotFiniteError: a decomposition failed; the message names the layer.
        """
        figures = torch.zeros(3, dtype=torch.float64, device=x.device)
        parts = self.parts(total // self.world.size)  # the same number in every process
        batch = BatchInParts(self.model) if parts > 1 or total < self.world.size else None
        with self._sharing(x):
            for index, (x_part, y_part) in enumerate(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True)):
                last = index == parts - 1
                # Each part sees the buffers as they were before the step, so that power iterations advance once.
                with (
                    nullcontext() if last else buffers_kept(self.model),
                    batch.part(counted=mine > 0) if batch else nullcontext(),
                ):
                    # A process without images of its own runs one and counts none.
                    figures += self._add_part(x_part, y_part, mine, total, last)
        if batch:
            batch.close()
        own_loss = figures[:1].clone()
        return torch.cat((self.world.sum(figures), own_loss))

    def check(self, figures: Sequence[float], x: Tensor) -> Sequence[float]:
        """The loss and counts of all processes from what :meth:`add` returned.

        Raises:
            NotFiniteError: the loss is not finite; it says in which layer, of the model as it is now, for images x.
        """
        *values, own_loss = figures
        if not math.isfinite(values[0]):
            raise self._not_finite_loss(values[0], own_loss, x)
        return values

    def parts(self, images: int) -> int:
        """The number of parts in which a step takes this number of images of this process."""
        return max(1, min(self.recipe.accumulate, images))

    def forward(self, x: Tensor) -> Tensor:
        """The scores as training computes them: compiled, distributed, in the recipe's precision."""
        with self._explaining(x):
            if self.recipe.precision == "fp32":
                return self.network(x)
            with torch.autocast(x.device.type, torch.bfloat16):
                scores = self.network(x)
            return scores.float()

    def _shared_weights(self, shape: Sequence[int]) -> SharedWeights | None:
        """Shared weights if one process takes a step in parts or several divide the layers; None if compiled."""
        alone = self.world.size == 1
        if self.recipe.compile or not (self.recipe.accumulate > 1 if alone else self.recipe.share):
            return None
        x = torch.zeros(2, *shape, device=device_of(self.recipe))
        return SharedWeights(self.model, x, self.world)

    @contextmanager
    def _sharing(self, x: Tensor) -> Iterator[None]:
        """In this context effective weights and their adjoints are computed once for all parts of the step."""
        if self.shared is None:
            yield
            return
        with self.shared.lent():
            with self._explaining(x):
                self.shared.hand_out()
            yield
            self.shared.collect()

    def _add_part(self, x: Tensor, y: Tensor, mine: int, total: int, last: bool) -> Tensor:
        """Adds the gradients of a part of the step; returns the part's figures."""
        with self._sending_gradients(last):
            scores, y = self.forward(x)[:mine], y[:mine]
            loss = self._loss(scores, y) / total if mine else scores.sum()
            with torch.no_grad():
                figures = torch.stack((loss, *correct_and_certified(self.model, scores, y)))
            # DistributedDataParallel takes the mean over processes, shared weights the sum.
            (loss if self.shared else loss * self.world.size).backward()
        return figures

    def _loss(self, scores: Tensor, y: Tensor) -> Tensor:
        """The sum of the losses; a loss that asks for slopes assumes L = 1 for all layers but a head with rows."""
        return self.loss(scores, y, class_slopes(self.model)) if self.loss.takes_slopes else self.loss(scores, y)

    @contextmanager
    def _sending_gradients(self, last: bool) -> Iterator[None]:
        """Adds up the gradients of the parts of a step, and averages them over processes after the last part."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            with self.network.no_sync():
                yield
        else:
            yield

    @contextmanager
    def _explaining(self, x: Tensor) -> Iterator[None]:
        try:
            yield
        except torch.linalg.LinAlgError as error:  # a decomposition raises it for NaN
            raise NotFiniteError(f"a decomposition failed: {explain_not_finite(self.model, x)}") from error

    def _not_finite_loss(self, loss: float, own_loss: float, x: Tensor) -> NotFiniteError:
        """The reason that the process gives whose loss is not finite."""
        own = "" if math.isfinite(own_loss) else explain_not_finite(self.model, x)
        reasons = filter(None, self.world.gather(own))
        # A mean over processes spreads what is not finite to those whose own images do not explain it.
        reason = min(reasons, key=UNEXPLAINED.__eq__, default="the sum over processes overflows")
        return NotFiniteError(f"loss is {loss}: {reason}")


def correct_and_certified(model: nn.Module, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of images classified correctly, and with a margin that EPS cannot close if L = 1."""
    true = scores.gather(1, y[:, None])[:, 0]
    others = scores.scatter(1, y[:, None], -math.inf).amax(1)
    margin = true - others
    slope = getattr(model, "margin_slope", math.sqrt(2))
    return (margin > 0).sum(), (margin > slope * EPS).sum()
