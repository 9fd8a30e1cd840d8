"""A method as the rest of the package sees it: its layers, and the settings with which its networks are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Method:
    """A method of the field. Its file in ``fastlip/nn/`` ends with ``METHOD = Method(...)``.

    Args:
        name: the name on the command line and in recipes, in lower case.
        convolution: its convolution.
        linear: its dense layer; None if it has none.
        dense_head: whether the head of :func:`fastlip.models.lip_conv_net` is ``linear``, as published, and not a
            convolution of one tap.
        options: keyword arguments of the convolutions of :func:`fastlip.models.lip_conv_net`, unless told otherwise.
        orthogonal_ends: the parameter that :func:`fastlip.models.lip_conv_net` makes a random orthogonal matrix in
            its first and last layer; empty where these start as the other layers do.
        networks: further networks of ``fastlip.models`` that consist of this method's layers.
        settings: for a recipe's name, the keys in which training this method differs from the recipe,
            ``{"digits": {"optimizer.lr": 0.02}}``.
        peers: for another package's name, its counterpart of the convolution as ``"module:name"``, which
            ``fastlip bench`` times.
    """

    name: str
    convolution: type[nn.Module]
    linear: type[nn.Module] | None = None
    dense_head: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    orthogonal_ends: str = ""
    networks: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    peers: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name as papers write it, for tables and plots."""
        return self.convolution.__name__.removesuffix("Conv2d")
