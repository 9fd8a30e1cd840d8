"""The common parts of the experiments: a dense 1-Lipschitz network, its training, and claims."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastlip import nn as lip
from fastlip._progress import shown

INK, GREY = "#222222", "#777777"
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
Batch = tuple[Tensor, Tensor]


def dense_network(features: Sequence[int]) -> nn.Sequential:
    """Returns Cayley layers (orthogonal) with MaxMin between them, whose gradient has norm 1 where it exists.

    Such networks are dense in the 1-Lipschitz functions (Anil, Lucas, Grosse, ICML 2019).
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(features):
        layers += [lip.CayleyLinear(inputs, outputs), lip.MaxMin()]
    return nn.Sequential(*layers[:-1])


def fit(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    batch: Callable[[int], Batch],
    steps: int,
    lr: float,
    watch: Callable[[Tensor, Tensor], float] | None = None,
    what: str = "",
) -> list[float]:
    """Trains with Adam and a cosine decay to 0; returns ``watch(outputs, labels)`` of each step.

    ``what`` is the text of a progress bar over the steps; "": none.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seen = []
    for step in shown(range(steps), what) if what else range(steps):
        x, y = batch(step)
        outputs = model(x)
        if watch is not None:
            seen.append(watch(outputs.detach(), y))
        optimizer.zero_grad()
        loss(outputs, y).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return seen


def minibatches(x: Tensor, y: Tensor, size: int, seed: int) -> Callable[[int], Batch]:
    """Random batches of a set, the same for the same seed and step."""

    def batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = torch.randint(len(x), (size,), generator=generator)
        return x[chosen], y[chosen]

    return batch


def claim(text: str, value: float, *, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    """A claim with the value found and its bounds."""
    holds = (least is None or value >= least) and (most is None or value <= most)
    return {"claim": text, "value": value, "least": least, "most": most, "holds": holds}


def digits() -> tuple[Batch, Batch]:
    """Training and test digits: images (n, 64) with values in [0, 1], labels (n,)."""
    from fastlip.data import Data, Images, load

    data: Data = load("digits")

    def tensors(images: Images) -> Batch:
        pixels = images.pixels(torch.arange(len(images.labels)))
        return pixels.flatten(1).float() / data.divisor, images.labels

    return tensors(data.train), tensors(data.test)
