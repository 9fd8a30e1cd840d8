"""The sizes of a published network, from the shapes of its entries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fastlip.published.settings import Settings

Shapes = Mapping[str, tuple[int, ...]]
Architecture = Literal["LiResNet", "BRONet"]
Factor = Literal["cholesky", "reflector"]
# Images of these sides have a stem with stride 2; those of 224 pixels are cut into patches.
_STRIDED, _PATCHED = (32, 64), 224


class LayoutError(ValueError):
    """Entries that describe no published network."""


@dataclass(frozen=True)
class Backbone:
    """Convolutions in a row.

    Attributes:
        name: that of their entries, ``"conv"`` or ``"conv_1"``.
        kind: ``"linear"``: V itself, ``"reflector"``: the block reflector of V.
        depth: their number.
        rank: columns of V.
        side: of the images that they take.
        centering: whether they have running means.
        quasi_residual: whether V has the identity.
        zero_padding: whether images are padded with zeros, or circular.
        v2: whether reflectors are the second version, which correlates where the first convolves, and keeps the
            pixels of its padding.
    """

    name: str
    kind: Literal["linear", "reflector"]
    depth: int
    rank: int
    side: int
    centering: bool
    quasi_residual: bool
    zero_padding: bool
    v2: bool

    @property
    def side_after(self) -> int:
        """The side of the images that they return."""
        return self.side + 2 * self.depth * (self.v2 and self.zero_padding)


@dataclass(frozen=True)
class Layout:
    """A published network.

    Attributes:
        architecture: ``"BRONet"`` if anything in it is a reflector or a neck of norms, else ``"LiResNet"``.
        side: of the images.
        width: channels of the convolutions.
        stem: side of the stem's kernel.
        backbones: the convolutions, one or two kinds of them.
        neck: how patches become pixels: ``"norm"`` takes L2 norms.
        patch: side of these patches.
        neck_dense: the dense layer after it.
        flat: its inputs.
        features: its outputs, and those of the dense layers.
        dense: the dense layers.
        dense_layers: their number.
        dense_rank: columns of their V.
        classes: number of outputs.
        unit_rows: whether the head's rows are divided by their norms.
    """

    architecture: Architecture
    side: int
    width: int
    stem: int
    backbones: tuple[Backbone, ...]
    neck: Literal["cholesky", "reflector", "norm"]
    patch: int
    neck_dense: Factor
    flat: int
    features: int
    dense: Factor
    dense_layers: int
    dense_rank: int
    classes: int
    unit_rows: bool

    @property
    def strided(self) -> bool:
        """Whether the stem has stride 2 and padding; otherwise it takes disjoint patches."""
        return self.side != _PATCHED


def layout_of(shapes: Shapes, settings: Settings) -> Layout:
    """The network that these entries describe.

    Args:
        shapes: of the entries, by name.
        settings: what the shapes do not say.

    Raises:
        LayoutError: an entry that is missing, or of a shape that no published network has.
    """
    width, _, stem, _ = _shape(shapes, "stem.0.weight", 4)
    side = _shape(shapes, "stem.0.init_x", 4)[-1]
    if side not in (*_STRIDED, _PATCHED) or (side != _PATCHED and stem % 2 == 0):
        raise LayoutError(
            f"stem.0: got images of {side} pixels and a kernel of {stem}, which no published network has"
        )
    images = side // stem if side == _PATCHED else side // 2
    backbones: list[Backbone] = []
    for name in ("conv_1", "conv"):
        if name == "conv" or "conv_1.weights" in shapes:
            backbones.append(_backbone(shapes, name, images, settings))
            images = backbones[-1].side_after
    neck, patch = _neck(shapes, width, settings)
    if images % patch:
        raise LayoutError(f"neck: got patches of {patch} pixels for images of {images}, which they must divide")
    features, flat = _shape(shapes, "neck.bias", 1)[0], width * (images // patch) ** 2
    rows = _shape(shapes, "neck.weight", 2)[0]
    neck_dense: Factor = "cholesky" if rows == features else "reflector"
    if neck_dense == "reflector" and flat <= features:
        raise LayoutError(f"neck.weight: got {rows} rows for {features} features, which no neck of {flat} inputs has")
    dense: Factor = "reflector" if "linear.residual_identity" in shapes else "cholesky"
    if dense == "reflector" and not settings.dense_quasi_residual:
        # The published code adds the identity all the same, unless it runs in eight processes or more.
        raise LayoutError("linear: dense_quasi_residual=False is not read, as its function depends on the processes")
    count, _, rank = _shape(shapes, "linear.weights", 3) if "linear.weights" in shapes else (0, 0, 0)
    reflects = any(part.kind == "reflector" for part in backbones) or "reflector" in (neck, neck_dense, dense)
    architecture: Architecture = "BRONet" if reflects or neck == "norm" else "LiResNet"
    classes, _ = _shape(shapes, "head.weight", 2)
    sizes = architecture, side, width, stem, tuple(backbones), neck, patch, neck_dense, flat, features
    return Layout(*sizes, dense, count, rank, classes, settings.unit_rows)


def _backbone(shapes: Shapes, name: str, side: int, settings: Settings) -> Backbone:
    depth, width, rank, *_ = _shape(shapes, f"{name}.weights", 5)
    linear, centering = f"{name}.init_x" in shapes, f"{name}.running_mean" in shapes
    if linear:
        return Backbone(name, "linear", depth, rank, side, centering, True, True, False)
    if rank >= width:
        raise LayoutError(
            f"{name}.weights: got {rank} columns for {width} channels; a reflector has fewer, and other orthogonal "
            "layers are not read"
        )
    options = settings.quasi_residual, settings.zero_padding, settings.v2
    return Backbone(name, "reflector", depth, rank, side, centering, *options)


def _neck(shapes: Shapes, width: int, settings: Settings) -> tuple[Literal["cholesky", "reflector", "norm"], int]:
    """How the neck treats patches, and their side."""
    if "neck.kernel" not in shapes:
        return "norm", settings.patch
    rows, columns = _shape(shapes, "neck.kernel", 2)
    patch = math.isqrt(max(rows, columns) // width)
    return ("cholesky" if rows == width else "reflector"), max(patch, 1)


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        raise LayoutError(f"has no entry {name!r}, which LiResNet and BRONet have")
    if len(shapes[name]) != dimensions or 0 in shapes[name]:
        raise LayoutError(f"{name}: got shape {shapes[name]}, expected {dimensions} dimensions, none of them 0")
    return shapes[name]
