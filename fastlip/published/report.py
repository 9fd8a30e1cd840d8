"""The published Lipschitz constant of a checkpoint next to the audited one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastlip.certification.auditing import audit
from fastlip.kernels.common.precision import ieee
from fastlip.nn.arguments import positive_int
from fastlip.published.building import build, weighted_layers
from fastlip.published.constants import attained, published_constants
from fastlip.published.entries import opened
from fastlip.published.layout import Architecture


@dataclass(frozen=True)
class PublishedLayer:
    """A layer's published constant between what it attains and what bounds it.

    Attributes:
        name: the published name of its weight; ``[i]`` is the i-th of a stack.
        published: the constant that the published evaluation takes.
        how: where that comes from.
        at_least: a number that the layer's norm reaches.
        at_most: the audited bound of the layer's norm.

    Example:
        >>> fastlip.PublishedLayer("stem.0.weight", 2.0, "500 power steps", 2.5, 2.6).too_low
        True
    """

    name: str
    published: float
    how: str
    at_least: float
    at_most: float

    @property
    def too_low(self) -> bool:
        """Whether the published constant is below what the layer's norm reaches."""
        return self.published < self.at_least


@dataclass(frozen=True)
class PublishedAudit:
    """The result of :func:`fastlip.audit_published`: ``str()`` of it is a table, ``to_dict()`` plain values.

    Constants are those of the network before its head, from images in [0, 1] to features.

    Attributes:
        architecture: ``"LiResNet"`` or ``"BRONet"``.
        published: the product of the published constants.
        audited: the audited bound.
        layers: the layers with a weight, a :class:`PublishedLayer` each, in order.

    Example:
        >>> layer = fastlip.PublishedLayer("stem.0.weight", 2.0, "500 power steps", 2.5, 2.6)
        >>> report = fastlip.PublishedAudit("LiResNet", 2.0, 2.6, (layer,))
        >>> report.ratio
        1.3
        >>> print(report)
        layer          published  at least  at most
        stem.0.weight  2          2.5       2.6      500 power steps: too low
        LiResNet before its head: published constant 2, audited bound 2.6, 1.3 times as large
        1 of 1 published constants are too low, by up to 25 %, so that published radii are not proven
    """

    architecture: Architecture
    published: float
    audited: float
    layers: tuple[PublishedLayer, ...]

    @property
    def ratio(self) -> float:
        """The audited bound over the published constant: published radii are valid after division by it."""
        return self.audited / self.published if self.published > 0 else math.inf

    @property
    def too_low(self) -> tuple[PublishedLayer, ...]:
        """The layers whose published constants are below what their norms reach."""
        return tuple(layer for layer in self.layers if layer.too_low)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return {**asdict(self), "layers": [asdict(layer) for layer in self.layers], "ratio": self.ratio}

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "published", "at least", "at most", "")]
        for layer in self.layers:
            figures = [f"{value:.9g}" for value in (layer.published, layer.at_least, layer.at_most)]
            rows.append((layer.name, *figures, layer.how + ": too low" * layer.too_low))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines.append(
            f"{self.architecture} before its head: published constant {self.published:.9g}, audited bound "
            f"{self.audited:.9g}, {self.ratio:.9g} times as large"
        )
        return "\n".join([*lines, self._verdict()])

    def _verdict(self) -> str:
        low = self.too_low
        if not low:
            return "no published constant is below what its layer reaches"
        worst = max(layer.at_least / layer.published if layer.published > 0 else math.inf for layer in low) - 1
        return (
            f"{len(low)} of {len(self.layers)} published constants are too low, by up to {100 * worst:.2g} %, "
            "so that published radii are not proven"
        )


@contextmanager
def _finite() -> Iterator[None]:
    """Says in one line that the numbers of a checkpoint are too large to be factored."""
    try:
        yield
    except torch.linalg.LinAlgError as error:
        reason = str(error).partition(":")[0]
        raise ValueError(f"checkpoint: its values are too large to compute norms of its layers ({reason})") from None


def audit_published(
    checkpoint: Mapping[str, Any], config: Mapping[str, Any] | None = None, *, steps: int = 500
) -> PublishedAudit:
    r"""Audits a published LiResNet or BRONet, and says how far its published Lipschitz constant was off.

    The published certificates divide margins by the product of one constant for each layer before the head. For the
    stem and for LiResNet's convolutions that is

    .. math:: |A x_n| \le |A|_2, \qquad x_{k+1} = \frac{A^T A x_k}{|A^T A x_k|}

    after n power steps from a stored vector: a lower bound of the norm, not an upper one. It is computed here as
    there, but with IEEE products where the published code allows TF32. The other constants are singular values in the
    checkpoint's precision, or 1 for block reflectors. The audited bound is that of :func:`fastlip.audit`. With
    zero padding it may be above the norm, so that each layer also has a number that its norm reaches for certain.

    Args:
        checkpoint: as for :func:`fastlip.load_published`.
        config: as for :func:`fastlip.load_published`.
        steps: power steps of the published constants; default 500, those of the published evaluation.

    Returns:
        A :class:`fastlip.PublishedAudit`.

    Raises:
        TypeError: as for :func:`fastlip.load_published`, or steps is no int.
        ValueError: as for :func:`fastlip.load_published`, or steps below 1.

    Example:
        >>> fastlip.audit_published({})
        Traceback (most recent call last):
        ...
        ValueError: checkpoint: has no entry 'stem.0.weight', which LiResNet and BRONet have
    """
    positive_int("steps", steps)
    entries, layout = opened(checkpoint, config)
    body = build(entries, layout)[:-1]
    modules = {name: body.get_submodule(place) for name, place in weighted_layers(layout).items()}
    with ieee(torch.device("cpu")), _finite():
        audited = audit(body, (3, layout.side, layout.side))
        rows = {row.name: row for row in audited.layers}
        constants = published_constants(entries, layout, modules, steps)
        layers = []
        for name, place in weighted_layers(layout).items():
            row, constant = rows[place], constants[name]
            reached = attained(modules[name], row.input_shape, constant)
            layers.append(PublishedLayer(name, constant.value, constant.how, reached, row.bound))
    published = math.prod(layer.published for layer in layers)
    return PublishedAudit(layout.architecture, published, audited.bound, tuple(layers))
