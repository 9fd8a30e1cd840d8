r"""Certificates: how far each image may be moved, in L2 norm, without changing its prediction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastlip._batches import check_batch
from fastlip._bounds import Bound, bound_module
from fastlip._evaluation import bar, check_eps, check_model, full_precision, prepare
from fastlip._graphs import Branch
from fastlip._labels import multiclass
from fastlip._plain import FirstEntries
from fastlip.auditing import Audit, LayerBound, audit, chain
from fastlip.nn._base import LipschitzLinear, as_it_runs
from fastlip.nn._conv import LipschitzConv2d
from fastlip.nn.shaping import FirstChannels

DEFAULT_EPS = (36 / 255, 72 / 255, 108 / 255, 1.0)
_SQRT2 = math.sqrt(2)
_SELECTIONS = (nn.Flatten, nn.Identity, nn.Dropout, FirstChannels)


@dataclass(frozen=True)
class Certificate:
    """What :func:`certify` found on n samples.

    ``accuracy`` (a tie is an error); ``cra``: for each eps the share of samples that are classified correctly
    with a radius above eps; ``joint_cra``: the same by margin / (sqrt 2 L) alone, which is what papers report;
    ``radii`` (n,): certified L2 radii, 0 for misclassified samples; ``margins`` (n,):
    f_y - max_{j != y} f_j as computed, negative for misclassified samples; ``labels`` and ``predictions`` (n,);
    ``lipschitz``: the audited bound L of the network that divides the margins; ``rounding``: the largest bound of
    the forward's error in L2 norm; ``audit``: every layer's bound; ``class_radii`` (n, c), if asked for: how far
    each image may be moved with f_y still above f_j, 0 where it is not, inf at j = y.
    """

    accuracy: float
    cra: dict[float, float]
    joint_cra: dict[float, float]
    radii: Tensor
    margins: Tensor
    labels: Tensor
    predictions: Tensor
    lipschitz: float
    rounding: float
    n: int
    audit: Audit = field(repr=False)
    class_radii: Tensor | None = field(default=None, repr=False)

    def curve(self, eps: Sequence[float] | Tensor) -> Tensor:
        """Certified robust accuracy at many eps: (k,) radii in, (k,) shares in float64 out."""
        eps = torch.as_tensor(eps, dtype=torch.float64)
        check_eps(eps.tolist())
        return (self.n - torch.searchsorted(self.radii.sort().values, eps, right=True)).double() / self.n

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: eps become strings, tensors lists."""
        return {
            "accuracy": self.accuracy,
            "cra": {str(eps): share for eps, share in self.cra.items()},
            "joint_cra": {str(eps): share for eps, share in self.joint_cra.items()},
            "lipschitz": self.lipschitz,
            "rounding": self.rounding,
            "n": self.n,
            "radii": self.radii.tolist(),
            "margins": self.margins.tolist(),
            "audit": self.audit.to_dict(cost=False),
        }

    def __str__(self) -> str:
        lines = [f"accuracy {self.accuracy:.2%} of {self.n} samples"]
        for eps, share in self.cra.items():
            joint = self.joint_cra[eps]
            lines.append(f"certified at {eps:.4g}: {share:.2%}  (by margin / (sqrt 2 L) alone: {joint:.2%})")
        lines.append(f"Lipschitz constant at most {self.lipschitz:.9g} (audited; radii are divided by it)")
        lines.append(f"error of the forward at most {self.rounding:.3g} (taken off the margins)")
        return "\n".join(lines)


def certify(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    eps: Sequence[float] = DEFAULT_EPS,
    *,
    input_shape: tuple[int, ...] | None = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
    per_class: bool = False,
    progress: bool = False,
) -> Certificate:
    r"""Certified robust accuracy (CRA) of a classifier on the batches (images, labels) of a loader.

    .. math:: r_j(x) = \frac{\max(0,\; f_y - f_j - 2 \sqrt 2\, e)}{\min(\sqrt 2\, L,\; L_{body} \|w_y - w_j\|)},
              \qquad r(x) = \min_{j \ne y} r_j(x)

    L is the audited bound of the model (:func:`fastlip.audit`), never 1 on faith. The second slope is there
    where the model ends in a linear layer with rows w_j (then perhaps its first outputs only): L_body is the
    bound of what comes before. r_j is the radius within which class j cannot overtake the label y.

    e is a bound of the L2 error of the computed outputs: the root of the sum over layers of the squares of
    u sqrt(n) L_l |x_l| times the bounds of the layers behind, u being the unit roundoff, n the number of roundings
    behind an output and x_l the layer's input for this image. It holds for independent roundings (Higham and Mary
    2019); with ``dtype=torch.float64`` even the worst case, sums instead of roots, is negligible. It is subtracted
    twice, for the sample and for a perturbed image. TF32 and autocast are off meanwhile.

    Args:
        model: in eval mode. Parameters in 16 bits are raised to float32 in a copy, which is what is certified.
        loader: batches of images (n, *input_shape) and integer or one-hot labels.
        eps: the radii at which CRA is reported.
        input_shape: of one image; by default that of the first batch.
        device: where to run; by default where the model is. The model itself is not moved.
        dtype: ``torch.float32`` or ``torch.float64``: certifies a copy of the model in that type. By default the
            model's own.
        per_class: keeps r_j for every sample and class, (n, c) float64, as ``class_radii``.
        progress: shows a bar.

    Returns:
        A :class:`Certificate`.

    Raises:
        TypeError: modules that the audit does not understand, all named.
        ValueError: a model in training mode, NaN or Inf in parameters, images or outputs (naming batch and layer),
            labels out of range, an empty loader, a negative eps, another dtype.
    """
    check_model(model, dtype)
    check_eps(eps)
    model, parameter = prepare(model, device, dtype)
    with full_precision(parameter.device.type), torch.no_grad():
        outcome, found = _run(model, parameter, bar(loader, "certify", progress), input_shape, per_class)
    correct = outcome["margin"] > 0
    radii, joint = (torch.where(correct, outcome[name], 0.0) for name in ("radius", "joint"))
    return Certificate(
        accuracy=correct.double().mean().item(),
        cra={float(value): (radii > value).double().mean().item() for value in eps},
        joint_cra={float(value): (joint > value).double().mean().item() for value in eps},
        radii=radii,
        margins=outcome["margin"],
        labels=outcome["label"],
        predictions=outcome["prediction"],
        lipschitz=found.bound,
        rounding=outcome["error"].amax().item(),
        n=len(radii),
        audit=found,
        class_radii=outcome.get("class_radii"),
    )


def _run(
    model: nn.Module,
    parameter: Tensor,
    loader: Iterable[Any],
    input_shape: tuple[int, ...] | None,
    per_class: bool,
) -> tuple[dict[str, Tensor], Audit]:
    links = chain(model)
    found, slopes = None, torch.empty(0)
    parts: dict[str, list[Tensor]] = {}
    for index, batch in enumerate(loader):
        images, labels = check_batch(index, batch)
        shape = tuple(images.shape[1:])
        input_shape = shape if input_shape is None else tuple(input_shape)
        if shape != input_shape:
            raise ValueError(f"input_shape={input_shape}: batch {index} has images of {shape}")
        if found is None:
            found = audit(model, input_shape)
            slopes = _slopes(links, found).to(parameter.device)
        outputs, error = _forward(index, links, found, images.to(parameter))
        logits, true = multiclass(outputs, labels.to(outputs.device))
        measured = _measure(logits.double(), true, error, found, slopes)
        if not per_class:
            del measured["class_radii"]
        for name, value in measured.items():
            parts.setdefault(name, []).append(value.cpu())
    if found is None:
        raise ValueError("loader: it has no batches")
    return {name: torch.cat(values) for name, values in parts.items()}, found


def _forward(index: int, links: list[tuple[str, nn.Module]], found: Audit, x: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs, and for each sample a bound of their error in L2 norm."""
    error = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    return _follow(index, links, found.layers, x, error)


def _follow(
    index: int, links: list[tuple[str, nn.Module]], rows: Sequence[LayerBound], x: Tensor, error: Tensor
) -> tuple[Tensor, Tensor]:
    """The outputs of links, and their errors if those of x are given."""
    unit = torch.finfo(x.dtype).eps / 2
    for (name, module), row in zip(links, rows, strict=True):
        if isinstance(module, Branch):
            y, error = _follow_branch(index, module, row, x, error)
        else:
            y = module(x)
            error = error * row.bound
            if row.roundings:
                error = torch.hypot(error, unit * _own_rounding(row, x, y))
        if not y.isfinite().all():
            raise ValueError(
                f"NaN or Inf in the outputs of batch {index}, first in layer {name!r} ({type(module).__name__})"
            )
        x = y
    return x, error


def _follow_branch(index: int, branch: Branch, row: LayerBound, x: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    unit = torch.finfo(x.dtype).eps / 2
    rows = list(row.parts)

    def call(node: Any, value: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        links = branch.links[node]
        own, rows[: len(links)] = rows[: len(links)], []
        return _follow(index, links, own, value, size)

    return branch.propagate(x, error, call, bound_module, lambda x, y, found: unit * _own_rounding(found, x, y))


def _own_rounding(found: Bound | LayerBound, x: Tensor, y: Tensor) -> Tensor:
    # The norms are of the computed x and y, which are off by the error itself at most.
    return found.roundings * _norms(x) + found.constant + 2 * _norms(y)


def _norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64)


def _measure(logits: Tensor, true: Tensor, error: Tensor, found: Audit, slopes: Tensor) -> dict[str, Tensor]:
    """Margins, and radii before misclassified samples are struck out."""
    gaps = logits.masked_fill(~true, 0).sum(1, keepdim=True) - logits  # (n, c): f_y - f_j
    gaps = gaps.masked_fill(true, math.inf)
    certain = gaps - 2 * _SQRT2 * error[:, None]
    labels = true.long().argmax(1)
    # A constant function has infinite radii: gaps over the smallest positive number say so.
    tiny, largest = torch.finfo(torch.float64).tiny, torch.finfo(torch.float64).max
    class_radii = certain / slopes[labels].clamp_min(tiny)
    return {
        "margin": gaps.amin(1),
        "joint": (certain.amin(1) / max(_SQRT2 * found.bound, tiny)).clamp(0, largest),
        "radius": class_radii.amin(1).clamp(0, largest),
        "class_radii": class_radii.clamp_min(0),
        "label": labels,
        "prediction": logits.argmax(1),
        "error": error,
    }


def _slopes(links: list[tuple[str, nn.Module]], found: Audit) -> Tensor:
    """(c, c): how fast f_i - f_j can change, for all classes i and j."""
    classes = (*found.layers[-1].output_shape, 1)[0]
    joint = torch.full((classes, classes), _SQRT2 * found.bound, dtype=torch.float64)
    head = _head(links, found)
    return joint if head is None else torch.minimum(joint, head[0] * head[1])


def _head(links: list[tuple[str, nn.Module]], found: Audit) -> tuple[Tensor, float] | None:
    """Where the network ends in a linear layer: |w_i - w_j| for all classes, and the bound of what precedes it."""
    last = len(links) - 1
    while last > 0 and _keeps_the_first(links[last][1]):
        last -= 1
    weight = _matrix(links[last][1], found.layers[last])
    if weight is None:
        return None
    rows = as_it_runs(weight)[: found.layers[-1].output_shape[0]]
    eps = torch.finfo(torch.float64).eps
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    body = math.prod(row.bound for row in found.layers[:last])
    return distances * (1 + rows.shape[1] * eps), body * (1 + last * eps)


def _keeps_the_first(module: nn.Module) -> bool:
    """Whether the outputs are the inputs, or the first of them."""
    return isinstance(module, _SELECTIONS) or (isinstance(module, FirstEntries) and module.groups == 1)


def _matrix(module: Any, row: LayerBound) -> Tensor | None:
    """The matrix of a dense layer, or of a 1x1 convolution of a single pixel; None for any other module."""
    if isinstance(module, (nn.Linear, LipschitzLinear)) and len(row.input_shape) == 1:
        return getattr(module, "weight", None)
    if isinstance(module, (nn.Conv2d, LipschitzConv2d)) and module.groups == 1:
        weight = getattr(module, "weight", None)
        if weight is not None and row.input_shape[1:] == row.output_shape[1:] == weight.shape[2:] == (1, 1):
            return weight.flatten(1)
    return None
