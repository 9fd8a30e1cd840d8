"""A network as a graph of torch alone, and its rounding errors as a function of the norms of its layers' values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from fastlip.certification.graphs import Branch, Growth
from fastlip.certification.rounding import Rounding
from fastlip.certification.rounding.following import Added, Values, WorstCase, advanced
from fastlip.certification.unfolding import Link

_ROWS = 5  # of a state
_PER_LINK, _PER_NODE = 1 + _ROWS, 2 + 2 * _ROWS  # variables that they may need


class Step(nn.Module):
    """Numbers made of the variables before: a function of rows that are affine in them.

    Attributes:
        function: the root of a sum of squares, a maximum, or a step with a quadratic error; None returns the rows.
        factors: (variables, rows).
        constants: (rows,).
    """

    factors: Tensor
    constants: Tensor

    def __init__(self, function: Growth | Rounding | None, factors: Tensor, constants: Tensor):
        super().__init__()
        self.function = function
        self.register_buffer("factors", factors)
        self.register_buffer("constants", constants)

    def forward(self, variables: Tensor) -> Tensor:
        """(n, 5) or (n, rows), for variables (n, k)."""
        found = variables @ self.factors + self.constants
        if self.function is None:
            return found
        rows = found.t()
        if isinstance(self.function, Rounding):
            step = self.function, 1.0, rows[-2], rows[-1]
            return advanced(rows[_ROWS:-2], [step], rows[:_ROWS])[0].t()
        states = [rows[_ROWS * index : _ROWS * (index + 1)] for index in range(len(self.function.factors))]
        return self.function(*states).t()


class Recorder(WorstCase):
    r"""Follows one batch through a network, writes down what is applied to it, and keeps the norms open.

    :class:`WorstCase` follows errors by sums and products with constants. Its state is therefore affine in the norms
    of the values, as long as nothing is joined. What is not affine becomes new variables: see :class:`Step`. The
    coefficients are read off: in the first column of a state all variables are 0, and in each other one of them is 1.

    Attributes:
        graph: the network, from its input to its output and the norms, the first variables.
        layers: the modules that the graph calls.
        tensors: those that it reads, by name.
        limits: for each step that rounds, the largest value of a row, the row, and how it grows with the radius.
    """

    records = True

    def __init__(self, links: Sequence[Link], x: Tensor, form: Callable[[nn.Module], nn.Module]):
        self._columns = 1 + _places(links)
        super().__init__(self._columns, torch.device("cpu"), {})
        self.graph = fx.Graph()
        self.layers = nn.ModuleList()
        self.tensors: dict[str, Tensor] = {}
        self.limits: list[tuple[float, Tensor, Tensor]] = []
        self._form = form
        self._placed: dict[int, int] = {}  # layers by the module that they are forms of
        self._kept: list[Any] = [x]  # an id stands for an object that lives
        self._nodes: dict[int, fx.Node] = {}  # of the graph, by the tensor that has their value
        self._norms: dict[tuple[int, int], fx.Node] = {}
        self._inner: dict[fx.Node, Any] = {}  # of the graph, by the nodes of branches
        self._open: set[fx.Node] = set()  # nodes of branches that depend on the input, or on its shape
        self._used = 0
        self._variables: dict[tuple[int, int], int] = {}  # the columns of norms
        self._steps: list[tuple[Growth | Rounding, Tensor, list[int]]] = []
        self._see(x, self.graph.placeholder("images"))

    def values(self, x: Tensor) -> Values:
        """A variable for the norm of x."""
        key = id(x), x._version
        if key not in self._variables:
            self._variables[key] = self._new_columns(1)[0]
        norms = torch.zeros(self._columns, dtype=torch.float64)
        norms[self._variables[key]] = 1.0
        return Values(norms, x.dtype)

    def called(self, module: nn.Module, x: Tensor, y: Tensor) -> Values:
        """Writes down the call of a module; a variable for the norm of its output."""
        if id(module) not in self._placed:
            self._placed[id(module)] = len(self.layers)
            self.layers.append(self._form(module))
            self._kept.append(module)
        place = self._placed[id(module)]
        self._see(y, self.graph.call_module(f"layers.{place}", (self._nodes[id(x)],)))
        return self.values(y)

    def entered(self, branch: Branch, x: Tensor) -> None:
        """Writes down where a branch starts."""
        self._inner[branch.source] = self._nodes[id(x)]
        self._open.add(branch.source)

    def evaluated(self, branch: Branch, node: fx.Node, value: Any) -> None:
        """Writes down a step of a branch, or its value if it depends on the weights alone."""
        if node.op == "call_module" and node in branch.live:
            self._inner[node] = self._nodes[id(value)]
            self._open.add(node)
            return
        if not self._open.isdisjoint(node.all_input_nodes):
            if node.op == "call_module":
                raise ValueError(f"radius=True: {node.target!r} is called on what depends on the number of samples")
            self._open.add(node)
            args, kwargs = map_arg((node.args, dict(node.kwargs)), lambda used: self._inner[used])
            self._inner[node] = self.graph.create_node(node.op, node.target, args, kwargs)
            if isinstance(value, Tensor) and node in branch.live:
                self._see(value, self._inner[node])
        elif isinstance(value, Tensor):
            name = f"tensor_{len(self.tensors)}"
            self.tensors[name] = value.detach().clone()
            self._inner[node] = self.graph.get_attr(name)
        else:
            self._inner[node] = value

    def grow(self, growth: Growth, before: list[Tensor]) -> Tensor:
        """The state after a function of a graph; a root or a maximum is a step."""
        return growth(*before) if growth.kind == "sum" else self._step(growth, torch.cat(before))

    def finished(self, state: Tensor, logits: Tensor) -> tuple[list[Step], Step]:
        """Ends the graph, whose outputs are the last value and the norms. Returns the steps, and the last rows.

        These are the error and how it grows, then the row and the growth of each limit.
        """
        self.graph.output((self._nodes[id(logits)], *[self._norms[key] for key in self._variables]))
        for norm in self._norms.values():
            if not norm.users:
                (flat,) = norm.all_input_nodes
                self.graph.erase_node(norm)
                self.graph.erase_node(flat)
        columns, steps = list(self._variables.values()), []
        for function, rows, made in self._steps:
            steps.append(_affine(function, rows, columns))
            columns = columns + made
        limits = [row for _, *rows in self.limits for row in rows]
        return steps, _affine(None, torch.stack((state[0] + state[1], state[2], *limits)), columns)

    def _add(self, state: Tensor, steps: Sequence[Added], grown: Tensor | None = None) -> Tensor:
        for own, bound, sizes, results in steps:
            self._limit(own, state, sizes)
            after = bound * state if grown is None else grown
            if own.quadratic:
                state = self._step(own, torch.cat((after, state, sizes[None], results[None])))
            else:
                state, _ = advanced(state, [(own, bound, sizes, results)], after)
        return state

    def _limit(self, own: Rounding, before: Tensor, sizes: Tensor) -> None:
        largest = min(own.largest, torch.finfo(torch.float64).max)
        self.limits.append((largest, sizes + before[3], before[4]))
        if own.quadratic:
            self.limits.append((1.0, before[3] - sizes, before[4]))

    def _step(self, function: Growth | Rounding, rows: Tensor) -> Tensor:
        """A state of new variables."""
        made = self._new_columns(_ROWS)
        self._steps.append((function, rows, made))
        state = torch.zeros(_ROWS, self._columns, dtype=torch.float64)
        state[range(_ROWS), made] = 1.0
        return state

    def _new_columns(self, count: int) -> list[int]:
        first, self._used = self._used + 1, self._used + count
        return list(range(first, first + count))

    def _see(self, value: Tensor, node: fx.Node) -> None:
        """A value and its node, and a node for its norm, which is left out in the end if nothing asks for it."""
        self._kept.append(value)
        self._nodes[id(value)] = node
        flat = self.graph.call_method(*(("unsqueeze", (node, 1)) if value.dim() == 1 else ("flatten", (node, 1))))
        options = {"dim": 1, "dtype": torch.float64}
        self._norms[id(value), value._version] = self.graph.call_function(torch.linalg.vector_norm, (flat,), options)


def _places(links: Sequence[Link]) -> int:
    """The most variables that a network may need."""
    count = 1
    for link in links:
        count += _PER_LINK
        if isinstance(link.module, Branch):
            inner = [_places(found) for found in link.module.links.values()]
            count += _PER_NODE * len(link.module.nodes) + sum(inner)
    return count


def _affine(function: Growth | Rounding | None, rows: Tensor, columns: list[int]) -> Step:
    """Rows of states, given at 0 and at the unit of each variable, as functions of the variables in these columns."""
    return Step(function, (rows[:, columns] - rows[:, :1]).t().contiguous(), rows[:, 0].clone())
