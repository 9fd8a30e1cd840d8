"""How rounding errors grow through a network, in the worst case and as independent roundings add up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastlip.certification.bounds import Bound, bound_module
from fastlip.certification.rounding import layers as _layers  # noqa: F401  (registers the rules of our layers)
from fastlip.certification.rounding.rules import worst_case
from fastlip.certification.rounding.terms import Rounding, Unit

MODELS = ("worst-case", "probabilistic")
_SUMMANDS = 2.0  # roundings of a sum or a product by a constant, of its result


def check_model_name(value: str) -> str:
    """Returns the name of a model of rounding, or raises ValueError."""
    if value not in MODELS:
        raise ValueError(f"rounding={value!r}: allowed are {', '.join(map(repr, MODELS))}")
    return value


class Rounded(NamedTuple):
    """For each sample: the error of what was computed, what grows with the radius, and how far all this holds.

    ``error``: of the outputs for x, in L2 norm. Those of any z at a distance of at most r have the error
    ``near`` + ``growth`` r, for r up to ``reach``.
    """

    error: Tensor
    near: Tensor
    growth: Tensor
    reach: Tensor


class WorstCase:
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

    def link(self, module: nn.Module, row: Any, size: Tensor, dtype: torch.dtype, y: Tensor, state: Tensor) -> Tensor:
        """The state behind a module of the chain: row is its bound; the norm and dtype of its input."""
        unit = Unit.of(dtype, y.dtype)
        key = id(row), unit
        if key not in self.rules:
            self.rules[key] = worst_case(module, row, row.input_shape, row.output_shape, unit)
        return self._add(self.rules[key], state, row.bound * state, size, norms(y))

    def measure(self, module: nn.Module, input_shape: Any, output_shape: Any) -> Measured:
        """What :meth:`node` reads of the module form of a function."""
        return Measured(bound_module(module, input_shape, output_shape), module, input_shape, output_shape)

    def node(self, found: Any, x: Tensor, y: Tensor, before: list[Tensor], state: Tensor) -> Tensor:
        """The state behind a function of a graph: before, that of each source; x, the first source's value."""
        unit = Unit.of(x.dtype, y.dtype)
        if isinstance(found, Bound):
            found = Measured(found, nn.Module(), tuple(x.shape[1:]), tuple(y.shape[1:]))
        own = worst_case(found.module, found.bound, found.input_shape, found.output_shape, unit)
        # The bias of a function is not known here: its norm is at most |y| + value |x|.
        bias = Rounding(own.sums * found.value, output=own.sums + _SUMMANDS * unit.u)
        # A number that is flushed to zero may have been multiplied by what sizes have grown by.
        factor = (state[4] / before[0][4].clamp_min(unit.tiny)).amax().item()
        lost = own.constant * (1 + factor)
        return self._add(own.plus(bias)._replace(constant=lost), before[0], state, norms(x), norms(y))

    def _add(self, own: Rounding, before: Tensor, state: Tensor, sizes: Tensor, results: Tensor) -> Tensor:
        """State, which has grown by the layer's bound, with the layer's own error added."""
        slope = own.relative + own.quadratic * (3 * sizes + 1)
        more = slope * before[3:] + own.output * state[3:]  # of the own error, at radius 0 and for each unit of it
        error = own.relative * sizes + own.constant + own.output * results + own.quadratic * sizes * sizes
        error = error * (1 + 4 * own.output)  # the outputs near x are off as well
        self._limit(before, own.largest - sizes)
        if own.quadratic:
            self._limit(before, sizes + 1)
        state = state.clone()
        state[0] += error
        state[1] += error + more[0]
        state[2] += more[1]
        state[3] += 2 * error + more[0]
        state[4] += more[1]
        return state

    def _limit(self, state: Tensor, distance: Tensor | float) -> None:
        """Radii beyond which the computed inputs may be further apart than that are out of reach."""
        left = distance - state[3]
        radius = torch.where(state[4] > 0, left / state[4].clamp_min(torch.finfo(torch.float64).tiny), math.inf)
        self.reach = torch.minimum(self.reach, torch.where(left > 0, radius, 0.0))

    def finish(self, state: Tensor) -> Rounded:
        """What the state means at the outputs."""
        return Rounded(state[0], state[1], state[2], self.reach)


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


class Probabilistic:
    """Follows errors of independent roundings, which add up in square (Higham, Mary 2019)."""

    def __init__(self, samples: int, device: torch.device, rules: dict[Any, Rounding]):
        self.start = torch.zeros(samples, dtype=torch.float64, device=device)

    measure = staticmethod(bound_module)

    def link(self, module: nn.Module, row: Any, size: Tensor, dtype: torch.dtype, y: Tensor, state: Tensor) -> Tensor:
        """The error behind a module of the chain: row is its bound."""
        state = state * row.bound
        return state if row.roundings == 0 else torch.hypot(state, _independent(row, row.bound, size, dtype, y))

    def node(self, found: Any, x: Tensor, y: Tensor, before: list[Tensor], state: Tensor) -> Tensor:
        """The error behind a function of a graph."""
        return torch.hypot(state, _independent(found, found.value, norms(x), x.dtype, y))

    def finish(self, state: Tensor) -> Rounded:
        """The same error is assumed for the image and for those near it."""
        return Rounded(state, state, torch.zeros_like(state), torch.full_like(state, math.inf))


FOLLOWERS: dict[str, Callable[..., Any]] = {"worst-case": WorstCase, "probabilistic": Probabilistic}


def _independent(found: Any, value: float, size: Tensor, dtype: torch.dtype, y: Tensor) -> Tensor:
    # The norms are of the computed x and y, which are off by the error itself at most.
    roundings = found.roundings
    if roundings is None:
        roundings = (
            4 * value * math.sqrt(math.prod(found.input_shape) if hasattr(found, "input_shape") else y[0].numel())
        )
    unit = torch.finfo(dtype).eps / 2
    return unit * (roundings * size + found.constant + 2 * norms(y))


def norms(x: Tensor) -> Tensor:
    """(n,): the L2 norm of each sample."""
    return torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1, dtype=torch.float64)
