"""Evaluation of frozen networks on a device that computes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import fastlip
from fastlip.nn import _cache, _fingerprint


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """Lets layers keep in evaluation what they compute of fake tensors, as they do of others."""
    with contextlib.ExitStack() as stack:
        for module in (_cache, _fingerprint):
            stack.enter_context(mock.patch.object(module, "PLAIN", module.PLAIN | {FakeTensor}))
        yield


def evaluation_of(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A forward of the model in eval mode, frozen and without gradients. The first call computes the weights."""
    fastlip.freeze(model.eval())

    def run() -> Tensor:
        with torch.no_grad(), keeping():
            return model(x)

    return run
