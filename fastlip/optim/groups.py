"""The orthogonal matrices of a model: as a group of an optimiser's parameters, their errors, and their repair."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlip.nn._manifold import is_on_manifold, orthogonality_error, retracted
from fastlip.optim._rows import gathered, put_rows


def manifold_groups(
    model: nn.Module,
    *,
    lr: float | None = None,
    manifold_lr: float | None = None,
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Returns the parameters of a model in two groups for :class:`ManifoldOptimizer`.

    The first group has the matrices of layers with ``parametrization="manifold"``, the second all other parameters
    that want a gradient. The second is left out if it is empty.

    Args:
        model: has at least one such layer.
        lr: learning rate of the second group; None: that of the base optimiser.
        manifold_lr: learning rate of the matrices, in radians: an entry of the skew matrix turns two columns by that
            angle. None: as ``lr``.
        weight_decay: of the second group; None: that of the base optimiser. It has no effect on the matrices, whose
            step starts at 0.

    Returns:
        The groups.

    Raises:
        ValueError: the model has no such layer.

    Example:
        >>> model = torch.nn.Sequential(lip.CayleyLinear(4, 4, parametrization="manifold"), lip.MaxMin())
        >>> [(group["manifold"], len(group["params"])) for group in fastlip.optim.manifold_groups(model)]
        [(True, 1), (False, 1)]
    """
    matrices = orthogonal_matrices(model)
    if not matrices:
        raise ValueError("model: has no layer with parametrization='manifold', such as CayleyLinear takes it")
    known = {id(matrix) for matrix in matrices}
    others = [value for value in model.parameters() if value.requires_grad and id(value) not in known]
    settings = {"lr": lr, "weight_decay": weight_decay}
    rate = {} if manifold_lr is None and lr is None else {"lr": lr if manifold_lr is None else manifold_lr}
    groups: list[dict[str, Any]] = [{"params": matrices, "manifold": True, **rate}]
    given = {name: value for name, value in settings.items() if value is not None}
    return [*groups, {"params": others, "manifold": False, **given}] if others else groups


def orthogonality_errors(model: nn.Module) -> dict[str, float]:
    """Returns |QᵀQ - I|₂ (|QQᵀ - I|₂ of wide matrices) of each orthogonal matrix of a model, by name.

    Args:
        model: its layers with ``parametrization="manifold"`` are measured, in float64.

    Example:
        >>> model = torch.nn.Sequential(lip.LOTLinear(4, 4, parametrization="manifold"))
        >>> fastlip.optim.orthogonality_errors(model)
        {'0.orthogonal_weight': 0.0}
    """
    return {name: orthogonality_error(gathered(matrix)) for name, matrix in _matrices(model).items()}


@torch.no_grad()
def retract_(model: nn.Module) -> float:
    """Replaces each orthogonal matrix of a model by its polar factor, the nearest orthogonal matrix.

    For weights that something other than :class:`ManifoldOptimizer` has changed: another optimiser, an average, a
    conversion to another dtype.

    Args:
        model: its layers with ``parametrization="manifold"`` are changed in place.

    Returns:
        The largest orthogonality error before.

    Example:
        >>> layer = lip.LOTLinear(4, 4, parametrization="manifold")
        >>> with torch.no_grad():
        ...     layer.orthogonal_weight.mul_(0.5)[0, 0].item()
        0.5
        >>> fastlip.optim.retract_(layer)
        0.75
        >>> torch.equal(layer.weight, torch.eye(4))
        True
    """
    largest = 0.0
    for matrix in _matrices(model).values():
        whole = gathered(matrix.detach())
        largest = max(largest, orthogonality_error(whole))
        put_rows(retracted(whole), matrix)
    return largest


def orthogonal_matrices(model: nn.Module) -> list[Tensor]:
    """The orthogonal matrices of a model, each once."""
    return list(_matrices(model).values())


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    """The orthogonal matrices by name, each once."""
    found: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if is_on_manifold(layer):
            matrix = layer.orthogonal_weight
            if isinstance(matrix, Tensor) and not any(matrix is other for other in found.values()):
                found[f"{name}.orthogonal_weight".lstrip(".")] = matrix
    return found
