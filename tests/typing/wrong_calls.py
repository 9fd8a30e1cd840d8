"""Calls with one mistake each, which type checkers report: tests/typing/test_typing.py."""

import torch
from torch import nn

import fastlip
from fastlip import conformal, data, losses, models, ops
from fastlip import nn as lip
from fastlip.models import lip_conv_net

misspelt_keyword = lip.CayleyConv2d(3, 8, 3, pading_mode="zeros")
string_for_an_int = lip.AOLConv2d(3, "8", 3)
unknown_padding_mode = lip.SLLConv2d(8, 8, 3, padding_mode="reflect")
unknown_backend = ops.cayley(torch.eye(3), backend="cuda")
unknown_method = lip_conv_net("aoll")
misspelt_option_of_a_method = lip_conv_net("soc", term=4)

net: nn.Module = nn.Sequential(lip.AOLConv2d(3, 8, 3))
x, y = torch.rand(2, 3, 8, 8), torch.arange(2)
# Layers.
kernel_size_left_out = lip.AOLConv2d(3, 8)
pair_of_floats = lip.AOLConv2d(3, 8, 3, stride=(1.0, 2))
dtype_as_text = lip.BCOPConv2d(3, 8, 3, dtype="float32")
word_for_a_bool = lip.AOLLinear(3, 8, bias="no")
option_by_position = lip.LOTConv2d(3, 8, 3, 1, 1, 1, 1, True, "circular", "cpu", torch.float32, "auto", 1e-4)
unknown_training_sigma = lip.CPLConv2d(8, 8, 3, training_sigma="svd")
unknown_activation = lip.SandwichLinear(3, 8, activation="gelu")
unknown_pairing = lip.MaxMin("pairs")
string_for_a_window = lip.L2NormPool2d("2")
# Functions.
unknown_pairing_of_an_op = ops.maxmin(x, pairing="half")
float_for_an_image_size = ops.spectral_norm(x, (8.5, 8))
terms_left_out = ops.conv_exp(x, torch.rand(3, 3, 3, 3))
# Losses, models and data.
unknown_reduction = losses.OffsetCrossEntropy(offset=0.4, temperature=0.25, reduction="average")
misspelt_option_of_a_loss = losses.HKR(alpha=0.9, margin=1)
unknown_size = models.sll_net(size="XXL")
unknown_name_of_a_model = models.create_model("lip_net")
number_for_a_folder = data.cifar10(3)
# Certificates, attacks and export.
text_for_a_radius = fastlip.certify(net, [(x, y)], eps="0.1")
unknown_rounding = fastlip.certify(net, [(x, y)], rounding="worst")
text_for_a_shape = fastlip.audit(net, "3,8,8")
unknown_attack = fastlip.attack(net, [(x, y)], kind="fgsm")
unknown_format = fastlip.export(net, "net.onnx", format="tflite")
unknown_method_of_a_conversion = fastlip.convert(net, method="aoll", example=x)
text_for_a_share = conformal.calibrate(fastlip.certify_outputs(net, [x]), alpha="0.1")
value_that_is_called = fastlip.certify(net, [(x, y)]).accuracy()
misspelt_field = fastlip.audit(net, (3, 8, 8)).bnd
