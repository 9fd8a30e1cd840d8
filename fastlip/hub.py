"""Trained networks from a local file: ``fastlip.hub.load``, also for ``torch.hub.load(..., source="local")``."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from fastlip.kernels.common.literals import Backend
from fastlip.training.card import make_card
from fastlip.training.checkpoint import put_weights
from fastlip.training.recipe import Recipe
from fastlip.training.run_folder import RunFolder
from fastlip.training.setup import network_of


class Run(NamedTuple):
    """A run as its checkpoint has it.

    Attributes:
        recipe: how it was trained.
        data: description of its data set: shape of an image, number of classes and more.
        model: the network, in evaluation mode.
        card: what the run measured; empty until it ends.

    Example:
        >>> fastlip.hub.Run._fields
        ('recipe', 'data', 'model', 'card')
    """

    recipe: Recipe
    data: dict[str, Any]
    model: nn.Module
    card: dict[str, Any]


def load(path: str | Path, *, device: str = "cpu", backend: Backend | Literal[""] = "") -> nn.Module:
    """Returns the network of a run folder or checkpoint, in evaluation mode. No data set is needed.

    The network takes images as its card says: ``card(path)["input"]`` has their shape, the divisor and the mean.

    Args:
        path: run folder of ``fastlip train`` or ``fastlip import``, or its checkpoint.pt.
        device: device of the network, such as ``"cpu"`` (default) or ``"cuda"``.
        backend: kernels of its layers; default ``""``: those of the run.

    Raises:
        CheckpointError: (a ValueError) a missing, damaged or foreign file, which the message names.
        TypeError: a path that is no name of a file.
        ValueError: a device or backend that cannot be used.

    Example:
        >>> fastlip.hub.load("no-such-run")
        Traceback (most recent call last):
        ...
        fastlip.training.archives.CheckpointError: no-such-run: no such checkpoint
    """
    return read(path, device=device, backend=backend).model


def card(path: str | Path) -> dict[str, Any]:
    """Returns the model card of a run: method, recipe, data, certificate, the audit of each layer, and versions.

    A run that has not ended has no certificate yet. Its card has an audit only.

    Args:
        path: run folder or checkpoint, as for :func:`load`.

    Raises:
        CheckpointError: (a ValueError) a missing, damaged or foreign file, which the message names.
        TypeError: a path that is no name of a file.

    Example:
        >>> fastlip.hub.card("no-such-run")
        Traceback (most recent call last):
        ...
        fastlip.training.archives.CheckpointError: no-such-run: no such checkpoint
    """
    run = read(path, device="cpu")
    return run.card or make_card(run.model, run.recipe, run.data)


def read(path: str | Path, device: str | None = None, backend: Backend | Literal[""] | None = None) -> Run:
    """Reads a run folder or checkpoint: the network with all that is known of it.

    Args:
        path: run folder of ``fastlip train`` or ``fastlip import``, or its checkpoint.pt.
        device: device of the network; None: that of the run.
        backend: kernels of its layers; None or empty: those of the run.

    Raises:
        CheckpointError: (a ValueError) a missing, damaged or foreign file, which the message names.
        TypeError: a path that is no name of a file.

    Example:
        >>> fastlip.hub.read("nowhere")
        Traceback (most recent call last):
        ...
        fastlip.training.archives.CheckpointError: nowhere: ...
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: got {type(path).__name__}, expected the name of a run folder or checkpoint")
    path = Path(path).expanduser()
    recipe, data, state = RunFolder.at(path).load_run()
    moved: dict[str, Any] = {name: value for name, value in (("device", device), ("backend", backend)) if value}
    recipe = dataclasses.replace(recipe, **moved)
    model = network_of(recipe, data["shape"], data["class_count"])
    put_weights(model, state["model"], f"{path}: its weights do not fit its recipe")
    return Run(recipe, data, model.eval(), state.get("card", {}))
