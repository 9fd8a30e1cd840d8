"""Modules that ``torch.fx`` records as one call: their kernels and caches are not made of traceable steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from fastlip.nn._calls import hooks_of


class WholeModule(nn.Module):
    """A module that stays whole in graphs of ``torch.fx``, as the modules of ``torch.nn`` do."""

    def __init_subclass__(cls, **options: Any):
        """Every forward, those of subclasses too, records a call of the module when a tracer calls it."""
        super().__init_subclass__(**options)
        if "forward" in vars(cls):
            cls.forward = _recording(vars(cls)["forward"])


def _recording(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def call(self: nn.Module, x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, fx.Proxy) and type(self).forward is call and (name := _name_in(x.tracer, self)):
            return x.tracer.create_proxy("call_module", name, (x, *args), kwargs)
        return forward(self, x, *args, **kwargs)

    return call


def _name_in(tracer: Any, module: nn.Module) -> str:
    """The module's name in the traced model; empty for the model itself, and where a call does more than forward."""
    if "forward" in vars(module) or hooks_of(module):
        return ""
    try:
        return tracer.path_of_module(module)
    except NameError:
        return ""
