"""Whether calling a module runs what its class says, and nothing else: hooks, wrapped and overridden methods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils.prune import BasePruningMethod

_PACKAGE = "fastlip."
# As they were when this package was imported: tools that watch or move models replace them, on the class too.
_CALLS = nn.Module.__call__, nn.Module._call_impl, nn.Module._wrapped_call_impl
_CONVOLVE = {kind: (kind.forward, kind._conv_forward) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}
# Methods through which a call of a layer goes; an attribute of that name on the instance takes their place.
_METHODS = frozenset(
    {"forward", "_call_impl", "_wrapped_call_impl", "_conv_forward", "_check_input"}
    | {"_effective", "_parametrize", "_factors", "_compute", "_computed"}
)
_NO_HOOKS = ({},) * 4
_NOTHING = ({},) * 9
# What a subclass may define without changing what a call computes.
_HARMLESS = frozenset(
    {"__init__", "__doc__", "__module__", "__qualname__", "__annotations__", "__annotate__", "__annotate_func__"}
    | {"__annotations_cache__", "__static_attributes__", "__firstlineno__", "__dict__", "__weakref__", "__slots__"}
    | {"__repr__", "__constants__", "__getstate__", "__deepcopy__", "__parameters__", "__orig_bases__"}
    | {"reset_parameters", "extra_repr", "_options", "_fixed", "lipschitz_bound"}
)
# Methods that the bounds of layers read as the forward does: a subclass may define them.
MEASURED = ("_parametrize", "_effective", "weight", "_gain", "_application", "effective", "gain", "application")

# What it may define and still run fused: the fused call asks the layer for its weights.
_FUSED = (_HARMLESS - {"lipschitz_bound"}) | {"_parametrize", "_application", "application"}


def hooks_of(module: nn.Module) -> list[Any]:
    """The hooks of a module's forward, its own and those of every module, that may change what it computes.

    Those of ``torch.nn.utils`` that only recompute a weight are left out: the weight is read after they ran.
    """
    everywhere = torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks
    stores = module._forward_hooks, module._forward_pre_hooks, *everywhere
    if stores == _NO_HOOKS:
        return []
    return [hook for store in stores for hook in store.values() if not _recomputes_weight(hook)]


def is_touched(module: nn.Module) -> bool:
    """Whether a call of the module may run anything but the methods of its class: a hook, or a replaced method."""
    everywhere = torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks
    hooks = module._forward_hooks, module._forward_pre_hooks, *everywhere
    kind = type(module)
    calls = kind.__call__, kind._call_impl, kind._wrapped_call_impl
    if hooks == _NO_HOOKS and calls == _CALLS and _METHODS.isdisjoint(module.__dict__):
        return False
    return bool(hooks_of(module)) or is_replaced(module)


def _recomputes_weight(hook: Any) -> bool:
    kind = type(hook)
    if isinstance(hook, BasePruningMethod):
        return kind.__module__ == "torch.nn.utils.prune"
    return kind.__module__.startswith("torch.nn.utils.") and kind.__name__ in ("WeightNorm", "SpectralNorm")


def is_replaced(module: nn.Module) -> bool:
    """Whether a method of the module's call was replaced on the instance, or ``__call__`` by its class.

    ``module.compile()`` does not count: it computes the same.
    """
    kind, own = type(module), module.__dict__
    # An fx.GraphModule's call only adds the generated code to errors.
    calls = kind.__call__, kind._call_impl, kind._wrapped_call_impl
    if calls != _CALLS and not isinstance(module, fx.GraphModule):
        return True
    return not _METHODS.isdisjoint(own) and any(hasattr(kind, name) for name in _METHODS.intersection(own))


def overridden(module: nn.Module, known: type, allowed: Iterable[str] = ()) -> list[str]:
    """The methods that compute, and that classes of other packages derived from ``known`` replace."""
    names: set[str] = set()
    for base in type(module).__mro__:
        if base is known:
            break
        if not base.__module__.startswith(_PACKAGE):
            names.update(vars(base))
    replaced = [
        name for name in names - _HARMLESS if hasattr(known, name) or name in ("__getattr__", "_conv_forward")
    ]
    return sorted(set(replaced).difference(allowed))


def are_untouched(*calls: tuple[nn.Module, type[nn.Module]]) -> bool:
    """Whether a call of each module is the forward of its kind, on its own parameters: it may run fused.

    False with a hook of any sort, with a parametrization or another child, if it is compiled, and for a subclass of
    another package that defines more than its construction and its weights: what that does is its own.
    """
    for module, kind in calls:
        cls, own = type(module), module.__dict__
        if cls.forward is not kind.forward or own.get("_compiled_call_impl") is not None:
            return False
        # As is_replaced, without a call of it where nothing is.
        usual = (cls.__call__, cls._call_impl, cls._wrapped_call_impl) == _CALLS and _METHODS.isdisjoint(own)
        if not usual and is_replaced(module):
            return False
        # Any hook that would run with the module's call, or with its backward; or another child.
        watching = (
            *(module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks),
            *(torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks),
            *(torch_module._global_backward_hooks, torch_module._global_backward_pre_hooks, module._modules),
        )
        if watching != _NOTHING or not (cls.__module__.startswith(_PACKAGE) or _computes_as(cls, kind)):
            return False
    return True


def _computes_as(cls: Any, kind: type[nn.Module]) -> bool:
    """Whether a class of another package, derived from a kind, defines no more than its construction and weights."""
    if kind in _CONVOLVE and (cls.forward, getattr(cls, "_conv_forward", None)) != _CONVOLVE[kind]:
        return False
    if cls is kind:
        return True
    names = [vars(base).keys() for base in cls.__mro__[: cls.__mro__.index(kind)] if not _is_of_this_package(base)]
    return all(defined <= _FUSED for defined in names)


def _is_of_this_package(kind: type) -> bool:
    return kind.__module__.startswith(_PACKAGE)
