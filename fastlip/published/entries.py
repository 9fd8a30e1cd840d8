"""The entries of the authors' checkpoints: where they are, which are needed, and their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastlip.published.layout import Backbone, Layout, LayoutError, layout_of
from fastlip.published.settings import Settings

# What wrappers put before names: data parallelism, averages of weights, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")
# What the published evaluation computes again from the weights, and never reads.
_CACHES = (".eval_weight", ".eval_weights")
Entries = dict[str, Tensor]


def opened(checkpoint: Mapping[str, Any], config: Mapping[str, Any] | None) -> tuple[Entries, Layout]:
    """The entries of a checkpoint by their published names, checked against the network that they describe.

    Args:
        checkpoint: the authors' dict, with the weights under ``backbone``, or a state dict.
        config: the section ``model`` of their configuration file; None: that of the checkpoint, or its defaults.

    Raises:
        TypeError: no mapping of names to tensors.
        ValueError: entries that are missing, left over, of another shape, or not finite.
    """
    if not isinstance(checkpoint, Mapping):
        raise TypeError(f"checkpoint: got {type(checkpoint).__name__}, expected a mapping of names to tensors")
    state = _weights(checkpoint)
    if config is None:
        saved = checkpoint.get("configs")
        config = saved.get("model") if isinstance(saved, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TypeError(f"checkpoint: expected names and tensors, or a dict with them, got {_got(state)}")
    entries = {name: _dense(name, value) for name, value in _named(state).items() if not name.endswith(_CACHES)}
    try:
        layout = layout_of({name: tuple(value.shape) for name, value in entries.items()}, Settings.of(config or {}))
    except LayoutError as error:
        raise ValueError(f"checkpoint: {error}") from None
    _check(entries, layout)
    return entries, layout


def is_published(content: Any) -> bool:
    """Whether this may be a checkpoint that :func:`opened` reads.

    Args:
        content: of a file.
    """
    return isinstance(content, Mapping) and ("backbone" in content or _has_stem(content) or bool(_inner(content)))


def _has_stem(content: Any) -> bool:
    return isinstance(content, Mapping) and any(_bare(name) == "stem.0.init_x" for name in content)


def _inner(content: Mapping[Any, Any]) -> list[Any]:
    """The keys under which a mapping has state dicts of such networks."""
    return [name for name, value in content.items() if _has_stem(value)]


def _weights(checkpoint: Mapping[Any, Any]) -> Any:
    """The state dict of a checkpoint; ValueError if it has several and none under ``backbone``."""
    if "backbone" in checkpoint:
        return checkpoint["backbone"]
    inner = _inner(checkpoint)
    if len(inner) > 1:
        names = ", ".join(map(repr, inner))
        raise ValueError(f"checkpoint: has weights under {names}; expected one of them, checkpoint[{inner[0]!r}]")
    return checkpoint[inner[0]] if inner else checkpoint


def _bare(name: Any) -> str:
    """A name without the prefixes of wrappers."""
    text = str(name)
    while text.startswith(_WRAPPERS):
        text = text.partition(".")[2]
    return text


def _named(state: Mapping[Any, Tensor]) -> Entries:
    """The tensors by their bare names; ValueError for two of one name."""
    given: dict[str, str] = {}
    for name in state:
        other = given.setdefault(_bare(name), str(name))
        if other != str(name):
            raise ValueError(f"checkpoint: has both {other!r} and {str(name)!r}, which are one entry")
    return {_bare(name): value for name, value in state.items()}


def _dense(name: str, value: Tensor) -> Tensor:
    """The values on the CPU, in float32 where they are stored in sixteen bits, which no factorisation takes."""
    if value.layout != torch.strided:
        raise ValueError(f"{name}: got a tensor of layout {value.layout}, expected a dense one")
    value = value.detach().cpu()
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _got(state: Any) -> str:
    """The end of a message: what was there instead."""
    if not isinstance(state, Mapping):
        return type(state).__name__
    odd = next(name for name, value in state.items() if not isinstance(value, Tensor))
    return f"{type(state[odd]).__name__} under {str(odd)!r}"


def _check(entries: Entries, layout: Layout) -> None:
    shapes = expected_shapes(layout)
    for part in layout.backbones:
        if not part.centering:
            shapes.pop(f"{part.name}.running_mean")
    missing, left = sorted(shapes.keys() - entries), sorted(entries.keys() - shapes)
    if missing or left:
        raise ValueError(
            f"checkpoint: entries do not fit a {layout.architecture}; missing {missing}, left over {left}"
        )
    dtype = entries["stem.0.weight"].dtype
    for name, shape in shapes.items():
        value = entries[name]
        if value.shape != shape:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {shape}")
        if not value.is_floating_point():
            raise ValueError(f"{name}: got {value.dtype}, expected a floating-point type")
        if value.dtype != dtype:
            raise ValueError(f"{name}: got {value.dtype}, expected {dtype} as the others")
        if not value.isfinite().all():
            raise ValueError(f"{name}: has NaN or Inf")
        if name.rpartition(".")[2] in _IDENTITIES and not torch.equal(value, _identity(name, shape).to(dtype)):
            raise ValueError(f"{name}: expected an identity matrix, which the published code never changes")


# Buffers that are constants.
_IDENTITIES = ("identity", "residual_identity", "identity_half", "I_low", "I_full")


def _identity(name: str, shape: tuple[int, ...]) -> Tensor:
    """Ones on the diagonal; of kernels, at their centre."""
    if name.startswith("conv") and name.endswith(".identity"):
        kernels = torch.zeros(shape)
        kernels[..., 1, 1] = torch.eye(*shape[-4:-2])
        return kernels
    return torch.eye(*shape[-2:]).expand(shape)


def expected_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all entries of a network; ``running_mean`` may be left out of blocks without centering."""
    width, features = layout.width, layout.features
    shapes: dict[str, tuple[int, ...]] = {
        "stem.0.weight": (width, 3, layout.stem, layout.stem),
        "stem.0.bias": (width,),
        "stem.0.init_x": (1, 3, layout.side, layout.side),
        "neck.weight": (features, layout.flat) if layout.neck_dense == "cholesky" else (layout.flat, features),
        "neck.bias": (features,),
        "head.weight": (layout.classes, features),
        "head.bias": (layout.classes,),
    }
    rows = width * layout.patch**2
    if layout.neck != "norm":
        shapes["neck.kernel"] = (width, rows) if layout.neck == "cholesky" else (rows, width)
    for part in layout.backbones:
        shapes |= {f"{part.name}.{name}": shape for name, shape in _blocks(part, width).items()}
    if layout.dense_layers:
        shapes |= {f"linear.{name}": shape for name, shape in _dense_shapes(layout).items()}
    return shapes


def _blocks(part: Backbone, width: int) -> dict[str, tuple[int, ...]]:
    depth, rank = part.depth, part.rank
    shapes: dict[str, tuple[int, ...]] = {
        "weights": (depth, width, rank, 3, 3),
        "gamma": (depth, width, 1, 1, 1),
        "bias": (depth, width),
        "running_mean": (depth, width),
    }
    if part.kind == "linear":
        return {**shapes, "identity": (depth, width, width, 3, 3), "init_x": (1, depth * width, part.side, part.side)}
    low, full = (1, 1, 1, rank, rank), (1, 1, 1, width, width)
    return {**shapes, "identity": (width, rank, 3, 3), "I_low": low, "I_full": full}


def _dense_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    count, features, rank = layout.dense_layers, layout.features, layout.dense_rank
    shapes: dict[str, tuple[int, ...]] = {
        "weights": (count, features, rank),
        "gamma": (count, features, 1),
        "bias": (count, features),
        "identity": (features, features),
    }
    if layout.dense == "cholesky":
        return shapes
    return {**shapes, "residual_identity": (features, rank), "identity_half": (rank, rank)}
