"""The string options of public functions, as types: an editor lists them and a type checker knows them."""

from typing import Literal

Backend = Literal["auto", "reference", "native", "triton"]
PaddingMode = Literal["zeros", "circular"]
Pairing = Literal["adjacent", "halves"]
PairingOrNone = Literal["adjacent", "halves", "none"]
FusedActivation = Literal["none", "relu", "maxmin"]
