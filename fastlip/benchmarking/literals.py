"""The networks that ``fastlip bench`` times next to plain convolutions, as types."""

from typing import Literal

Peer = Literal["orthogonium", "deel-torchlip"]
Program = Literal["fused compiled", "fused CUDA graph"]
Contestant = Literal[
    "fused",
    "fused compiled",
    "fused CUDA graph",
    "reference",
    "channels-last",
    "compiled",
    "orthogonium",
    "deel-torchlip",
]
