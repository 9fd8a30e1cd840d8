"""Follows rounding errors through a network, in the worst case and as independent roundings add up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, fx, nn

from fastlip.certification.bounds import Bound, bound_module
from fastlip.certification.graphs import Branch, Growth
from fastlip.certification.rounding.rules import worst_case
from fastlip.certification.rounding.terms import Rounding, Unit
from fastlip.inspection.sameness import norms

RoundingModel = Literal["worst-case", "probabilistic"]
MODELS: tuple[RoundingModel, ...] = get_args(RoundingModel)
_SUMMANDS = 2.0  # roundings of a sum or a product by a constant, relative to its result
_TINY = torch.finfo(torch.float64).tiny


def check_model_name(value: RoundingModel) -> RoundingModel:
    """Returns the name of a model of rounding, or raises ValueError."""
    if value not in MODELS:
        raise ValueError(f"rounding={value!r}: allowed are {', '.join(map(repr, MODELS))}")
    return value


class Rounded(NamedTuple):
    """The error of each sample's outputs, how it grows with the radius, and up to which radius all this holds.

    ``error`` bounds that of the outputs for x, in L2 norm; ``near`` + ``growth`` r that of the outputs for any z at a
    distance of at most r, for r up to ``reach``.
    """

    error: Tensor
    near: Tensor
    growth: Tensor
    reach: Tensor


class Values(NamedTuple):
    """The samples' norms (n,) at one place of the network, and the dtype of their entries."""

    norms: Tensor
    dtype: torch.dtype


# A module that is applied, its row of the audit, its input and its output.
Step = tuple[nn.Module, Any, Values, Values]
# The own error of a step, its bound, and the norms of its inputs and outputs.
Added = tuple[Rounding, float, Tensor, Tensor]


class _Onlooker:
    """How a model of rounding treats values that it only passes.

    Attributes:
        records: whether it is to see each module that is applied: ``called(module, x, y)``, y being the output for x,
            which may have been changed in place, returns the :class:`Values` of y.
    """

    records = False

    def values(self, x: Tensor) -> Values:
        """The norms of a batch of samples."""
        return Values(norms(x), x.dtype)

    def entered(self, branch: Branch, x: Tensor) -> None:
        """Takes note of the value of a branch's source."""

    def evaluated(self, branch: Branch, node: fx.Node, value: Any) -> None:
        """Takes note of the value of a branch's node."""

    def grow(self, growth: Growth, before: list[Tensor]) -> Tensor:
        """The state after a function of a graph that rounds nothing."""
        return growth(*before)


class WorstCase(_Onlooker):
    r"""Follows errors by triangle inequalities.

    With x_l the computed input of layer l for an image and z_l that for a perturbed one, L_l the layer's bound and
    e_l(v) = a_l |v| + ... its own error for an input v: the errors E(x), E(z) of the outputs and the distance D of
    the computed outputs become

    .. math:: E(x) \leftarrow L_l E(x) + e_l(x_l), \quad E(z) \leftarrow L_l E(z) + e_l(x_l) + a_l D, \quad
              D \leftarrow L_l D + 2 e_l(x_l) + a_l D

    E(z) and D are linear in the radius: their two coefficients are kept.
    """

    def __init__(self, samples: int, device: torch.device, rules: dict[Any, Rounding]):
        # E(x); E(z) at radius 0 and for each unit of it; D likewise.
        self.start = torch.zeros(5, samples, dtype=torch.float64, device=device)
        self.start[4] = 1.0
        self.reach = torch.full((samples,), math.inf, dtype=torch.float64, device=device)
        self.rules = rules  # of each row of the audit: the same for all batches

    def links(self, steps: Sequence[Step], state: Tensor) -> Tensor:
        """The state after modules that are applied one after the other."""
        grown = []
        for module, row, x, y in steps:
            key = id(row), x.dtype, y.dtype
            own = self.rules.get(key)
            if own is None:
                own = worst_case(module, row, row.input_shape, row.output_shape, Unit.of(x.dtype, y.dtype))
                self.rules[key] = own
            grown.append((own, row.bound, x.norms, y.norms))
        return self._add(state, grown)

    def measure(self, module: nn.Module, input_shape: Any, output_shape: Any) -> Measured:
        """The bound of a function's module form, as :meth:`node` reads it."""
        return Measured(bound_module(module, input_shape, output_shape), module, input_shape, output_shape)

    def node(self, found: Any, x: Tensor, y: Tensor, growth: Growth, before: Tensor, state: Tensor) -> Tensor:
        """The state after a function of a graph; x and before are the value and the state of its first input."""
        unit = Unit.of(x.dtype, y.dtype)
        if isinstance(found, Bound):
            found = Measured(found, nn.Module(), tuple(x.shape[1:]), tuple(y.shape[1:]))
        own = worst_case(found.module, found.bound, found.input_shape, found.output_shape, unit)
        # The bias of a function is not known here: its norm is at most |y| + value |x|.
        bias = Rounding(own.sums * found.value, output=own.sums + _SUMMANDS * unit.u)
        # A number that is flushed to zero may have been multiplied by what sizes have grown by.
        lost = own.constant * (1 + growth.largest)
        own = own.plus(bias)._replace(constant=lost)
        return self._add(before, [(own, found.value, self.values(x).norms, self.values(y).norms)], state)

    def _add(self, state: Tensor, steps: Sequence[Added], grown: Tensor | None = None) -> Tensor:
        """The state after steps; see :func:`advanced`."""
        state, self.reach = advanced(state, steps, grown, self.reach)
        return state

    def finish(self, state: Tensor) -> Rounded:
        """Returns the bounds that the state at the outputs stands for."""
        return Rounded(state[0], state[1], state[2], self.reach)


def advanced(
    state: Tensor, steps: Sequence[Added], grown: Tensor | None = None, reach: Any = math.inf
) -> tuple[Tensor, Any]:
    """The state of :class:`WorstCase` after steps, whose own errors are added, and the reach.

    Args:
        state: that before the steps.
        steps: one after the other.
        grown: takes the place of the state times the bound for a single step of several inputs.
        reach: (n,), the radius up to which all this holds; inf leaves it as it is.
    """
    for own, bound, sizes, results in steps:
        before, state = state, bound * state if grown is None else grown
        if isinstance(reach, Tensor):
            # Radii at which the computed inputs may be further apart than that are out of reach.
            distance = own.largest - sizes
            if own.quadratic:
                distance = torch.minimum(distance, sizes + 1)
            left = distance - before[3]
            radius = torch.where(before[4] > 0, left / before[4].clamp_min(_TINY), math.inf)
            reach = torch.minimum(reach, torch.where(left > 0, radius, 0.0))
        slope = own.relative + own.quadratic * (3 * sizes + 1) if own.quadratic else own.relative
        # More of the own error near x, at radius 0 and for each unit of it.
        more = slope * before[3:] + own.output * state[3:]
        error = own.relative * sizes + own.constant + own.output * results
        if own.quadratic:
            error = error + own.quadratic * sizes * sizes
        error = error * (1 + 4 * own.output)  # the outputs near x are off as well
        near, further = more[0], more[1]
        state = state + torch.stack((error, error + near, further, 2 * error + near, further))
    return state, reach


class Measured(NamedTuple):
    """The bound of a function's module form, and what its rounding depends on."""

    bound: Bound
    module: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    @property
    def value(self) -> float:
        """The Lipschitz bound."""
        return self.bound.value


class Probabilistic(_Onlooker):
    """Follows errors of independent roundings, which add up in square (Higham, Mary 2019)."""

    def __init__(self, samples: int, device: torch.device, rules: dict[Any, Rounding]):
        self.start = torch.zeros(samples, dtype=torch.float64, device=device)

    measure = staticmethod(bound_module)

    def links(self, steps: Sequence[Step], state: Tensor) -> Tensor:
        """The errors after modules that are applied one after the other."""
        for _, row, x, y in steps:
            state = state * row.bound
            if row.roundings != 0:
                own = _independent(row, row.bound, x, y.norms, math.prod(row.input_shape))
                state = torch.hypot(state, own)
        return state

    def node(self, found: Any, x: Tensor, y: Tensor, growth: Growth, before: Tensor, state: Tensor) -> Tensor:
        """The error after a function of a graph."""
        return torch.hypot(state, _independent(found, found.value, Values(norms(x), x.dtype), norms(y), y[0].numel()))

    def finish(self, state: Tensor) -> Rounded:
        """The same error is assumed for the image and for those near it."""
        return Rounded(state, state, torch.zeros_like(state), torch.full_like(state, math.inf))


FOLLOWERS: dict[str, Callable[..., Any]] = {"worst-case": WorstCase, "probabilistic": Probabilistic}


def _independent(found: Any, value: float, x: Values, y_norms: Tensor, entries: int) -> Tensor:
    """The error of a module or function by itself; where nothing is known of it, that of sums of ``entries``."""
    # The norms are of the computed x and y, which are off by the error itself at most.
    roundings = 4 * value * math.sqrt(entries) if found.roundings is None else found.roundings
    unit = torch.finfo(x.dtype).eps / 2
    return unit * (roundings * x.norms + found.constant + 2 * y_norms)
