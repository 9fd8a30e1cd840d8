"""The string options of public functions, as types: an editor lists them and a type checker knows them."""

from typing import Literal

import torch

Backend = Literal["auto", "reference", "native", "triton"]
PaddingMode = Literal["zeros", "circular"]
Pairing = Literal["adjacent", "halves"]
Padding = Literal["same", "valid"] | int | tuple[int, int]
Sides = int | tuple[int, int]
Padding1d = Literal["same", "valid"] | int | tuple[int]
Side = int | tuple[int]
Padding3d = Literal["same", "valid"] | int | tuple[int, int, int]
Sides3d = int | tuple[int, int, int]
Device = torch.device | str | int | None
PairingOrNone = Literal["adjacent", "halves", "none"]
FusedActivation = Literal["none", "relu", "maxmin"]
