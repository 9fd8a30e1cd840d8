"""Trained networks from a local file: ``fastlip.hub.load``, also behind ``torch.hub.load(..., source="local")``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from fastlip.training import checkpoint
from fastlip.training.recipe import Recipe


class Run(NamedTuple):
    """A run as its checkpoint has it: recipe, what it knows of its data, model, and card (empty until it ends)."""

    recipe: Recipe
    data: dict[str, Any]
    model: nn.Module
    card: dict[str, Any]


def load(path: str | Path, *, device: str = "cpu", backend: str = "") -> nn.Module:
    """The network of a run folder or checkpoint, in evaluation mode; no data set is needed.

    It takes images as its card says: ``card(path)["input"]`` has their shape, the divisor and the mean.

    Args:
        path: a run folder of ``fastlip train`` or ``fastlip import``, or its checkpoint.pt.
        device: where to put the network.
        backend: of its layers; by default the run's.

    Raises:
        CheckpointError: (a ValueError) a missing, damaged or foreign file, named.
        ValueError: a device or backend that is not there.
    """
    return read(path, device=device, backend=backend).model


def card(path: str | Path) -> dict[str, Any]:
    """The model card in a run's checkpoint: method, recipe, data, certificate, the audit of each layer, versions.

    A run that has not ended has no certificate yet: its card has an audit only.
    """
    run = read(path, device="cpu")
    if run.card:
        return run.card
    from fastlip.training.card import make_card

    return make_card(run.model, run.recipe, run.data)


def read(path: str | Path, device: str | None = None, backend: str | None = None) -> Run:
    """A run folder or checkpoint; device and backend are the run's own unless given. Raises as :func:`load`."""
    from fastlip.training.setup import network_of

    path = Path(path).expanduser()
    recipe, data, state = checkpoint.load_run(path / checkpoint.FILE_NAME if path.is_dir() else path)
    moved = {name: value for name, value in (("device", device), ("backend", backend)) if value}
    recipe = dataclasses.replace(recipe, **moved)
    model = network_of(recipe, data["shape"], data["class_count"])
    checkpoint.put_weights(model, state["model"], f"{path}: its weights do not fit its recipe")
    return Run(recipe, data, model.eval(), state.get("card", {}))
