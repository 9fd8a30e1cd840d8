"""A network taken apart once, audited, and followed batch by batch with bounds of its rounding errors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fastlip.certification.auditing import LayerBound, examine_with
from fastlip.certification.certificates.slopes import class_slopes, output_slopes, pixel_slopes
from fastlip.certification.graphs import Branch
from fastlip.certification.rounding import FOLLOWERS, Rounded, RoundingModel, exact_twin
from fastlip.certification.rounding.following import Values
from fastlip.certification.unfolding import Link, modules_of, unfold
from fastlip.inspection.running import batch_like
from fastlip.losses.labels import as_logits


class Prepared:
    """The state that all batches of one certificate share: the audit, the layers, and the bounds of their rounding.

    Attributes:
        audit: the bounds.
        links: the layers that it bounds, in the order of its rows.
        slopes: (c, c), how fast differences of scores can change.
        first: (1, ...), the outputs of the layers for the first image, next to a random sample.
    """

    def __init__(
        self,
        model: nn.Module,
        input_shape: tuple[int, ...],
        rounding: RoundingModel,
        device: torch.device,
        first: Tensor | None = None,
    ):
        self.audit, self.links, outputs = examine_with(first, model, input_shape)
        self.first = outputs[:1]
        self.slopes = class_slopes(self.links, self.audit).to(device)
        self._follower = FOLLOWERS[rounding]
        self._rules: dict[Any, Any] = {}
        self._model = model if rounding == "worst-case" else None

    def forward(self, index: int, x: Tensor) -> tuple[Tensor, Rounded]:
        """The outputs of the layers for a batch, which they may overwrite, and bounds of the outputs' errors."""
        follower = self._follower(len(x), x.device, self._rules)
        y, state = _follow(index, self.links, self.audit.layers, x, follower, follower.start)
        return y, follower.finish(state)

    def follow(self, x: Tensor, follower: Any) -> tuple[Tensor, Any]:
        """The outputs of the layers for a batch, which they may overwrite, and the last state of another follower."""
        return _follow(0, self.links, self.audit.layers, x, follower, follower.start)

    def output_slopes(self) -> Tensor:
        """(*output_shape): how fast each output can change, on the CPU."""
        return output_slopes(self.links, self.audit)

    @cached_property
    def pixel_slopes(self) -> Tensor | None:
        """(c, c): how fast differences of a pixel's scores can change by a linear last layer; None without one."""
        return pixel_slopes(self.links, self.audit)

    @cached_property
    def _twins(self) -> list[nn.Module] | None:
        """The layers of the model in float64, copied when they are first asked for; None if there are none."""
        return None if self._model is None else _twins(self._model, self.links, self.audit.input_shape)

    def exact(self, images: Tensor, rows: Tensor) -> Tensor | None:
        """The scores of rows of a batch by the network in float64; None if there is none."""
        if self._twins is None:
            return None
        x = images[rows].double()
        for module in self._twins:
            x = module(x)
        return as_logits(x)


def _twins(model: nn.Module, links: Sequence[Link], input_shape: tuple[int, ...]) -> list[nn.Module] | None:
    """The layers of the model's copy in float64; None if there is no copy."""
    twin = exact_twin(model, modules_of(links))
    if twin is None:
        return None
    twin_of = dict(zip(model.modules(), twin.modules(), strict=True))
    found = [twin_of.get(link.module) for link in links]
    copied = [module for module in found if module is not None]
    # Branches and modules that were read from a graph are no modules of the model.
    return copied if len(copied) == len(links) else _modules_unfolded(twin, input_shape)


def _modules_unfolded(twin: nn.Module, input_shape: tuple[int, ...]) -> list[nn.Module]:
    return [link.module for link in unfold(twin, batch_like(twin, 1, input_shape))]


def _follow(
    index: int, links: Sequence[Link], rows: Sequence[LayerBound], x: Tensor, follower: Any, state: Any
) -> tuple[Tensor, Any]:
    """The outputs of links for x, and the state of their errors, given that of x."""
    before, steps = follower.values(x), []
    for link, row in zip(links, rows, strict=True):
        if isinstance(link.module, Branch):
            state, steps = follower.links(steps, state), []
            y, state = _follow_branch(index, link.module, row, x, follower, state)
            after = follower.values(y)
        else:
            y = link.module(x)
            if follower.records:
                after = follower.called(link.module, x, y)
            else:  # as values(y) does: this loop is most of what a batch costs in Python
                after = Values(torch.linalg.vector_norm(y.reshape(len(y), -1), dim=1, dtype=torch.float64), y.dtype)
            steps.append((link.module, row, before, after))
        if not y.isfinite().all():
            raise ValueError(
                f"NaN or Inf in the outputs of batch {index}, first in layer {link.name!r} "
                f"({type(link.module).__name__})"
            )
        x, before = y, after
    return x, follower.links(steps, state)


def _follow_branch(
    index: int, branch: Branch, row: LayerBound, x: Tensor, follower: Any, state: Any
) -> tuple[Tensor, Any]:
    rows = list(row.parts)

    def call(node: Any, value: Tensor, size: Any) -> tuple[Tensor, Any]:
        links = branch.links[node]
        own, rows[: len(links)] = rows[: len(links)], []
        return _follow(index, links, own, value, follower, size)

    return branch.propagate(x, state, call, follower.measure, follower)
