"""The string options of the networks, as types: an editor lists them and a type checker knows them.

Names of methods are allowed that are not listed here: what counts at run time is :data:`fastlip.models.METHODS`.
"""

from typing import Literal

MethodName = Literal["aoc", "aol", "bcop", "bro", "cayley", "cpl", "lot", "sll", "soc"]
OfficialMethodName = Literal["aol", "bcop", "cayley", "cpl", "lot", "sll", "soc"]
Size = Literal["XS", "S", "M", "L"]
SLLSizeName = Literal["S", "M", "L", "XL"]
