"""Checkpoints: one file, written atomically, verified when read, loadable with ``weights_only=True``."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastlip.data import Data

FILE_NAME = "checkpoint.pt"
_FORMAT = 2
_ENTRIES = {"format", "recipe", "data", "model", "optimizer", "scheduler", "random", "progress"}


class CheckpointError(ValueError):
    """A checkpoint that is missing, corrupt, or not ours; the message names the file."""


def write_atomically(path: Path, write: Any) -> None:
    """Calls ``write(file)`` on a temporary file that replaces path once it is safely on disk."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Replaces a text file as a whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode()))


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes plain values and tensors, and the state of every random generator, to path."""
    state = {"format": _FORMAT, "random": random_state(), **state}
    write_atomically(path, lambda file: torch.save(state, file))


def load(path: Path) -> dict[str, Any]:
    """Reads what :func:`save` wrote, on the CPU. CheckpointError for anything else."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    state = read(path)
    if not isinstance(state, dict) or state.get("format") != _FORMAT or not state.keys() >= _ENTRIES:
        raise CheckpointError(f"{path}: not a checkpoint of this version of fastlip")
    return state


def read(path: Path) -> Any:
    """What a file of ``torch.save`` holds, plain values and tensors, on the CPU; CheckpointError if it is damaged."""
    try:
        # torch.load does not compare the archive's checksums: a flipped bit would become a weight.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f"{path}: corrupt checkpoint ({damaged} fails its checksum)")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: corrupt checkpoint ({reason})") from None


def describe(data: Data) -> dict[str, Any]:
    """What a checkpoint remembers of its data."""
    return {
        "name": data.name,
        "shape": list(data.shape),
        "divisor": data.divisor,
        "mean": list(data.mean),
        "class_count": len(data.classes),
        "classes": list(data.classes),
        "training_images": len(data.train.labels),
        "test_images": len(data.test.labels),
    }


def load_model(model: nn.Module, state: dict[str, Any], data: Data) -> None:
    """Puts a checkpoint's weights into the model; CheckpointError where they or the data do not belong to it."""
    now = describe(data)
    for name, value in state["data"].items():
        if now.get(name) != value:
            now_text = f"{name} is {now.get(name)!r}"
            raise CheckpointError(f"data: {now_text}, the run was trained with {value!r}")
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"checkpoint: its weights do not fit the model: {reason}") from None


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Puts back an optimiser's state: also that of a time when parameters of shape (1,) had the shape ()."""
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            # The count of steps is a number.
            if name != "step" and isinstance(value, torch.Tensor) and value.dim() == 0 and parameter.shape == (1,):
                values[name] = value.reshape(1)


def random_state() -> dict[str, Any]:
    """The state of the generators of torch (CPU and every GPU), numpy and Python."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Puts back what :func:`random_state` took; GPUs beyond those of now are left out."""
    torch.set_rng_state(state["torch"])
    for index, value in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(value, index)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
