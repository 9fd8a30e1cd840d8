"""Natural mistakes of types and names: a word for True or False, a dtype as text, a name of another module."""

import subprocess
import sys

import pytest
import torch

import fastlip
from fastlip import _hints
from fastlip import nn as lip

X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)
OFFSET = fastlip.losses.OffsetCrossEntropy


@pytest.fixture(scope="module")
def net():
    return fastlip.models.lip_conv_net("aol", width=4, image_size=8, layers_per_block=1).eval()


def batches(**options):
    return fastlip.data.Batches(fastlip.data.digits().train, **{"divisor": 16, "batch_size": 32, **options})


ALONE = {
    "a bias that is a word": (
        lambda: lip.AOLConv2d(3, 8, 3, bias="no"),
        "bias='no': expected True or False, got str",
    ),
    "a bias that is None": (lambda: lip.CayleyLinear(3, 8, bias=None), "bias=None: expected True or False"),
    "a bias with values": (
        lambda: lip.SLLConv2d(3, 8, 3, bias=torch.zeros(900)),
        "bias: expected True or False, got Tensor",
    ),
    "a word for sync": (lambda: lip.BatchCentering(3, sync="no"), "sync='no': expected True or False"),
    "a word for recompute": (
        lambda: lip.CPLConv2d(3, 8, 3, recompute="no"),
        "recompute='no': expected True or False",
    ),
    "a number for recompute": (lambda: lip.SOCConv2d(3, 8, 3, recompute=2), "recompute=2: expected True or False"),
    "a word for learnable": (lambda: lip.Scale(2.0, learnable="no"), "learnable='no': expected True or False"),
    "a word for centering": (
        lambda: fastlip.models.bro_net(size="XS", centering="no"),
        "centering='no': expected True or False",
    ),
    "a file of weights": (
        lambda: fastlip.models.create_model("cayley_xs.digits", pretrained="net.pt"),
        "pretrained='net.pt': expected True or False, got str",
    ),
    "a word for a list": (
        lambda: fastlip.models.list_models(pretrained="yes"),
        "pretrained='yes': expected True or False",
    ),
    "a dtype as text": (
        lambda: lip.AOLConv2d(3, 8, 3, dtype="float32"),
        "dtype='float32': expected a floating-point torch.dtype, such as torch.float32",
    ),
    "a dtype of integers": (
        lambda: lip.CayleyLinear(3, 8, dtype=torch.int64),
        "dtype=torch.int64: expected a floating-point torch.dtype",
    ),
    "a complex dtype": (
        lambda: lip.NormalizedLinear(3, 8, dtype=torch.complex64),
        "dtype=torch.complex64: expected a floating-point",
    ),
    "a device that torch lacks": (lambda: lip.AOLConv2d(3, 8, 3, device="gpu"), "device='gpu': torch cannot use it"),
    "an array for a layer": (lambda: lip.AOLConv2d(3, 8, 3)(X.numpy()), "x: got ndarray, expected a tensor, such as"),
    "a list for a layer": (lambda: lip.CayleyLinear(2, 8)([1.0, 2.0]), "x: got list, expected a tensor, such as"),
    "an array for an activation": (lambda: lip.MaxMin()(X.numpy()), "x: got ndarray, expected a floating-point"),
    "an array for an op": (lambda: fastlip.ops.gram_rowsum(X.numpy()), "weight: got ndarray, expected a floating"),
    "an array of scores": (
        lambda: OFFSET(1.0)(X[:, :, 0, 0].numpy(), Y),
        "logits: got ndarray, expected a floating-point tensor",
    ),
    "a pair for images": (lambda: fastlip.data.Batches((X, Y), 1, 2), "images: got tuple, expected images of"),
    "a batch size as text": (lambda: batches(batch_size="32"), "batch_size='32': expected a number, got str"),
    "half a batch": (lambda: batches(batch_size=0.5), "batch_size=0.5: expected an int, got float"),
    "a word for channels last": (
        lambda: batches(channels_last="no"),
        "channels_last='no': expected True or False",
    ),
    "a device for batches": (lambda: batches(device="gpu"), "device='gpu': torch cannot use it here"),
    "a number for a folder": (
        lambda: fastlip.data.load("mnist", 5),
        "path=5: expected the name of a folder, got int",
    ),
    "a report that is quiet": (
        lambda: fastlip.convert(torch.nn.Conv2d(3, 4, 3), example=X, quiet="yes"),
        "quiet='yes': expected True or False",
    ),
}
WITH_A_NETWORK = {
    "a threshold as text": (
        lambda net: fastlip.certify(net, [(X, Y)], threshold="0.5"),
        "threshold='0.5': expected a number, got str",
    ),
    "a curve of text": (
        lambda net: fastlip.certify(net, [(X, Y)], 0.1).curve("0.1"),
        "eps='0.1': expected a number or a sequence of numbers",
    ),
    "a curve of the attack of text": (
        lambda net: fastlip.attack(net, [(X, Y)], 0.1, steps=1, restarts=1).curve(["0.1"]),
        "eps=['0.1']: expected a number or a sequence of numbers",
    ),
    "a radius that is a word": (
        lambda net: fastlip.export(net, "net.onnx", (3, 8, 8), radius="no"),
        "radius='no': expected True or False",
    ),
    "progress as a word": (
        lambda net: fastlip.certify(net, (X, Y), progress="no"),
        "progress='no': expected True or False",
    ),
    "radii of classes as a word": (
        lambda net: fastlip.certify(net, (X, Y), per_class="no"),
        "per_class='no': expected True or False",
    ),
    "radii of pixels as a word": (
        lambda net: fastlip.certify_segmentation(net, (X, Y), per_pixel="no"),
        "per_pixel='no': expected True or False",
    ),
    "a radius that is True": (lambda net: fastlip.certify(net, (X, Y), eps=True), "eps=True: expected a number"),
    "a row of pixels": (
        lambda net: net(X[0, 0]),
        "x: got shape (8, 8), expected (n, 3, 8, 8), that of the network's",
    ),
}


def assert_says(call, *arguments, text):
    with pytest.raises((ValueError, TypeError)) as found:
        call(*arguments)
    message = str(found.value)
    assert text in message, message
    assert "\n" not in message


@pytest.mark.parametrize("mistake", ALONE)
def test_a_mistake(mistake):
    call, text = ALONE[mistake]
    assert_says(call, text=text)


@pytest.mark.parametrize("mistake", WITH_A_NETWORK)
def test_a_mistake_with_a_network(net, mistake):
    call, text = WITH_A_NETWORK[mistake]
    assert_says(call, net, text=text)


NAMES = {
    "create_model": "it is fastlip.models.create_model",
    "CayleyConv2d": "it is fastlip.nn.CayleyConv2d",
    "HKR": "it is fastlip.losses.HKR",
    "digits": "it is fastlip.data.digits",
    "maxmin": "it is fastlip.ops.maxmin",
    "certfy": "did you mean fastlip.certify?",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_elsewhere(name):
    with pytest.raises(AttributeError) as found:
        getattr(fastlip, name)
    assert str(found.value) == f"module 'fastlip' has no attribute {name!r}; {NAMES[name]}"


@pytest.mark.parametrize("part", _hints.PARTS)
def test_every_name_of_a_part_is_known_from_its_text(part):
    assert _hints.names_of(f"fastlip.{part}") == set(getattr(fastlip, part).__all__)


def test_a_name_that_is_nowhere_imports_nothing():
    code = "import fastlip, sys; print(hasattr(fastlip, 'zebra'), hasattr(fastlip, 'MaxMin'), 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False", "False"]


def test_a_name_that_is_nowhere():
    with pytest.raises(AttributeError, match=r"module 'fastlip' has no attribute 'zebra'$"):
        fastlip.zebra  # noqa: B018


def test_a_folder_that_is_not_there(net):
    with pytest.raises(FileNotFoundError, match="No such file or directory; make the folder first: 'nowhere'"):
        fastlip.export(net, "nowhere/net.onnx", (3, 8, 8))
