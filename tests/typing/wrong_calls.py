"""Five calls with one mistake each, which type checkers report: tests/typing/test_typing.py."""

import torch

from fastlip import nn as lip
from fastlip import ops
from fastlip.models import lip_conv_net

misspelt_keyword = lip.CayleyConv2d(3, 8, 3, pading_mode="zeros")
string_for_an_int = lip.AOLConv2d(3, "8", 3)
unknown_padding_mode = lip.SLLConv2d(8, 8, 3, padding_mode="reflect")
unknown_backend = ops.cayley(torch.eye(3), backend="cuda")
unknown_method = lip_conv_net("aoll")
misspelt_option_of_a_method = lip_conv_net("soc", term=4)
