"""A module's forward as a graph, followed with a batch of samples: what it asks of shapes has an answer."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from fastlip.certification.graphs.functions import UnknownError

# What the code of others raises while it is traced: it may do anything with a proxy.
UNTRACEABLE = (ValueError, TypeError, RuntimeError, AttributeError, LookupError, AssertionError, ArithmeticError)


@dataclass
class Traced:
    """A graph of one input, and for each node its value for the samples that it was traced with.

    ``constants``: tensors that the forward makes by itself, by the names that the graph gives them.
    """

    graph: fx.Graph
    values: dict[fx.Node, Any] = field(repr=False)
    constants: dict[str, Any] = field(repr=False)


def graph_of(module: nn.Module, x: Tensor) -> Traced:
    """The module's forward on one batch, its other arguments being at their defaults.

    Children are not traced but called. Shapes are those of x; only the number of samples stays open: code that
    decides by it, or by values, has no graph. UnknownError says why there is none.
    """
    if type(module).__module__.startswith("torch.nn."):
        raise UnknownError
    if "forward" in vars(module):
        raise UnknownError("its forward was replaced on the instance")
    tracer = ShapeTracer(x)
    attributes = set(vars(module))
    try:
        graph = tracer.trace(module)
    except UnknownError:
        raise
    except UNTRACEABLE as error:
        raise UnknownError(f"its forward cannot be followed: {first_line(error)}") from error
    finally:
        made = {name: vars(module).pop(name) for name in set(vars(module)) - attributes if _is_constant(name)}
    return Traced(graph, tracer.values, made)


def known(value: Any) -> Any:
    """A value of a node; UnknownError if computing it failed."""
    if isinstance(value, Exception):
        raise UnknownError(f"its forward cannot be followed: {first_line(value)}")
    return value


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def _is_constant(name: str) -> bool:
    return name.startswith("_tensor_constant")


class ShapeTracer(fx.Tracer):
    """Traces one module and knows a value for every node; every module that it calls is left whole."""

    def __init__(self, x: Tensor):
        super().__init__()
        self.x = x
        self.values: dict[fx.Node, Any] = {}
        self._depth = 0  # above 0 while values are computed, which must not be recorded

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The first argument only: the others keep their defaults."""
        names = list(inspect.signature(root_fn).parameters)
        name = names[1].lstrip("*") if len(names) > 1 else "x"
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A node, or while values are computed the module's own output."""
        if self._depth:
            return forward(*args, **kwargs)
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A node for a parameter, or while values are computed the parameter."""
        return attr_val if self._depth else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """The node's proxy, once its value is known."""
        made = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        self._depth += 1
        try:
            self.values[made.node] = self._value(made.node)
        except UNTRACEABLE as error:
            # What has no rule is named before what fails.
            self.values[made.node] = error
        finally:
            self._depth -= 1
        return made

    def proxy(self, node: fx.Node) -> Any:
        """A proxy that knows its shape."""
        return _Shaped(node, self)

    def _value_of(self, node: fx.Node) -> Any:
        if node not in self.values:  # a tensor among the arguments has a node, but no proxy
            self.values[node] = self._value(node)
        return known(self.values[node])

    def _value(self, node: fx.Node) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), self._value_of)
        if node.op == "placeholder":
            return self.x
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.root)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]


class _Shaped(fx.Proxy):
    """A proxy whose dtype, rank and sides are known, except for the number of samples."""

    def _known(self) -> Any:
        return known(self.tracer.values[self.node])  # pyright: ignore[reportAttributeAccessIssue]

    def _sides(self) -> tuple[Any, ...]:
        known = self._known()
        if not isinstance(known, Tensor):
            raise UnknownError(f"it asks for the shape of {type(known).__name__}")
        first = self.tracer.create_proxy("call_method", "size", (self, 0), {}) if known.dim() else ()
        return (first, *known.shape[1:]) if known.dim() else ()

    @property
    def shape(self) -> Any:
        """(n, ...) with n open."""
        return self._sides()

    @property
    def ndim(self) -> Any:
        """The rank."""
        return self._known().ndim

    @property
    def dtype(self) -> Any:
        """The dtype."""
        return self._known().dtype

    @property
    def device(self) -> Any:
        """The device."""
        return self._known().device

    @property
    def requires_grad(self) -> Any:
        """False: the audit asks for no gradient."""
        return False

    def dim(self) -> Any:
        """The rank."""
        return self._known().dim()

    def ndimension(self) -> Any:
        """The rank."""
        return self._known().dim()

    def is_floating_point(self) -> Any:
        """Whether the dtype is a floating-point one."""
        return self._known().is_floating_point()

    def size(self, dim: Any = None) -> Any:
        """The shape, or one side of it."""
        sides = self._sides()
        return sides if dim is None else sides[dim]

    def __len__(self) -> int:
        """Refused: Python wants a number here."""
        raise UnknownError("it asks for the number of samples by len()")

    def __iter__(self) -> Any:
        """The parts of a tuple; samples cannot be taken one by one."""
        known = self._known()
        if isinstance(known, (tuple, list)):
            places = [(self, index) for index in range(len(known))]
            return iter([self.tracer.create_proxy("call_function", operator.getitem, place, {}) for place in places])
        raise UnknownError("it takes the samples one by one")

    def __bool__(self) -> bool:
        """Refused: a decision by values or by the number of samples."""
        raise UnknownError("control flow that depends on values, or on the number of samples, has no bound")
