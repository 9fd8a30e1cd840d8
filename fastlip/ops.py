"""The functional form of every kernel: ``fastlip.ops.<op>(..., backend="auto")``.

One line per op. The implementation of an op is the folder ``fastlip/kernels/<op>/``. ``kernel_spectrum`` and
``own_frequencies`` make and describe the matrices that ``spectral_conv`` takes.
"""

from fastlip._moved import keep_old_op_paths
from fastlip.kernels import OPS
from fastlip.kernels.block_conv.api import block_conv
from fastlip.kernels.block_reflector.api import block_reflector
from fastlip.kernels.cayley.api import cayley
from fastlip.kernels.cayley_linear.api import cayley_linear
from fastlip.kernels.conv_chain.api import conv_chain
from fastlip.kernels.conv_exp.api import conv_exp
from fastlip.kernels.gram_rowsum.api import gram_rowsum
from fastlip.kernels.linear.api import linear
from fastlip.kernels.maxmin.api import maxmin
from fastlip.kernels.pixel_unshuffle.api import pixel_unshuffle
from fastlip.kernels.polar.api import polar
from fastlip.kernels.polar_linear.api import polar_linear
from fastlip.kernels.sdp_residual.api import sdp_residual
from fastlip.kernels.skew_exp.api import skew_exp
from fastlip.kernels.skew_exp_linear.api import skew_exp_linear
from fastlip.kernels.spectral_cayley.api import spectral_cayley
from fastlip.kernels.spectral_conv.api import spectral_conv
from fastlip.kernels.spectral_conv.frequencies import kernel_spectrum, own_frequencies
from fastlip.kernels.spectral_exp.api import spectral_exp
from fastlip.kernels.spectral_norm.api import spectral_norm
from fastlip.kernels.spectral_polar.api import spectral_polar

__all__ = [
    "block_conv",
    "block_reflector",
    "cayley",
    "cayley_linear",
    "conv_chain",
    "conv_exp",
    "gram_rowsum",
    "kernel_spectrum",
    "linear",
    "maxmin",
    "own_frequencies",
    "pixel_unshuffle",
    "polar",
    "polar_linear",
    "sdp_residual",
    "skew_exp",
    "skew_exp_linear",
    "spectral_cayley",
    "spectral_conv",
    "spectral_exp",
    "spectral_norm",
    "spectral_polar",
]

keep_old_op_paths(OPS)
