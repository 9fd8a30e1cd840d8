"""Networks of the literature, built from this package's layers."""

from fastlip.models.convnet import MAX_BLOCKS, SIZES, LipConvNet, lip_conv_net
from fastlip.models.registry import METHODS, TITLES
from fastlip.models.sll import SLL_SIZES, SLLNet, sll_net

__all__ = ["MAX_BLOCKS", "METHODS", "SIZES", "SLL_SIZES", "TITLES", "LipConvNet", "SLLNet", "lip_conv_net", "sll_net"]
