"""Layers of other packages that stand beside a method of ours in ``fastlip bench``, where they are installed."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

# Each method's counterpart: module, convolution. deel-torchlip has one orthogonalised convolution, of the reshaped
# kernel; it stands beside the orthogonal layers that are one convolution.
_CONVOLUTIONS = {
    "orthogonium": {
        "aoc": ("orthogonium.layers.conv.AOC", "AdaptiveOrthoConv2d"),
        "aol": ("orthogonium.layers.conv.AOL.aol", "AOLConv2D"),
        "bcop": ("orthogonium.layers.conv.AOC", "AdaptiveOrthoConv2d"),
    },
    "deel-torchlip": {
        "aoc": ("deel.torchlip", "SpectralConv2d"),
        "bcop": ("deel.torchlip", "SpectralConv2d"),
    },
}
_DENSE = {"orthogonium": ("orthogonium.layers", "OrthoLinear"), "deel-torchlip": ("deel.torchlip", "SpectralLinear")}
PEERS = tuple(_CONVOLUTIONS)


def why_not(peer: str, method: str) -> str:
    """Why this package cannot be timed beside this method; empty if it can."""
    if method not in _CONVOLUTIONS[peer]:
        return f"{peer} has no counterpart of {method}"
    try:
        importlib.import_module(_CONVOLUTIONS[peer][method][0])
    except ImportError as error:
        return f"{peer} cannot be imported ({error}): pip install 'fastlip[peers]'"
    return ""


def convolution(peer: str, method: str, *arguments: Any, **options: Any) -> nn.Module:
    """The package's convolution of this method, made with the arguments of ``nn.Conv2d``."""
    return _find(_CONVOLUTIONS[peer][method])(*arguments, **options)


def dense(peer: str, in_features: int, out_features: int) -> nn.Module:
    """The package's dense layer."""
    return _find(_DENSE[peer])(in_features, out_features)


def _find(place: tuple[str, str]) -> Any:
    module, name = place
    return getattr(importlib.import_module(module), name)
