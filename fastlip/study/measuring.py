"""Measures time and memory of each contender's step before any of them trains."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastlip.benchmarking import perturb
from fastlip.benchmarking.timing import alternate
from fastlip.data import Data
from fastlip.kernels.spectral_conv.api import FixedSpectrum
from fastlip.nn.base import LipschitzLayer
from fastlip.study.failures import FAILURES, reason
from fastlip.study.twin import network_of
from fastlip.testing import bytes_kept
from fastlip.training.loop import Training
from fastlip.training.recipe import Recipe
from fastlip.training.setup import batches_of, device_of, prepare_process

_ROUNDS = 7
# With these settings nothing diverges while it is timed, and the schedule does not end.
_WHILE_TIMED: dict[str, Any] = {"lr": 1e-6, "epochs": 100.0}
_FETCHED = 8  # number of batches over which fetching is timed


@dataclass(frozen=True)
class Measured:
    """Costs of one contender: seconds of steps (medians) and bytes.

    Args:
        parameters: number of parameters.
        batch_size: images in a step.
        images: training images.
        step: seconds of a training step without preparing its batch.
        fetch: seconds of preparing a batch, which overlaps with the step before.
        evaluate: seconds of a batch in evaluation with cached effective weights.
        evaluate_fresh: seconds of a batch in evaluation without cached weights.
        train_memory: bytes of a training step.
        evaluate_memory: bytes of evaluation with cached effective weights.
        evaluate_fresh_memory: bytes of evaluation without them.

    On a GPU memory is the peak of ``torch.cuda.max_memory_allocated``. On a CPU it is the size of parameters and
    buffers, plus the tensors that autograd keeps for the backward pass (training) or the cached weights (evaluation).
    """

    parameters: int
    batch_size: int
    images: int
    step: float
    fetch: float
    evaluate: float
    evaluate_fresh: float
    train_memory: int
    evaluate_memory: int
    evaluate_fresh_memory: int

    @property
    def seconds_per_step(self) -> float:
        """Seconds of a training step, or of fetching its batch where that is slower."""
        return max(self.step, self.fetch)

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in an epoch; the last may have fewer images."""
        return -(-self.images // self.batch_size)

    @property
    def seconds_per_epoch(self) -> float:
        """Seconds of all steps of an epoch."""
        return self.seconds_per_step * self.steps_per_epoch

    def to_dict(self) -> dict[str, Any]:
        """The costs as values that JSON can hold."""
        return asdict(self)


class _Contestant:
    """A contender's network with one batch, ready to step."""

    def __init__(self, recipe: Recipe, data: Data, plain: bool):
        prepare_process(recipe)
        model = network_of(recipe, data, plain)
        # Noise is for iterations that end early at an initialisation; in a plain twin it only adds to the norms.
        self.model = model if plain else perturb(model)
        self.training = Training(self.model, replace(recipe, **_WHILE_TIMED), data, Path())
        self.x, self.y = next(self.training.train_batches.epoch(0, 0, 1))

    def train(self) -> None:
        """Takes a training step as a run does: compiled, in parts, or in bfloat16."""
        self.training.step(self.x, self.y)

    def forward(self) -> Tensor:
        """The loss of the images that a step takes at once."""
        gradients = self.training.gradients
        x = self.x.tensor_split(gradients.parts(len(self.x)))[0]
        return gradients.loss(gradients.forward(x), self.y[: len(x)])

    def evaluate(self) -> None:
        """Evaluates a batch with cached effective weights."""
        with torch.no_grad():
            self.model(self.x)

    def evaluate_fresh(self) -> None:
        """Evaluates a batch with no cached weights."""
        self.model.eval()
        self.evaluate()


def measure(
    recipes: Mapping[str, Recipe], data: Data, seconds: float, plain: bool = False
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Measures contenders in turn in this process, after a warm-up.

    Args:
        recipes: recipe of each contender, all on one device.
        data: images for the training batches.
        seconds: time after which no further round is timed.
        plain: whether the plain twins of their networks are measured.

    Returns:
        The measured costs, and for the other contenders the reason why they could not be measured.
    """
    memory, failed = {}, {}
    for name, recipe in recipes.items():
        try:
            memory[name] = _memory(recipe, data, plain)
        except FAILURES as error:
            failed[name] = reason(error)
        _free()
    able = {name: recipe for name, recipe in recipes.items() if name in memory}
    found = {}
    for group in _together(able, memory):
        try:
            times = _times({name: able[name] for name in group}, data, seconds, plain)
        except FAILURES as error:
            failed.update(dict.fromkeys(group, reason(error)))
        else:
            found.update({name: Measured(**memory[name], **times[name]) for name in group})
        _free()
    return found, failed


def _together(recipes: Mapping[str, Recipe], memory: Mapping[str, dict[str, int]]) -> list[list[str]]:
    """All contenders in one group if the GPU has memory for all, otherwise each alone."""
    names = list(recipes)
    if names and (device := device_of(recipes[names[0]])).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if sum(memory[name]["train_memory"] for name in names) > 0.8 * free:
            return [[name] for name in names]
    return [names] if names else []


def _memory(recipe: Recipe, data: Data, plain: bool) -> dict[str, int]:
    contestant = _Contestant(recipe, data, plain)
    model = contestant.model
    sizes = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "batch_size": recipe.batch_size,
        "images": len(data.train.labels),
    }
    device = device_of(recipe)
    if device.type == "cuda":
        names = ("train", "evaluate_fresh", "evaluate")
        return sizes | {f"{name}_memory": _peak(getattr(contestant, name), model, device) for name in names}
    weights = _bytes([*model.parameters(), *model.buffers()])
    saved = bytes_kept(contestant.forward, apart_from=[*model.parameters(), *model.buffers()])
    contestant.evaluate_fresh()
    return sizes | {
        "train_memory": weights + saved,
        "evaluate_fresh_memory": weights,
        "evaluate_memory": weights + _kept_weights(model),
    }


def _peak(step: Callable[[], None], model: nn.Module, device: torch.device) -> int:
    model.train(step.__name__ == "train")
    step()  # warms up: workspaces of libraries, the optimiser's state
    if step.__name__ == "evaluate_fresh":
        model.eval()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device)


def _kept_weights(model: nn.Module) -> int:
    """Bytes of the effective weights that evaluation caches, without the parameters themselves."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = (
        tensor
        for layer in model.modules()
        if isinstance(layer, LipschitzLayer)
        for _, kept in layer._cache.entries.values()
        for tensor in _tensors(kept)
    )
    return _bytes([tensor for tensor in kept if tensor.untyped_storage().data_ptr() not in own])


def _tensors(kept: Any) -> Iterator[Tensor]:
    """The tensors in a layer's cache: weights, values derived from them, spectra, or its parameters."""
    for value in kept if isinstance(kept, tuple) else (kept,):
        if isinstance(value, FixedSpectrum):
            yield value.panels
        elif isinstance(value, LipschitzLayer):  # a copy, with the parameters that residual layers use
            yield from (*value.parameters(), *value.buffers())
        elif isinstance(value, Tensor):
            yield value


def _bytes(tensors: list[Tensor]) -> int:
    storages = {storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}
    return sum(storages.values())


def _times(recipes: Mapping[str, Recipe], data: Data, seconds: float, plain: bool) -> dict[str, dict[str, Any]]:
    contestants = {name: _Contestant(recipe, data, plain) for name, recipe in recipes.items()}
    device = device_of(next(iter(recipes.values())))
    found: dict[str, dict[str, Any]] = {name: {"fetch": _fetch(recipes[name], data)} for name in recipes}
    for what, key in (("train", "step"), ("evaluate_fresh", "evaluate_fresh"), ("evaluate", "evaluate")):
        for contestant in contestants.values():
            contestant.model.train(what == "train")
        steps = {name: getattr(contestant, what) for name, contestant in contestants.items()}
        for name, times in alternate(steps, _ROUNDS, device, seconds).items():
            found[name][key] = statistics.median(times)
    return found


def _fetch(recipe: Recipe, data: Data) -> float:
    batches = batches_of(replace(recipe, device="cpu"), data, data.train, augment=True)
    count, started = 0, time.perf_counter()
    for _ in batches.epoch(0):
        count += 1
        if count == _FETCHED:
            break
    return (time.perf_counter() - started) / count


def _free() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
