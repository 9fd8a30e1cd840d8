"""Networks of the literature, built from this package's layers."""

from fastlip.models.bro import bro_net
from fastlip.models.catalog import create_model, list_models
from fastlip.models.convnet import MAX_BLOCKS, SIZES, LipConvNet, lip_conv_net
from fastlip.models.lipnext import LIP_NEXT_SIZES, LipNext, lip_next
from fastlip.models.lires import lip_res_net
from fastlip.models.literals import LayerOptions, MethodOptions
from fastlip.models.plain import plain_twin
from fastlip.models.pretrained import ModelCard, model_card
from fastlip.models.quasi_residual import QUASI_RESIDUAL_SIZES, QuasiResidualNet
from fastlip.models.registry import METHODS, TITLES
from fastlip.models.sll import SLL_SIZES, SLLNet, sll_net

__all__ = [
    "LIP_NEXT_SIZES",
    "MAX_BLOCKS",
    "METHODS",
    "QUASI_RESIDUAL_SIZES",
    "SIZES",
    "SLL_SIZES",
    "TITLES",
    "LayerOptions",
    "LipConvNet",
    "LipNext",
    "MethodOptions",
    "ModelCard",
    "QuasiResidualNet",
    "SLLNet",
    "bro_net",
    "create_model",
    "lip_conv_net",
    "lip_next",
    "lip_res_net",
    "list_models",
    "model_card",
    "plain_twin",
    "sll_net",
]
