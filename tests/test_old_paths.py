"""Import paths of public names that were valid before the package was rearranged still are."""

import importlib
import subprocess
import sys

import pytest

import fastlip

# Each module as it was once, and the public names that it had.
OLD = {
    "fastlip": "AttackResult Audit Certificate attack audit certify data doctor export freeze fuse hub load_official "
    "losses models nn ops unfreeze unfuse",
    "fastlip.attacks": "KINDS AttackResult BrokenCertificateWarning attack attack_certified",
    "fastlip.auditing": "Audit Bound LayerBound audit examine lipschitz_bound",
    "fastlip.certificates": "Certificate certify",
    "fastlip.data": "DATASETS Batches Data DataError FolderImages Images Share TensorImages cifar10 cifar100 digits "
    "folder load tinyimagenet",
    "fastlip.data.batches": "Augmentation Batches Share",
    "fastlip.data.cifar": "cifar10 cifar100",
    "fastlip.data.decoding": "DataError",
    "fastlip.data.digits": "digits",
    "fastlip.data.folder": "folder tinyimagenet",
    "fastlip.data.images": "Data FileList FolderImages Images TensorImages",
    "fastlip.diagnosis": "diagnose doctor doctor_text",
    "fastlip.exporting": "FOURIER Target export exported",
    "fastlip.freezing": "Frozen freeze unfreeze",
    "fastlip.fusing": "fuse unfuse",
    "fastlip.hub": "Run card load read",
    "fastlip.losses": "CategoricalHinge HKR Hinge KR LseHKR MultiMargin MulticlassHKR MulticlassHinge MulticlassKR "
    "OffsetCrossEntropy SoftHKR TemperatureCrossEntropy",
    "fastlip.models": "LipConvNet MAX_BLOCKS METHODS SIZES SLLNet SLL_SIZES TITLES lip_conv_net sll_net",
    "fastlip.models.convnet": "LipConvNet lip_conv_net",
    "fastlip.models.sll": "SLLNet SLLSize sll_net",
    "fastlip.nn": "AOCConv2d AOCConvTranspose2d AOLConv2d AOLLinear Abs BCOPConv2d BjorckLinear CPLConv2d CPLLinear "
    "CayleyConv2d CayleyLinear Chain FirstChannels GroupSort HouseHolder L2NormPool2d LOTConv2d LOTLinear MaxMin "
    "NormalizedLinear PixelUnshuffle SLLConv2d SLLLinear SOCConv2d SOCLinear ScaledAvgPool2d ZeroChannelPad",
    "fastlip.nn.activations": "Abs GroupSort HouseHolder MaxMin",
    "fastlip.nn.aoc": "AOCConv2d AOCConvTranspose2d",
    "fastlip.nn.aol": "AOLConv2d AOLLinear",
    "fastlip.nn.bcop": "BCOPConv2d BjorckLinear",
    "fastlip.nn.cayley": "CayleyConv2d CayleyLinear",
    "fastlip.nn.chain": "Chain",
    "fastlip.nn.cpl": "CPLConv2d CPLLinear",
    "fastlip.nn.lot": "LOTConv2d LOTLinear",
    "fastlip.nn.normalized": "NormalizedLinear",
    "fastlip.nn.pooling": "L2NormPool2d ScaledAvgPool2d",
    "fastlip.nn.shaping": "FirstChannels PixelUnshuffle ZeroChannelPad",
    "fastlip.nn.sll": "SLLConv2d SLLLinear",
    "fastlip.nn.soc": "SOCConv2d SOCLinear",
    "fastlip.official": "load_official published_conv_net read_sizes",
    "fastlip.ops.block_conv": "block_conv",
    "fastlip.ops.cayley": "cayley",
    "fastlip.ops.conv_chain": "conv_chain",
    "fastlip.ops.conv_exp": "conv_exp",
    "fastlip.ops.gram_rowsum": "gram_rowsum",
    "fastlip.ops.maxmin": "maxmin",
    "fastlip.ops.pixel_unshuffle": "pixel_unshuffle",
    "fastlip.ops.polar": "polar",
    "fastlip.ops.sdp_residual": "sdp_residual",
    "fastlip.ops.skew_exp": "skew_exp",
    "fastlip.ops.spectral_conv": "kernel_spectrum own_frequencies spectral_conv",
    "fastlip.ops.spectral_exp": "spectral_exp",
    "fastlip.ops.spectral_norm": "spectral_norm",
    "fastlip.ops.spectral_polar": "spectral_polar",
    "fastlip.plotting": "plot_curves",
}


@pytest.mark.parametrize("path", OLD)
def test_an_old_path_has_its_names(path):
    module = importlib.import_module(path)
    assert [name for name in OLD[path].split() if not hasattr(module, name)] == []


def test_an_old_path_has_the_objects_of_today():
    assert importlib.import_module("fastlip.auditing").audit is fastlip.audit
    assert importlib.import_module("fastlip.certificates").Certificate is fastlip.Certificate
    assert importlib.import_module("fastlip.ops.cayley").cayley is fastlip.ops.cayley


@pytest.mark.parametrize("path", ["fastlip.auditing", "fastlip.ops.polar"])
def test_an_old_path_may_be_imported_first(path):
    code = f"from {path} import {OLD[path].split()[0]}"
    subprocess.run([sys.executable, "-c", code], check=True)
