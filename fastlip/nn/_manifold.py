"""Dense layers whose parameter is the orthogonal matrix itself: how it starts, its error, and its repair.

The parameter ``orthogonal_weight`` has orthonormal rows or columns, and stays so under
:class:`fastlip.optim.ManifoldOptimizer`. Nothing else keeps it there: bounds are computed from the matrix as it is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from fastlip import ops
from fastlip.kernels.common.gate import is_recorded
from fastlip.kernels.common.precision import full_precision
from fastlip.nn.arguments import make_parameter, one_of

Parametrization = Literal["unconstrained", "manifold"]
PARAMETRIZATIONS: tuple[Parametrization, ...] = get_args(Parametrization)
MANIFOLD: Parametrization = "manifold"
# A deviation from orthogonality that training tells the user about: far above that of the manifold optimiser.
NOTICED = 0.01
# The iteration squares an error below 1; above this one, singular values may be small, and it would take many steps.
_NEAR = 0.5
_STEPS = 8
# The version of a matrix after the last step of an optimiser that keeps it orthogonal.
_moved: Any = WeakIdKeyDictionary()


def begin_on_manifold(layer: Any, parametrization: Any, device: Any, dtype: Any, refused: dict[str, Any]) -> bool:
    """Sets ``parametrization``, and gives the layer its orthogonal matrix if that is ``"manifold"``.

    Args:
        layer: has ``in_features`` and ``out_features``.
        parametrization: the argument.
        device: of the parameter.
        dtype: of the parameter.
        refused: values of the arguments that say how a matrix is made orthogonal; each must be false or None.

    Returns:
        Whether the layer is on the manifold.

    Raises:
        ValueError: parametrization is not allowed, or one of the other arguments is given with ``"manifold"``.
    """
    layer.parametrization = one_of("parametrization", parametrization, PARAMETRIZATIONS)
    if parametrization != MANIFOLD:
        return False
    for name, value in refused.items():
        if value is not None and value is not False:
            raise ValueError(
                f"{name}={value!r}: parametrization='manifold' makes no matrix orthogonal, allowed is "
                f"{None if name != 'quasi_residual' else False}"
            )
    layer.orthogonal_weight = make_parameter((layer.out_features, layer.in_features), device, dtype)
    return True


def is_on_manifold(layer: Any) -> bool:
    """Whether the parameter of this module is an orthogonal matrix.

    Args:
        layer: any module.
    """
    return getattr(layer, "parametrization", None) == MANIFOLD and hasattr(layer, "orthogonal_weight")


@torch.no_grad()
def start_on_manifold(layer: Any, unconstrained: Callable[..., Any]) -> None:
    """Fills the matrix with the effective weight of a new unconstrained layer, and the bias with zeros.

    Args:
        layer: on the manifold.
        unconstrained: makes the other layer; it takes the arguments of ``torch.nn.Linear``.
    """
    weight = layer.orthogonal_weight
    if not weight.is_meta:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        options = {"bias": False, "device": weight.device, "dtype": dtype, "backend": layer.backend}
        weight.copy_(retracted(unconstrained(layer.in_features, layer.out_features, **options)._effective()[0]))
    if layer.bias is not None:
        layer.bias.zero_()


def on_manifold(layer: Any) -> Tensor:
    """The orthogonal matrix as effective weight; in training, a warning if something else has moved it away."""
    weight = layer.orthogonal_weight
    if layer.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        _watch(layer, weight)
    return weight


def note_moved(weight: Tensor) -> None:
    """Lets layers know that what changed the matrix keeps it orthogonal.

    Args:
        weight: the parameter, after its change.
    """
    _moved[weight] = weight._version


def _watch(layer: Any, weight: Tensor) -> None:
    """Looks at the matrix after the first, second, fourth, eighth, ... change of which it was not told."""
    if type(weight) is not nn.Parameter or weight.is_meta or is_recorded() or weight.is_inference():
        return
    seen = layer.__dict__.setdefault("_seen", [weight._version, 0, 1])
    if seen[0] == weight._version:
        return
    if _moved.get(weight) == weight._version:
        seen[0] = weight._version
        return
    seen[:2] = weight._version, seen[1] + 1
    if seen[1] < seen[2]:
        return
    seen[2] = 2 * seen[1]
    error = error_above(weight, NOTICED)
    if not error <= NOTICED:  # NaN too
        warnings.warn(
            f"orthogonal_weight of {type(layer).__name__}({layer.in_features}, {layer.out_features}): its "
            f"orthogonality error is {error:.2g}. Train it with fastlip.optim.ManifoldOptimizer, or call "
            "fastlip.optim.retract_(model) after each step: other optimisers leave the orthogonal matrices. "
            "Audits and certificates use the matrix as it is.",
            UserWarning,
            stacklevel=2,
        )


@torch.no_grad()
def error_above(matrix: Tensor, limit: float) -> float:
    """The orthogonality error where a cheaper bound of it exceeds the limit; else that bound.

    Args:
        matrix: (m, n), real.
        limit: what is allowed.
    """
    bound = torch.linalg.matrix_norm(defect_of(_tall(matrix.detach()))).item()
    return bound if bound <= limit else orthogonality_error(matrix)


@torch.no_grad()
def orthogonality_error(matrix: Tensor) -> float:
    r"""Returns |QᵀQ - I|₂ of a matrix Q with at least as many rows as columns, |QQᵀ - I|₂ of a wide one.

    Args:
        matrix: (m, n), real.
    """
    defect = defect_of(_tall(_wide_type(matrix)))
    if not bool(defect.isfinite().all()):
        return math.nan
    return torch.linalg.matrix_norm(defect, 2).item() if defect.numel() else 0.0


def defect_of(Q: Tensor) -> Tensor:
    """QᵀQ - I of a tall matrix."""
    with full_precision(Q.device):
        defect = Q.mT @ Q
    defect.diagonal().sub_(1)
    return defect


@torch.no_grad()
def retracted(matrix: Tensor) -> Tensor:
    """The polar factor, the nearest matrix with orthonormal rows or columns, in float64 where the device has it.

    Near the manifold by the Newton-Schulz iteration Q <- Q (3 I - QᵀQ) / 2, which takes an error d to 3 d^2 / 4; else
    by the decomposition of :func:`fastlip.ops.polar`.

    Args:
        matrix: (m, n), real; on no device but the CPU or a GPU the decomposition is in float32.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    Q = _tall(_wide_type(matrix))
    if not bool(Q.isfinite().all()):
        return matrix
    # What is left of the error is far below the rounding of the result, or that of the iteration.
    rounding = max(1e-2 * torch.finfo(matrix.dtype).eps, torch.finfo(Q.dtype).eps * math.sqrt(Q.shape[1]))
    for _ in range(_STEPS):
        defect = defect_of(Q)
        error = torch.linalg.matrix_norm(defect).item()
        if error > _NEAR:
            Q = ops.polar(Q)
            break
        Q = torch.addmm(Q, Q, defect, alpha=-0.5)
        if 0.75 * error**2 <= rounding:
            break
    return (Q.mT if wide else Q).to(matrix.dtype)


def _wide_type(matrix: Tensor) -> Tensor:
    """The matrix in float64; in float32 where the device has no float64."""
    return matrix.detach().to(torch.float64 if matrix.device.type in ("cpu", "cuda") else torch.float32)


def _tall(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.shape[0] < matrix.shape[1] else matrix
