"""The networks that ``fastlip bench`` times next to plain convolutions, as types."""

from typing import Literal

Peer = Literal["orthogonium", "deel-torchlip"]
Program = Literal["fused compiled", "fused CUDA graph"]
PlainForm = Literal["plain channels-last", "plain compiled"]
Contestant = Literal[
    "fused",
    "fused compiled",
    "fused CUDA graph",
    "reference",
    "channels-last",
    "compiled",
    "plain channels-last",
    "plain compiled",
    "orthogonium",
    "deel-torchlip",
]
