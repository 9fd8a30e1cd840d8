"""Modules that ``torch.fx`` records as one call: their kernels and caches are not made of traceable steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import fx, nn

from fastlip._names import constructor_lists_keywords
from fastlip.nn._calls import hooks_of

Forward = TypeVar("Forward", bound=Callable[..., Any])


class WholeModule(nn.Module):
    """A module that stays whole in graphs of ``torch.fx``, as the modules of ``torch.nn`` do."""

    def __init_subclass__(cls, **options: Any):
        """Every forward, those of subclasses too, records a call of the module when a tracer calls it."""
        super().__init_subclass__(**options)
        record_forward(cls)
        constructor_lists_keywords(cls)


def record_forward(cls: type[nn.Module]) -> None:
    """Wraps the forward that a class defines itself: a tracer's call of it is recorded as a call of the module."""
    forward = vars(cls).get("forward")
    if forward is not None and not hasattr(forward, "records_itself"):
        cls.forward = _recording(forward)


def records_itself(forward: Forward) -> Forward:
    """Decorates a forward that asks :func:`recorded_here` itself, so that no wrapper makes each call slower."""
    forward.records_itself = True  # type: ignore[attr-defined]
    return forward


def recorded_here(module: nn.Module, forward: Callable[..., Any], x: Any) -> Any:
    """Returns the recorded call if a tracer runs the forward of the module's class; None: go on as usual."""
    return recorded_call(module, x) if type(module).forward is forward else None


def recorded_call(module: nn.Module, x: fx.Proxy, args: tuple[Any, ...] = (), kwargs: Any = None) -> fx.Proxy | None:
    """The call of the module in the tracer's graph; None where its steps must be traced.

    That is for the model itself, and where a call does more than the forward of its class.
    """
    if "forward" in vars(module) or hooks_of(module):
        return None
    try:
        name = x.tracer.path_of_module(module)  # type: ignore[attr-defined]
    except NameError:
        return None
    return x.tracer.create_proxy("call_module", name, (x, *args), kwargs or {}) if name else None


def _recording(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def call(self: nn.Module, x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, fx.Proxy) and type(self).forward is call:
            recorded = recorded_call(self, x, args, kwargs)
            if recorded is not None:
                return recorded
        return forward(self, x, *args, **kwargs)

    return call
