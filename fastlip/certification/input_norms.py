"""The norm in which perturbations of a network's inputs are measured: L2, or L2 with a weight for each input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastlip.certification.bounds.weights import runs_as
from fastlip.certification.graphs import Branch
from fastlip.certification.norms import DOWN, lp_factor
from fastlip.certification.unfolding import Link, understood
from fastlip.exporting.plain import Weigh, frozen_kind
from fastlip.inspection.evaluation import evaluating
from fastlip.inspection.traces import no_trace
from fastlip.nn.arguments import one_of
from fastlip.nn.weighting import InputWeights, check_weights

NormName = Literal["auto", "l2"]
MeasuredNorm = Literal["l2", "weighted l2"]  # what an audit found
_NAMES: tuple[NormName, ...] = get_args(NormName)
_KEEP_ORDER = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout)
_KEEP_ORDER_IN_GRAPHS = {
    *(torch.flatten, torch.reshape, torch.unflatten, torch.clone),
    *("flatten", "reshape", "view", "unflatten", "clone", "contiguous"),
}


@dataclass(frozen=True, eq=False)
class InputNorm:
    r"""The norm in which perturbations of inputs are measured.

    .. math:: \|\delta\|_w = \sqrt{\textstyle\sum_i w_i^2 \delta_i^2}, \qquad w_i = 1 \text{ for the L2 norm}

    Two are equal if they measure every perturbation alike.

    Attributes:
        input_shape: the shape of a sample, without the batch.
        weights: w, float64 and on the CPU, with sides of 1 where they are repeated; None for the L2 norm.

    Example:
        >>> model = torch.nn.Sequential(lip.InputWeights([1.0, 4.0]), lip.CayleyLinear(2, 2))
        >>> norm = fastlip.audit(model, (2,)).norm
        >>> norm.name, norm.length([3.0, 1.0]).item()
        ('weighted l2', 5.0)
        >>> print(norm)
        weighted L2 norm |w * x|, weights from 1 to 4
    """

    input_shape: tuple[int, ...]
    weights: Tensor | None = None

    @property
    def name(self) -> MeasuredNorm:
        """``"l2"`` or ``"weighted l2"``."""
        return "l2" if self.weights is None else "weighted l2"

    @property
    def largest(self) -> float:
        """The largest weight: by how much this norm exceeds the L2 norm at most."""
        return 1.0 if self.weights is None else self.weights.amax().item()

    def length(self, perturbation: Tensor | Sequence[Any]) -> Tensor:
        r"""The norm of a perturbation, or of each one of a batch, in float64.

        All perturbations in a box \|delta_i\| <= t_i have at most the norm of t, the length of its corner.

        Args:
            perturbation: of the shape of a sample, or (n, \*input_shape), in the units of the inputs.

        Returns:
            A number (), or (n,).

        Raises:
            ValueError: another shape.
        """
        values = torch.as_tensor(perturbation).detach().double()
        rank = len(self.input_shape)
        if tuple(values.shape[values.dim() - rank :]) != self.input_shape or values.dim() > rank + 1:
            raise ValueError(
                f"perturbation: got shape {tuple(values.shape)}, expected {self.input_shape} or a batch of it"
            )
        if self.weights is not None:
            values = values * self.weights.to(values.device)
        return torch.linalg.vector_norm(values.reshape(*values.shape[: values.dim() - rank], -1), dim=-1)

    def feature_radii(self, radii: Tensor) -> Tensor:
        r"""How far each input alone may move within radii in this norm: radius / w_i, rounded down.

        Args:
            radii: (n,).

        Returns:
            (n, \*input_shape) float64, in the units of the inputs.
        """
        rows = radii.double().cpu().view(-1, *[1] * len(self.input_shape))
        found = rows if self.weights is None else rows / self.weights * DOWN
        return found.expand(len(radii), *self.input_shape)

    def lp_factor(self, p: float, weighted: bool = True) -> float:
        r"""The factor by which a radius in this norm becomes one in an L_p norm.

        .. math:: |w \odot \delta|_2 \le d^{\max(0, 1/2 - 1/p)} \, |w \odot \delta|_p, \qquad
                  |w \odot \delta|_2 \le |w|_q \, |\delta|_p, \quad \frac1q = \max\left(0, \frac12 - \frac1p\right)

        by monotony of the norms and Hoelder's inequality: the factor is 1 over that of the right side. No larger
        factor holds for all perturbations.

        Args:
            p: the norm, at least 1; ``math.inf`` for Linf.
            weighted: whether the L_p norm is that of w delta (default), or that of delta itself, in the units of the
                inputs: 1 / max w for L1 and L2, 1 / \|w\|_2 for Linf.

        Returns:
            The factor, rounded down.

        Raises:
            ValueError: p below 1.
        """
        found = lp_factor(p, math.prod(self.input_shape))
        if self.weights is None or weighted:
            return found
        power = 0.5 - 1 / p
        if power <= 0:
            return 1 / self.largest * DOWN
        relative = (self.weights / self.largest).expand(self.input_shape)
        total = relative.pow(1 / power).sum().pow(power).item() * (1 + 2.0**-40)
        return 1 / (self.largest * total)

    def to_dict(self) -> dict[str, Any]:
        """The norm as plain values: ``norm``, and ``input_weights`` if there are any."""
        return {"norm": self.name, **({} if self.weights is None else {"input_weights": self.weights.tolist()})}

    def remark(self) -> list[str]:
        """The line that reports add for weighted inputs; none for the L2 norm."""
        return [] if self.weights is None else [f"perturbations are measured in the {self}"]

    def __str__(self) -> str:
        if self.weights is None:
            return "L2 norm"
        return f"weighted L2 norm |w * x|, weights from {self.weights.amin().item():.4g} to {self.largest:.4g}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InputNorm):
            return NotImplemented
        if self.input_shape != other.input_shape:
            return False
        own, others = (1.0 if norm.weights is None else norm.weights for norm in (self, other))
        return bool((torch.as_tensor(own, dtype=torch.float64) == others).all())

    def __hash__(self) -> int:
        return hash((self.input_shape, self.largest))


L2 = InputNorm(())  # of any shape


def check_norm(norm: NormName) -> NormName:
    """Returns the name of a norm that a caller may ask for, or raises ValueError."""
    return one_of("norm", norm, _NAMES)


def norm_of_links(links: Sequence[Link], x: Tensor) -> tuple[InputNorm, int | None]:
    """The norm of a network's inputs, and the index of the link that sets it: None for the L2 norm.

    It is the first link that does more than to give samples another shape, if that is
    :class:`fastlip.nn.InputWeights` or its exported form, whose call nothing has touched.

    Args:
        links: the modules that the network applies one after the other.
        x: a batch of samples.
    """
    shape, inner = tuple(x.shape[1:]), x
    for index, link in enumerate(links):
        if link.rule is not None and _is_weights(link.module):
            return InputNorm(shape, _weights_of(link, shape, tuple(inner.shape[1:]))), index
        if not _keeps_order(link):
            break
        inner = link.module(inner)
        if len(inner) != len(x) or inner.numel() != x.numel():
            break
    return InputNorm(shape), None


def norm_of_model(model: nn.Module, x: Tensor, norm: NormName) -> InputNorm:
    """The norm of a model's inputs, without an audit: for attacks on models that the audit need not understand.

    Args:
        model: in eval mode.
        x: a batch of at least one sample, where the model is.
        norm: ``"auto"`` or ``"l2"``.

    Raises:
        ValueError: another norm; input weights in a forward that cannot be followed.
    """
    shape = tuple(x.shape[1:])
    if check_norm(norm) == "l2" or not any(_holds_weights(module) for module in model.modules()):
        return InputNorm(shape)
    with evaluating(model), no_trace(model), torch.no_grad():
        links, unknown = understood(model, x[:1].repeat(2, *[1] * len(shape)))
        found, place = norm_of_links(links, x[:1])
    if place is None and unknown:
        raise ValueError(
            f"norm='auto': the model has InputWeights, and {', '.join(unknown)} hides whether its inputs reach them "
            "first; expected norm='l2', or a forward that can be followed"
        )
    return found


def require_same(name: str, norm: InputNorm, other: InputNorm, what: str) -> None:
    """Raises ValueError unless two norms are the same: results in different norms cannot be compared."""
    if (norm.weights is not None or other.weights is not None) and norm != other:
        same = str(norm) == str(other)
        raise ValueError(
            f"{name}: it is in the {norm}, {what} in the {other}{' with other values' if same else ''}; results in "
            "different norms cannot be compared"
        )


def _is_weights(module: nn.Module) -> bool:
    return runs_as(module, (InputWeights, Weigh), "forward")


def _keeps_order(link: Link) -> bool:
    """Whether a module gives each sample another shape at most, as a module or by functions in a forward."""
    module = link.module
    if isinstance(module, Branch):
        return {node.target for node in module.nodes if node in module.live} <= _KEEP_ORDER_IN_GRAPHS
    return link.rule is not None and runs_as(module, _KEEP_ORDER, "forward")


def _holds_weights(module: nn.Module) -> bool:
    return isinstance(module, InputWeights) or frozen_kind(module) is Weigh


def _weights_of(link: Link, shape: tuple[int, ...], inner: tuple[int, ...]) -> Tensor:
    """The weights, for samples that have another shape than the inputs if these are rearranged before."""
    module: Any = link.module
    own = module.weights if isinstance(module, InputWeights) else module.weights.detach()
    check_weights(f"layer {link.name!r} ({type(module).__name__}): weights", own)
    weights = own.detach().to("cpu", torch.float64)
    return weights.clone() if inner == shape or not weights.dim() else weights.expand(inner).reshape(shape)
