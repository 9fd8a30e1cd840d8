"""``fastlip.certify_outputs``: what a network gives for each sample, and by how much that can change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastlip.certification.auditing import Audit
from fastlip.certification.certificates.evaluated import Evaluated, certifying, evaluated
from fastlip.certification.input_norms import InputNorm
from fastlip.certification.rounding import Rounded, RoundingModel
from fastlip.inspection.evaluation import bar, check_eps
from fastlip.inspection.loading import Loader, batches_of

UP = 1 + 2.0**-48  # a few roundings in float64


class Interval(NamedTuple):
    """Bounds of values.

    Attributes:
        low: the least value, -inf where there is no bound.
        high: the largest value, inf where there is no bound.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2)).eval()
        >>> interval = fastlip.certify_outputs(model, [torch.rand(8, 4)]).interval(0.1)
        >>> bool((interval.low < interval.high).all())
        True
    """

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class CertifiedOutputs:
    r"""The result of :func:`fastlip.certify_outputs` on n samples: their outputs, and how fast these can change.

    For all samples z at a distance of at most eps from x, in L2 norm or the weighted one that ``norm`` names, the
    outputs that the network computes satisfy

    .. math:: |f(z) - f(x)| \le L \varepsilon + e(\varepsilon), \qquad
              |f_i(z) - f_i(x)| \le L_i \varepsilon + e(\varepsilon)

    with e(eps) the bound of the rounding errors of both evaluations. ``outputs[rows]`` has some of the samples.

    Attributes:
        values: (n, \*output_shape), the outputs as computed, float64.
        targets: the labels or targets of the loader, one per sample; None if it has none.
        lipschitz: the audited bound L of the network.
        slopes: (\*output_shape), bounds L_i of how fast each output changes: L, or L_body |w_i| if the network ends
            in a linear layer with rows w_i and that is less.
        class_slopes: (c, c), bounds of how fast the differences of two outputs change; (2, 2) of one output's change.
        errors: bounds of the rounding errors of each sample.
        audit: the bound of every layer.
        rounding_model: ``"worst-case"`` or ``"probabilistic"``.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2)).eval()
        >>> outputs = fastlip.certify_outputs(model, [torch.rand(8, 4)])
        >>> len(outputs), len(outputs[:3]), tuple(outputs.change(0.1).shape)
        (8, 3, (8, 2))
    """

    values: Tensor
    targets: Tensor | None
    lipschitz: float
    slopes: Tensor
    class_slopes: Tensor = field(repr=False)
    errors: Rounded = field(repr=False)
    audit: Audit = field(repr=False)
    rounding_model: RoundingModel = "worst-case"

    @property
    def norm(self) -> InputNorm:
        """The norm of perturbations in which all eps are."""
        return self.audit.norm

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> CertifiedOutputs:
        rows = rows if isinstance(rows, slice) else torch.as_tensor(rows)
        if isinstance(rows, Tensor) and rows.dim() != 1:
            raise TypeError(
                f"outputs[...]: got an index of {rows.dim()} dimensions, expected a slice or (k,) indices"
            )
        targets = None if self.targets is None else self.targets[rows]
        errors = Rounded(*(part[rows] for part in self.errors))
        return replace(self, values=self.values[rows], targets=targets, errors=errors)

    def norm_change(self, eps: float) -> Tensor:
        """The largest change of the outputs of each sample in L2 norm, (n,), inf where there is no bound.

        Args:
            eps: the norm of the perturbation, at least 0.
        """
        eps = _checked(eps)
        return _finite(self.lipschitz * eps) + lost_within(self.errors, eps)

    def change(self, eps: float) -> Tensor:
        r"""The largest change of each output, (n, \*output_shape), inf where there is no bound.

        Args:
            eps: the norm of the perturbation, at least 0.
        """
        eps = _checked(eps)
        lost = lost_within(self.errors, eps).reshape(-1, *(1 for _ in self.slopes.shape))
        return (self.slopes * (eps * UP)).nan_to_num(nan=torch.inf, posinf=torch.inf) + lost

    def interval(self, eps: float) -> Interval:
        r"""Bounds of each output under every perturbation, of shape (n, \*output_shape).

        Args:
            eps: the norm of the perturbation, at least 0.

        Returns:
            An :class:`fastlip.certification.Interval`, ``low`` and ``high``.
        """
        return around(self.values, self.change(eps))

    def worst_error(self, eps: float) -> Tensor:
        r"""The largest absolute error |f_i(z) - y_i| of each output under every perturbation.

        Args:
            eps: the norm of the perturbation, at least 0.

        Returns:
            (n, \*output_shape), float64; its mean bounds the mean absolute error.

        Raises:
            ValueError: a loader without targets, or targets that are not numbers in the shape of the outputs.
        """
        low, high = self.interval(eps)
        targets = self.numbers()
        return torch.maximum(high - targets, targets - low)

    def numbers(self) -> Tensor:
        """The targets as float64, in the shape of the outputs.

        Raises:
            ValueError: a loader without targets, or targets of another size, or NaN or Inf among them.
        """
        targets = self.known_targets()
        if targets.numel() != self.values.numel():
            raise ValueError(
                f"targets: got shape {tuple(targets.shape)}, expected {tuple(self.values.shape)} as the outputs"
            )
        if not targets.isfinite().all():
            raise ValueError("targets: they contain NaN or Inf")
        return targets.reshape(self.values.shape).double()

    def known_targets(self) -> Tensor:
        """The targets.

        Raises:
            ValueError: a loader without labels or targets.
        """
        if self.targets is None:
            raise ValueError("outputs: the loader had no labels or targets, expected batches (inputs, labels)")
        return self.targets

    def __str__(self) -> str:
        shape = "x".join(map(str, self.values.shape[1:])) or "1 number"
        lines = (
            f"outputs ({shape}) of {len(self)} samples",
            f"Lipschitz constant at most {self.lipschitz:.9g} (audited)",
            *self.norm.remark(),
            f"error of the forward at most {self.errors.error.amax().item():.3g} ({self.rounding_model})",
        )
        return "\n".join(lines)


def certify_outputs(
    model: nn.Module,
    loader: Loader,
    *,
    input_shape: tuple[int, ...] | None = None,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    rounding: RoundingModel = "worst-case",
    bounds: tuple[float | Tensor, float | Tensor] | None = None,
) -> CertifiedOutputs:
    r"""Evaluates a model once, with bounds of how far each output can move: the start of most certificates.

    .. math:: |f(z) - f(x)| \le L \varepsilon + e(\varepsilon) \;\text{ for all }\; |z - x| \le \varepsilon

    L is the audited bound (:func:`fastlip.audit`) and e a bound of the rounding errors of f(x) and f(z), as in
    :func:`fastlip.certify`. The result gives intervals for regression. Further certificates are functions of it:
    :func:`fastlip.certify_top_k`, :func:`fastlip.certify_target`, :func:`fastlip.certify_detector` and
    :func:`fastlip.conformal.calibrate`. They need no other pass through the network.

    Args:
        model: in eval mode, with outputs (n,) or (n, ...).
        loader: batches of inputs with labels or targets (pairs, or dicts with usual keys), or of inputs alone;
            or a whole set, as of :func:`fastlip.certify`, or a tensor of inputs.
        input_shape: the shape of one input; default None takes that of the first batch.
        device: where to run; default None is where the model is. The model itself is not moved.
        dtype: ``torch.float32`` or ``torch.float64`` certifies a copy of the model in that type; default None
            certifies the model as it is.
        progress: shows a progress bar; default False.
        rounding: ``"worst-case"`` (default) or ``"probabilistic"``, see :func:`fastlip.certify`.
        bounds: the least and largest value that inputs may have; others are refused. Default None allows any.

    Returns:
        A :class:`fastlip.certification.CertifiedOutputs`, on the CPU.

    Raises:
        TypeError: modules that the audit does not understand, all named.
        ValueError: what :func:`fastlip.certify` refuses, apart from labels; targets in some of the batches only.

    Example:
        >>> model = torch.nn.Sequential(lip.CayleyLinear(4, 8), lip.MaxMin(), lip.CayleyLinear(8, 1)).eval()
        >>> x = torch.rand(16, 4)
        >>> outputs = fastlip.certify_outputs(model, [(x, x.sum(1))])
        >>> low, high = outputs.interval(eps=0.1)
        >>> near = outputs.values + 0.1 * outputs.lipschitz
        >>> bool((high >= near).all()), round((high - low).amax().item(), 3)
        (True, 0.2)
    """
    with certifying(model, device, dtype, rounding) as (model, parameter):
        batches = bar(batches_of(loader, labelled=False), "certify", progress)
        each = evaluated(model, parameter, batches, input_shape, rounding, bounds, labelled=False)
        return _collect(each, rounding)


def _collect(batches: Iterable[Evaluated], rounding: RoundingModel) -> CertifiedOutputs:
    values: list[Tensor] = []
    targets: list[Tensor] = []
    errors: list[Tensor] = []
    prepared = None
    for index, batch in enumerate(batches):
        prepared = batch.prepared
        values.append(batch.outputs.double().cpu())
        errors.append(torch.stack(batch.error).cpu())
        if batch.labels is not None:
            targets.append(batch.labels.detach().cpu())
        if len(targets) not in (0, index + 1):
            raise ValueError(f"loader: batch {index} has {'no ' * (batch.labels is None)}labels, unlike those before")
        if targets and targets[-1].shape[1:] != targets[0].shape[1:]:
            shapes = tuple(targets[-1].shape), tuple(targets[0].shape)
            raise ValueError(
                f"loader: batch {index} has labels of shape {shapes[0]}, those of batch 0 have {shapes[1]}"
            )
    if prepared is None:
        raise ValueError("loader: it has no batches, or only empty ones")
    return CertifiedOutputs(
        values=torch.cat(values),
        targets=torch.cat(targets) if targets else None,
        lipschitz=prepared.audit.bound,
        slopes=prepared.output_slopes(),
        class_slopes=prepared.slopes.cpu(),
        errors=Rounded(*torch.cat(errors, 1)),
        audit=prepared.audit,
        rounding_model=rounding,
    )


def check_outputs(outputs: Any) -> None:
    """TypeError for anything but the result of ``certify_outputs``."""
    if not isinstance(outputs, CertifiedOutputs):
        kind = type(outputs).__name__
        raise TypeError(f"outputs: got {kind}, expected the CertifiedOutputs that fastlip.certify_outputs returns")


def lost_within(errors: Rounded, eps: float) -> Tensor:
    """(n,): the error of the outputs of a sample and of one within eps, together; inf where there is no bound."""
    lost = errors.error + errors.near + errors.growth * eps
    return torch.where(errors.reach >= eps, lost, torch.inf).nan_to_num(nan=torch.inf, posinf=torch.inf)


def around(values: Tensor, change: Tensor) -> Interval:
    """The values plus and minus a change, rounded outwards."""
    infinite = torch.full_like(values, torch.inf)
    return Interval(torch.nextafter(values - change, -infinite), torch.nextafter(values + change, infinite))


def _checked(eps: float) -> float:
    check_eps([eps])
    return float(eps)


def _finite(value: float) -> float:
    return value * UP if value == value else float("inf")
