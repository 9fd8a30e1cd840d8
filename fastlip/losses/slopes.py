"""How fast the difference of two scores can change, as training assumes it and certificates measure it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastlip.nn.base import at_least_float32
from fastlip.nn.normalized import NormalizedLinear
from fastlip.nn.scaling import Scale
from fastlip.nn.shaping import FirstChannels

_KEEP_VALUES = (nn.Identity, nn.Flatten, nn.Dropout, Scale)


def class_slopes(model: nn.Module) -> Tensor | float:
    r"""Returns how fast f_i - f_j changes in training for all classes i and j, if the other layers have L = 1.

    .. math:: d_{ij} = s |w_i - w_j| \ \text{for a head with rows } w, \qquad d_{ij} = s \sqrt 2 \ \text{otherwise}

    s is the product of the factors of all :class:`fastlip.nn.Scale`. A head is the last module, up to those,
    ``Flatten``, ``Dropout`` and :class:`fastlip.nn.FirstChannels`, if it is :class:`fastlip.nn.NormalizedLinear` or
    ``torch.nn.Linear``. These are the slopes by which
    :func:`fastlip.certify` divides margins, except that it multiplies them by audited bounds. Gradients reach the
    rows.

    Args:
        model: the network, a ``torch.nn.Sequential`` of modules; of any other module, only the module itself is a
            head.

    Returns:
        (c, c), at least float32, on the model's device; s sqrt(2) without such a head.

    Examples:
        >>> head = lip.NormalizedLinear(4, 3)
        >>> slopes = fastlip.losses.class_slopes(torch.nn.Sequential(torch.nn.Flatten(), head))
        >>> torch.allclose(slopes[0, 1], (head.weight[0] - head.weight[1]).norm())
        True
        >>> fastlip.losses.class_slopes(lip.CayleyLinear(4, 3))
        1.4142135623730951
    """
    modules = list(_in_order(model))
    factor: Tensor | float = 1.0
    for module in modules:
        factor = factor * module.factor() if isinstance(module, Scale) else factor
    head, count = _head_of(modules)
    if not isinstance(head, (NormalizedLinear, nn.Linear)):
        return math.sqrt(2) * factor
    rows = at_least_float32(head.weight)[:count]
    with torch.autocast(rows.device.type, enabled=False):
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") * factor


def _in_order(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of nested Sequentials."""
    if not isinstance(model, nn.Sequential):
        yield model
        return
    for module in model:
        yield from _in_order(module)


def _head_of(modules: list[nn.Module]) -> tuple[nn.Module | None, int | None]:
    """The last module that changes more than a factor, and how many of its outputs are kept; None: all of them."""
    kept: int | None = None
    for module in reversed(modules):
        if isinstance(module, FirstChannels):
            kept = min(module.channels, kept or module.channels)
        elif not isinstance(module, _KEEP_VALUES):
            return module, kept
    return None, kept
