"""The parts that networks share, and each one's entry for the package: how it is built, and how recipes name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fastlip import nn as lip


class Network(lip.Chain):
    """Base of the networks of this package: a sequence of 1-Lipschitz modules with named parts.

    ``input_shape`` is the shape (c, h, w) of one image. ``margin_slope``: margins change by at most this times the
    perturbation. It is 2 where the last layer has unit rows, as |w_y - w_j| <= 2 for those.

    Args:
        *modules: the modules in their order, or one ``OrderedDict`` of them, as ``torch.nn.Sequential`` takes them.
    """

    input_shape: tuple[int, int, int]
    margin_slope: float = 2.0


@dataclass(frozen=True)
class Model:
    """A network. Its file in ``fastlip/models/`` ends with ``MODEL = Model(...)``.

    Args:
        name: the name on the command line, in recipes and in :func:`fastlip.models.list_models`.
        build: the function that builds it; it takes at least ``size``, ``num_classes``, ``image_size``,
            ``in_channels``, ``width`` and ``backend``.
        recipe: end of the names of its recipes, which begin with a data set: ``"bronet"`` of ``cifar10-bronet``.
        fields: fields of recipes that ``build`` takes as well; numbers of 0 are left out.
        twin: whether there is a twin of torch's layers under the name ``plain_{name}``.
    """

    name: str
    build: Callable[..., nn.Module]
    recipe: str
    fields: tuple[str, ...] = ()
    twin: bool = True
