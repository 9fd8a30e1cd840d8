"""A model as one graph: submodules are followed down to the modules of torch.nn, what resists stays whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from fastlip.certification.graphs.tracing import UNTRACEABLE, ShapeTracer, first_line
from fastlip.converting.norms import is_layer_norm

_CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPS_PATHS = "StochasticDepth", "DropPath"  # classes of torchvision and timm


@dataclass
class Flow:
    """A model's graph.

    ``values``: each node's value for the example. ``paths``: the name of the module that each node belongs to.
    ``whole``: names of modules that could not be followed, and why.
    """

    graph: fx.Graph
    values: dict[fx.Node, Any]
    paths: dict[fx.Node, str]
    whole: dict[str, str]


def follow(model: nn.Module, x: Tensor) -> Flow:
    """The model's forward for x, its other arguments being at their defaults.

    TypeError if the model's own forward cannot be followed; a submodule that cannot is one call.
    """
    whole: dict[str, str] = {}
    while True:
        tracer = _DeepTracer(x, whole)
        try:
            return Flow(tracer.trace(model), tracer.values, tracer.paths, whole)
        except UNTRACEABLE as error:
            path = tracer.failed
            if not path or path in whole:
                raise TypeError(
                    f"model ({type(model).__name__}): its forward cannot be traced: {first_line(error)}"
                ) from error
            whole[path] = first_line(error)


def is_dropout(module: nn.Module) -> bool:
    """Whether a module drops entries or whole samples at random in training, and does nothing in evaluation."""
    return isinstance(module, _DROPOUTS) or type(module).__name__ in _DROPS_PATHS


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is converted as one: those of torch.nn, with a bound of their own, and layer norms."""
    if isinstance(module, _CONTAINERS):
        return False
    if hasattr(module, "lipschitz_bound") or is_layer_norm(module) or is_dropout(module):
        return True
    if type(module).__module__.startswith("torch.nn."):
        return True
    # A subclass that only adds a constructor computes what its base computes.
    owner = next((base for base in type(module).__mro__ if "forward" in vars(base)), nn.Module)
    return owner.__module__.startswith("torch.nn.modules") and owner is not nn.Module


class _DeepTracer(ShapeTracer):
    """Traces into submodules; ``failed`` is the innermost module whose forward raised."""

    def __init__(self, x: Tensor, whole: dict[str, str]):
        super().__init__(x)
        self.paths: dict[fx.Node, str] = {}
        self.failed = ""
        self._whole = whole
        self._stack = [""]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A node for a leaf, what the forward does for the rest."""
        path = self.path_of_module(m)
        if self._depth or path in self._whole or is_leaf(m):
            return super().call_module(m, forward, args, kwargs)
        self._stack.append(path)
        try:
            return forward(*args, **kwargs)
        except UNTRACEABLE:
            self.failed = self.failed or path
            raise
        finally:
            self._stack.pop()

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """The node's proxy; notes the module that it belongs to."""
        made = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        self.paths[made.node] = self._stack[-1]
        return made
