"""The causes that stop a run: numbers that are not finite, and signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from fastlip.nn.centering import BatchCentering

_KINDS = ("parameter", "buffer")
UNEXPLAINED = "every layer's output is finite, but the loss is not"


class NotFiniteError(ArithmeticError):
    """A NaN or an infinity in training; the message names the first layer that has it."""


class Interrupted(Exception):  # noqa: N818
    """The run was stopped by a signal, after its state was saved."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Interrupt:
    """In this context the first SIGINT or SIGTERM only sets ``number``; a second one acts as usual.

    Args:
        patient: further signals do nothing either. A launcher of several processes repeats the signal of the
            terminal, and kills those that take too long.
    """

    def __init__(self, patient: bool = False):
        self.number = 0
        self.patient = patient
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        self.number = 0
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number
        if not self.patient:
            self.__exit__()


def require_finite_parameters(model: nn.Module) -> None:
    """Raises NotFiniteError, which names the first layer with a parameter or buffer that is not finite."""
    for name, layer in model.named_modules():
        if found := _own_not_finite(layer):
            raise NotFiniteError(f"{_title(name, layer)}: {found}")


def explain_not_finite(model: nn.Module, x: Tensor) -> str:
    """Runs the model on x again, and names the first layer whose parameters or output are not finite.

    It waits for no other process, which may have nothing to explain.
    """
    if not _finite(x):
        return "the input is not finite"
    reasons: list[str] = []
    handles = [
        handle
        for name, layer in model.named_modules()
        for handle in (
            _watch_parameters(layer, _title(name, layer), reasons),
            _watch(layer, _title(name, layer), reasons),
        )
    ]
    try:
        with torch.no_grad(), _alone(model):
            model(x)
    except (ValueError, torch.linalg.LinAlgError) as error:  # a layer may itself refuse input that is not finite
        reasons.append(str(error))
    finally:
        for handle in handles:
            handle.remove()
    return reasons[0] if reasons else UNEXPLAINED


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """In this context centering takes the mean over this process's samples only."""
    shared = [layer for layer in model.modules() if isinstance(layer, BatchCentering) and layer.sync]
    for layer in shared:
        layer.sync = False
    try:
        yield
    finally:
        for layer in shared:
            layer.sync = True


def _watch_parameters(layer: nn.Module, title: str, reasons: list[str]) -> Any:
    # Before the layer runs: a decomposition of NaN may raise.
    def hook(_: nn.Module, __: Any) -> None:
        # Training writes a running mean and does not read it: what is in it is a consequence.
        kinds = ("parameter",) if isinstance(layer, BatchCentering) and layer.training else _KINDS
        if found := _own_not_finite(layer, kinds):
            reasons.append(f"{title}: {found}")

    return layer.register_forward_pre_hook(hook)


def _watch(layer: nn.Module, title: str, reasons: list[str]) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not _finite(output):
            reasons.append(f"{title}: its output is not finite")

    return layer.register_forward_hook(hook)


def _own_not_finite(layer: nn.Module, kinds: tuple[str, ...] = _KINDS) -> str:
    for kind in kinds:
        tensors = layer.named_parameters if kind == "parameter" else layer.named_buffers
        for name, tensor in tensors(recurse=False):
            if not _finite(tensor):
                return f"its {kind} {name!r} is not finite"
    return ""


def _finite(x: Tensor) -> bool:
    return not x.is_floating_point() or bool(x.isfinite().all())


def _title(name: str, layer: nn.Module) -> str:
    return f"layer {name!r} ({type(layer).__name__})" if name else f"the model ({type(layer).__name__})"
