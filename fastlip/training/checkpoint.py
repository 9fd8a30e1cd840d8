"""Checkpoints: one file, written atomically, verified when read, loadable with ``weights_only=True``."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastlip._files import write_atomically
from fastlip.data import Data
from fastlip.data.own_operations import GENERATORS
from fastlip.models.pretrained import pretrained_names
from fastlip.training.archives import CheckpointError, read
from fastlip.training.averaging import Average
from fastlip.training.recipe import Recipe
from fastlip.training.setup import count_weights

_FORMAT = 2
_ENTRIES = {"format", "recipe", "data", "model", "optimizer", "scheduler", "random", "progress"}
_DICTS = (
    "recipe",
    "data",
    "extra",
    "model",
    "trained",
    "optimizer",
    "scheduler",
    "loss",
    "ramp",
    "random",
    "progress",
    "card",
)


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes values and tensors, and the state of every random generator, to path."""
    state = {"format": _FORMAT, "random": random_state(), **state}
    write_atomically(path, lambda file: torch.save(state, file))


def load(path: Path) -> dict[str, Any]:
    """Reads a file of :func:`save`, on the CPU; CheckpointError for any other file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint{_trained_network(path.name)}")
    state = read(path)
    if not isinstance(state, dict) or state.get("format") != _FORMAT or not state.keys() >= _ENTRIES:
        raise CheckpointError(f"{path}: not a checkpoint of this version of fastlip")
    for name in _DICTS:
        if not isinstance(state.get(name, {}), dict):
            raise CheckpointError(f"{path}: corrupt checkpoint ({name} is no dict)")
    for entry in ("model", "trained"):
        for name, value in state.get(entry, {}).items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise CheckpointError(f"{path}: corrupt checkpoint ({entry}: {name!r} is no tensor)")
    return state


def _trained_network(name: str) -> str:
    """The end of an error for a name that is that of a trained network of the package."""
    if name not in pretrained_names():
        return ""
    return f"; fastlip.models.create_model({name!r}) is a trained network of the package"


def load_run(path: Path) -> tuple[Recipe, dict[str, Any], dict[str, Any]]:
    """Returns a checkpoint's recipe, its description of the data (see :func:`describe`), and its whole content.

    Raises:
        CheckpointError: recipe or data hold values that are not allowed, or stand for a network that is much larger
            than the weights. It is raised before memory is taken for that network.
    """
    state = load(path)
    recipe, data = _recipe_of(path, state), _data_of(path, state)
    stored = sum(value.numel() for value in state["model"].values())
    try:
        expected = count_weights(recipe, data["shape"], data["class_count"])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: its recipe gives no network: {error}") from None
    if expected > 2 * stored:
        raise CheckpointError(f"{path}: its weights do not fit its recipe: got {stored} values, expected {expected}")
    return recipe, data, state


def describe(data: Data) -> dict[str, Any]:
    """The description of its data in a checkpoint."""
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
    """Loads a checkpoint's weights into the model; CheckpointError where they or the data do not belong to it."""
    now = describe(data)
    for name, value in state["data"].items():
        if now.get(name) != value:
            now_text = f"{name} is {now.get(name)!r}"
            raise CheckpointError(f"data: {now_text}, the run was trained with {value!r}")
    put_weights(model, state["model"], "checkpoint: its weights do not fit the model")


def require_same_extra(state: dict[str, Any], now: dict[str, int]) -> None:
    """CheckpointError unless the run in the checkpoint had the same second set of images: ``Batches.description``."""
    then = state.get("extra", {})
    if then != now:
        raise CheckpointError(f"extra_data: has {now or 'no images'}, the run was trained with {then or 'none'}")


def averaging(model: nn.Module, result: nn.Module, average: Average | None) -> dict[str, Any]:
    """A checkpoint's entries for a run whose "model" is not the trained network.

    Args:
        model: the trained network.
        result: the network that is evaluated, whose weights are the checkpoint's "model".
        average: the moving average and its number of steps; None if there is none.
    """
    trained = {} if result is model else {"trained": model.state_dict()}
    return {**trained, "averaged": average.count} if average else trained


def load_trained(model: nn.Module, average: Average | None, state: dict[str, Any]) -> None:
    """Restores what :func:`averaging` saved; CheckpointError if the weights do not fit."""
    put_weights(model, state.get("trained", {}), "checkpoint: its trained weights do not fit the model")
    if average is None:
        return
    count = state.get("averaged")
    if type(count) is not int or count < 0:
        raise CheckpointError(f"checkpoint: averaged={count!r}: expected the number of averaged steps")
    average.count = count


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], problem: str) -> None:
    """Loads a state dict; CheckpointError, whose text begins with problem, if it does not fit or is not finite."""
    own = model.state_dict()
    for name, value in weights.items():
        if name in own and value.dtype != own[name].dtype:
            raise CheckpointError(f"{problem}: {name} is of {value.dtype}, expected {own[name].dtype}")
        if not value.isfinite().all():
            raise CheckpointError(f"{problem}: {name} is not finite")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{problem}: {' '.join(str(error).split())}") from None


def _recipe_of(path: Path, state: dict[str, Any]) -> Recipe:
    try:
        return Recipe.from_dict(state["recipe"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its recipe is damaged: {error}") from None


def _data_of(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    data = state["data"]
    for name, (fits, expected) in _ABOUT.items():
        if not fits(data.get(name)):
            raise CheckpointError(f"{path}: its data is damaged: {name}={data.get(name)!r}: expected {expected}")
    return data


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_shape(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 3 or any(type(n) is not int for n in value):
        return False
    return 1 <= value[0] <= _LARGEST_SIDE and 1 <= value[1] == value[2] <= _LARGEST_SIDE


_LARGEST_SIDE = 2**14
_ABOUT: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda name: isinstance(name, str), "a name"),
    "shape": (_is_shape, f"channels and two equal sides, at most {_LARGEST_SIDE}"),
    "divisor": (lambda divisor: _is_number(divisor) and divisor > 0, "a positive number"),
    "mean": (lambda mean: isinstance(mean, (list, tuple)) and all(map(_is_number, mean)), "a list of numbers"),
    "class_count": (lambda count: type(count) is int and count > 0, "a positive integer"),
}


# Settings of an optimiser that say how it computes: a run may be continued with others.
_HOW = ("capturable", "fused", "foreach")
# What optimisers keep as numbers, whatever the shape of the parameter: a count, and NAdam's product of momenta.
_NUMBERS = ("step", "mu_product")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restores an optimiser's state, also one of an earlier version, where parameters of shape (1,) had shape ().

    How the optimiser computes (in a CUDA graph, for example) stays as it is.
    """
    own = [{name: group[name] for name in _HOW if name in group} for group in optimizer.param_groups]
    saved = state.get("param_groups", ())
    if len(saved) == len(own):  # otherwise torch says so
        state = {**state, "param_groups": [{**then, **now} for then, now in zip(saved, own, strict=True)]}
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if (
                name not in _NUMBERS
                and isinstance(value, torch.Tensor)
                and value.dim() == 0
                and parameter.shape == (1,)
            ):
                values[name] = value.reshape(1)


def random_state() -> dict[str, Any]:
    """The state of the generators of torch (CPU and every GPU), numpy and Python."""
    with GENERATORS:
        name, keys, *rest = np.random.get_state()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
            "python": random.getstate(),
        }


def restore_random_state(state: dict[str, Any]) -> None:
    """Restores the state that :func:`random_state` returned; GPUs that are not there are left out."""
    torch.set_rng_state(state["torch"])
    for index, value in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(value, index)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
