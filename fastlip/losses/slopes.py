"""How fast the difference of two scores can change, as training assumes it and certificates measure it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastlip.nn.base import at_least_float32
from fastlip.nn.normalized import NormalizedLinear
from fastlip.nn.shaping import FirstChannels

_KEEP_VALUES = (nn.Identity, nn.Flatten, nn.Dropout)


def class_slopes(model: nn.Module) -> Tensor | float:
    r"""Returns how fast f_i - f_j changes in training for all classes i and j, if all layers but the head have L = 1.

    .. math:: d_{ij} = |w_i - w_j| \ \text{for a head with rows } w, \qquad d_{ij} = \sqrt 2 \ \text{otherwise}

    A head is the last module, up to ``Flatten``, ``Dropout`` and :class:`fastlip.nn.FirstChannels`, if it is
    :class:`fastlip.nn.NormalizedLinear` or ``torch.nn.Linear``. These are the slopes by which
    :func:`fastlip.certify` divides margins, except that it multiplies them by audited bounds. Gradients reach the
    rows.

    Args:
        model: the network, a ``torch.nn.Sequential`` of modules; of any other module, only the module itself is a
            head.

    Returns:
        (c, c), at least float32, on the model's device; the number sqrt(2) without such a head.

    Examples:
        >>> head = lip.NormalizedLinear(4, 3)
        >>> slopes = fastlip.losses.class_slopes(torch.nn.Sequential(torch.nn.Flatten(), head))
        >>> torch.allclose(slopes[0, 1], (head.weight[0] - head.weight[1]).norm())
        True
        >>> fastlip.losses.class_slopes(lip.CayleyLinear(4, 3))
        1.4142135623730951
    """
    head, count = _head_of(model)
    if not isinstance(head, (NormalizedLinear, nn.Linear)):
        return math.sqrt(2)
    rows = at_least_float32(head.weight)[:count]
    with torch.autocast(rows.device.type, enabled=False):
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def _head_of(model: nn.Module) -> tuple[nn.Module, int | None]:
    """The last module that changes values, and how many of its outputs are kept; None: all of them."""
    kept: int | None = None
    modules = [model]
    last = model
    while modules:
        last = modules.pop()
        if isinstance(last, nn.Sequential):
            modules += last
        elif isinstance(last, FirstChannels):
            kept = min(last.channels, kept or last.channels)
        elif not isinstance(last, _KEEP_VALUES):
            break
    return last, kept
