r"""Certificates: how far each image may be moved, in L2 norm, without changing its prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastlip.certification.auditing import Audit, LayerBound, examine
from fastlip.certification.batches import check_batch, check_bounds, check_declared
from fastlip.certification.evaluation import (
    Unchanged,
    bar,
    check_eps,
    check_model,
    from_parameters,
    full_precision,
    prepare,
)
from fastlip.certification.graphs import Branch
from fastlip.certification.rounding import EXACT, FOLLOWERS, Rounded, check_model_name, exact_twin, norms
from fastlip.certification.sameness import check_batch_outputs
from fastlip.certification.unfolding import batch_like, unfold
from fastlip.certification.weights import linear_weight, runs_as
from fastlip.exporting.plain import FirstEntries
from fastlip.losses.labels import as_logits, classes, is_binary
from fastlip.nn._conv import KernelConv2d
from fastlip.nn.base import as_it_runs
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
    the forward's error in L2 norm, for an image and what lies within its radius; ``rounding_model``: which bound
    that is, ``"worst-case"`` or ``"probabilistic"``; ``audit``: every layer's bound; ``class_radii`` (n, c), if
    asked for: how far each image may be moved with f_y still above f_j, 0 where it is not, inf at j = y.
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
    rounding_model: str = "worst-case"
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
            "rounding_model": self.rounding_model,
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
        lines.append(
            f"error of the forward at most {self.rounding:.3g} ({self.rounding_model}; taken off the margins)"
        )
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
    rounding: str = "worst-case",
    bounds: tuple[Any, Any] | None = None,
) -> Certificate:
    r"""Certified robust accuracy (CRA) of a classifier on the batches (images, labels) of a loader.

    .. math:: r_j(x) = \frac{\max(0,\; f_y - f_j - 2 \sqrt 2\, e)}
                            {\min(\sqrt 2\, L,\; L_{body} \|w_y - w_j\|) + \sqrt 2\, g},
              \qquad r(x) = \min_{j \ne y} r_j(x)

    L is the audited bound of the model (:func:`fastlip.audit`), never 1 on faith. The second slope is there
    where the model ends in a linear layer with rows w_j (then perhaps its first outputs only): L_body is the
    bound of what comes before. r_j is the radius within which class j cannot overtake the label y.

    The certificate holds for the network as it runs, in floating-point numbers, for the image and for every
    perturbed one. e bounds the L2 error of the computed outputs for the image, and e + g r for what is at a distance
    of r; g is of the size of a few thousand roundings. Both come from a worst-case bound of each layer's own error
    (whatever the order in which it sums, with or without fused multiply-adds, with numbers below the normal range
    flushed to zero or not), from the size of its inputs and hidden values, times the bounds of the layers behind.
    ``rounding="probabilistic"`` takes u sqrt(n) L_l |x_l| for a layer's error, u being the unit roundoff, n the
    number of roundings behind an output and x_l the layer's input, and the root of the sum of squares: it holds for
    independent roundings with high probability (Higham and Mary 2019), and can fail by far where they are not, where
    hidden values are large, or below the normal range. With ``dtype=torch.float64`` the worst case is negligible.
    Where the answer at one of ``eps`` may hang on it, the image is evaluated in float64 as well, with the same
    effective weights, and e counts once: for the perturbed image. TF32 and autocast are off meanwhile.

    The layers are evaluated one after the other. What the model itself makes of each batch, and of its first image
    alone, must agree with that up to 2 e: this costs another forward.

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
        bounds: the least and largest value that images may have, numbers or tensors that broadcast to an image; None:
            any. Images outside are refused: radii are in their units.
        rounding: ``"worst-case"`` or ``"probabilistic"``: which bound of rounding errors comes off the margins.

    Returns:
        A :class:`Certificate`.

    Raises:
        TypeError: modules that the audit does not understand, all named.
        ValueError: a model in training mode, or with parameters that change meanwhile, NaN or Inf in parameters,
            images or outputs (naming batch and layer), outputs that are not those of the audited layers, or depend
            on the number of images in a batch, images outside of the bounds or of another shape than the model was
            built for, labels out of range, an empty loader, a negative eps, another dtype,
            another name of rounding.
    """
    check_model(model, dtype)
    check_eps(eps)
    check_model_name(rounding)
    model, parameter = prepare(model, device, dtype)
    with full_precision(parameter.device.type), torch.no_grad(), from_parameters(model):
        outcome, found = _run(
            model, parameter, bar(loader, "certify", progress), input_shape, per_class, rounding, eps, bounds
        )
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
        rounding_model=rounding,
        class_radii=outcome.get("class_radii"),
    )


def _run(
    model: nn.Module,
    parameter: Tensor,
    loader: Iterable[Any],
    input_shape: tuple[int, ...] | None,
    per_class: bool,
    rounding: str,
    eps: Sequence[float],
    bounds: tuple[Any, Any] | None,
) -> tuple[dict[str, Tensor], Audit]:
    links: list[tuple[str, nn.Module]] = []
    twins: list[tuple[str, nn.Module]] | None = None
    follower = partial(FOLLOWERS[rounding], rules={})
    found, slopes, unchanged = None, torch.empty(0), Unchanged(model)
    parts: dict[str, list[Tensor]] = {}
    for index, batch in enumerate(loader):
        images, labels = check_batch(index, batch)
        check_bounds(index, images, bounds)
        if input_shape is None:
            check_declared(model, index, images)
        shape = tuple(images.shape[1:])
        input_shape = shape if input_shape is None else tuple(input_shape)
        if shape != input_shape:
            raise ValueError(f"input_shape={input_shape}: batch {index} has images of {shape}")
        if found is None:
            found, links = examine(model, input_shape)
            twins = _twins(model, links, input_shape) if rounding == "worst-case" else None
            slopes = _slopes(links, found).to(parameter.device)
        x = images.to(parameter)
        outputs, error = _forward(index, links, found, x.clone(), follower)
        check_batch_outputs(index, model, x, outputs, error.error)
        unchanged.check(index)
        logits, true = classes(outputs, labels)
        exact = None if twins is None else _Exact(twins, x)
        root = 1.0 if is_binary(outputs) else _SQRT2
        measured = _measure(logits.double(), true, error, root, found.bound, slopes, eps, exact)
        if not per_class:
            del measured["class_radii"]
        for name, value in measured.items():
            parts.setdefault(name, []).append(value.cpu())
    if found is None:
        raise ValueError("loader: it has no batches")
    return {name: torch.cat(values) for name, values in parts.items()}, found


def _forward(
    index: int, links: list[tuple[str, nn.Module]], found: Audit, x: Tensor, follow: Callable[..., Any]
) -> tuple[Tensor, Rounded]:
    """The outputs, and bounds of their errors for each sample."""
    follower = follow(len(x), x.device)
    y, state = _follow(index, links, found.layers, x, follower, follower.start)
    return y, follower.finish(state)


class _Exact:
    """The logits of some images of a batch without rounding, by a network in float64."""

    def __init__(self, links: list[tuple[str, nn.Module]], images: Tensor):
        self.links, self.images = links, images

    def __call__(self, rows: Tensor) -> Tensor:
        x = self.images[rows].double()
        for _, module in self.links:
            x = module(x)
        return as_logits(x)


def _twins(
    model: nn.Module, links: list[tuple[str, nn.Module]], input_shape: tuple[int, ...]
) -> list[tuple[str, nn.Module]] | None:
    """The layers of the model's copy in float64, where there is one."""
    twin = exact_twin(model, links)
    return None if twin is None else unfold(twin, batch_like(twin, 1, input_shape))


def _follow(
    index: int, links: list[tuple[str, nn.Module]], rows: Sequence[LayerBound], x: Tensor, follower: Any, state: Any
) -> tuple[Tensor, Any]:
    """The outputs of links, and the state of their errors if that of x is given."""
    for (name, module), row in zip(links, rows, strict=True):
        if isinstance(module, Branch):
            y, state = _follow_branch(index, module, row, x, follower, state)
        else:
            size, dtype = norms(x), x.dtype  # before a module that works in place
            y = module(x)
            state = follower.link(module, row, size, dtype, y, state)
        if not y.isfinite().all():
            raise ValueError(
                f"NaN or Inf in the outputs of batch {index}, first in layer {name!r} ({type(module).__name__})"
            )
        x = y
    return x, state


def _follow_branch(
    index: int, branch: Branch, row: LayerBound, x: Tensor, follower: Any, state: Any
) -> tuple[Tensor, Any]:
    rows = list(row.parts)

    def call(node: Any, value: Tensor, size: Any) -> tuple[Tensor, Any]:
        links = branch.links[node]
        own, rows[: len(links)] = rows[: len(links)], []
        return _follow(index, links, own, value, follower, size)

    return branch.propagate(x, state, call, follower.measure, follower.node)


def _gaps(logits: Tensor, true: Tensor) -> Tensor:
    """(n, c): f_y - f_j, inf at j = y."""
    gaps = logits.masked_fill(~true, 0).sum(1, keepdim=True) - logits
    return gaps.masked_fill(true, math.inf)


def _is_between(certain: Tensor, hopeful: Tensor, steepness: Tensor, eps: Sequence[float]) -> Tensor:
    """Which samples certain margins leave at or below an eps that hopeful ones exceed."""
    low, high = ((margins / steepness).amin(1, keepdim=True) for margins in (certain, hopeful))
    values = torch.as_tensor(list(eps), dtype=torch.float64, device=certain.device)
    return ((low <= values) & (high > values)).any(1)


def _measure(
    logits: Tensor,
    true: Tensor,
    error: Rounded,
    root: float,
    bound: float,
    slopes: Tensor,
    eps: Sequence[float],
    exact: _Exact | None,
) -> dict[str, Tensor]:
    """Margins, and radii before misclassified samples are struck out.

    A margin changes by at most ``root`` times the L2 norm of a change of the outputs: sqrt 2, or 1 for one score.
    """
    gaps, labels = _gaps(logits, true), true.long().argmax(1)
    growth = root * error.growth[:, None]
    # A constant function has infinite radii: gaps over the smallest positive number say so.
    tiny, largest = torch.finfo(torch.float64).tiny, torch.finfo(torch.float64).max
    steepness = (slopes[labels] + growth).clamp_min(tiny)
    joint_steepness = (root * bound + growth[:, 0]).clamp_min(tiny)
    certain = gaps - root * (error.error + error.near)[:, None]
    if exact is not None:
        hopeful = gaps + root * (error.error - error.near)[:, None]
        rows = _is_between(certain, hopeful, steepness, eps) | _is_between(
            certain, hopeful, joint_steepness[:, None], eps
        )
        rows &= gaps.amin(1) > 0
        if rows.any():
            lost = root * (EXACT * error.error + error.near)[rows, None]
            certain[rows] = torch.maximum(certain[rows], _gaps(exact(rows), true[rows]) - lost)
    class_radii = torch.minimum(certain / steepness, error.reach[:, None])
    joint = certain.amin(1) / joint_steepness
    radius = class_radii.amin(1).clamp(0, largest)
    return {
        "margin": gaps.amin(1),
        "joint": torch.minimum(joint, error.reach).clamp(0, largest),
        "radius": radius,
        "class_radii": class_radii.clamp_min(0).masked_fill(true, math.inf),
        "label": labels,
        "prediction": logits.argmax(1),
        "error": error.near + error.growth * radius,
    }


def _slopes(links: list[tuple[str, nn.Module]], found: Audit) -> Tensor:
    """(c, c): how fast f_i - f_j can change, for all classes i and j; for one score, how fast it changes."""
    count = (*found.layers[-1].output_shape, 1)[0]
    if count == 1:
        return torch.full((2, 2), found.bound, dtype=torch.float64)
    joint = torch.full((count, count), _SQRT2 * found.bound, dtype=torch.float64)
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
    if any(runs_as(module, kind, "forward") for kind in _SELECTIONS):
        return True
    return runs_as(module, FirstEntries, "forward") and cast(FirstEntries, module).groups == 1


def _matrix(module: Any, row: LayerBound) -> Tensor | None:
    """The matrix of a dense layer, or of a 1x1 convolution of a single pixel; None for any other module."""
    weight = linear_weight(module)
    if weight is None:
        return None
    if weight.dim() == 2 and len(row.input_shape) == 1:
        return weight
    dense = isinstance(module, (nn.Conv2d, KernelConv2d)) and module.groups == 1
    if dense and row.input_shape[1:] == row.output_shape[1:] == weight.shape[2:] == (1, 1):
        return weight.flatten(1)
    return None
