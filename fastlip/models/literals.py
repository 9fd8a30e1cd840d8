"""The string options of the networks, as types: an editor lists them and a type checker knows them.

Names of methods and networks are allowed that are not listed here: what counts at run time is
:data:`fastlip.models.METHODS` and :func:`fastlip.models.list_models`.
"""

from typing import Literal

MethodName = Literal["aoc", "aol", "bcop", "bro", "cayley", "cpl", "lot", "sll", "soc"]
OfficialMethodName = Literal["aol", "bcop", "cayley", "cpl", "lot", "sll", "soc"]
ModelName = Literal[
    "bro_net",
    "lip_conv_net",
    "lip_next",
    "lip_res_net",
    "plain_bro_net",
    "plain_lip_conv_net",
    "plain_lip_next",
    "plain_lip_res_net",
    "sll_net",
]
Size = Literal["XS", "S", "M", "L"]
LipNextSize = Literal["XS", "S", "M", "L", "XL"]
OrthogonalName = Literal["bcop", "bro", "cayley", "lot", "soc"]
SLLSizeName = Literal["S", "M", "L", "XL"]
