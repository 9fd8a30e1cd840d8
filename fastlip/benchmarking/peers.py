"""Layers of other packages that ``fastlip bench`` times next to a method, where they are installed."""

from __future__ import annotations

import importlib
from typing import Any, get_args

from torch import nn

from fastlip.benchmarking.literals import Peer
from fastlip.models.registry import method_of

PEERS: tuple[Peer, ...] = get_args(Peer)
# The dense layers; the convolutions are in each method's ``Method.peers``.
_DENSE: dict[Peer, str] = {
    "orthogonium": "orthogonium.layers:OrthoLinear",
    "deel-torchlip": "deel.torchlip:SpectralLinear",
}


def why_not(peer: Peer, method: str) -> str:
    """Why this package cannot be timed next to this method; empty if it can."""
    place = method_of(method).peers.get(peer)
    if place is None:
        return f"{peer} has no counterpart of {method}"
    try:
        importlib.import_module(place.partition(":")[0])
    except ImportError as error:
        return f"{peer} cannot be imported ({error}): pip install 'fastlip[peers]'"
    return ""


def convolution(peer: Peer, method: str, *arguments: Any, **options: Any) -> nn.Module:
    """The package's convolution of this method, made with the arguments of ``nn.Conv2d``."""
    return _find(method_of(method).peers[peer])(*arguments, **options)


def dense(peer: Peer, in_features: int, out_features: int) -> nn.Module:
    """The package's dense layer."""
    return _find(_DENSE[peer])(in_features, out_features)


def _find(place: str) -> Any:
    """The object at ``"module:name"``."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
