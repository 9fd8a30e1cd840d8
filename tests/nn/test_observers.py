"""``is_observed``, and the evaluation cache without a call of it, notice all that follows torch's operations."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from fastlip import nn as lip
from fastlip.kernels.common.gate import is_observed
from fastlip.nn._cache import kept_of, may_keep


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def in_a_mode(ask):
    with Mode():
        return ask()


def in_a_transform(ask):
    found = []
    torch.func.vmap(lambda x: found.append(ask()) or x)(torch.ones(2))
    return found[0]


def in_a_trace(ask):
    found = []
    torch.jit.trace(lambda x: found.append(ask()) or x * 1, torch.ones(2), check_trace=False)
    return found[0]


def in_forward_mode(ask):
    with forward_ad.dual_level():
        return ask()


def while_compiling(ask, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr("fastlip.nn._cache._is_compiling", lambda: True)
    return ask()


def while_capturing(ask, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    return ask()


OBSERVERS = [in_a_mode, in_a_transform, in_a_trace, in_forward_mode]


@pytest.fixture
def ask():
    """(whether something follows, whether kept weights may be used, whether results may be kept) of a layer."""
    layer = lip.AOLLinear(4, 4).requires_grad_(False).eval()
    return lambda: (is_observed(), kept_of(layer) is not None, may_keep(layer))


def test_alone_weights_are_kept(ask):
    assert ask() == (False, True, True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("observer", OBSERVERS)
def test_an_observer_is_noticed_by_all(observer, ask):
    assert observer(ask) == (True, False, False)
    assert ask() == (False, True, True)


@pytest.mark.parametrize("observer", [while_compiling, while_capturing])
def test_a_compiler_and_a_capture_are_noticed_by_all(observer, ask, monkeypatch):
    assert observer(ask, monkeypatch) == (True, False, False)
