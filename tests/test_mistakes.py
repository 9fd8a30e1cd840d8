"""Natural mistakes: each gives one line that names the argument, its value, and what is allowed or what to do."""

import copy

import pytest
import torch

import fastlip
from fastlip import nn as lip

X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)


@pytest.fixture(scope="module")
def net():
    return fastlip.models.lip_conv_net("aol", width=4, image_size=8, layers_per_block=1).eval()


def conv_net(method="aol", **options):
    return fastlip.models.lip_conv_net(method, image_size=options.pop("image_size", 8), **options)


def batches(**options):
    images = fastlip.data.digits().train
    return fastlip.data.Batches(images, **{"divisor": 16, "batch_size": 32, **options})


def of_nan(net):
    net = copy.deepcopy(net)
    torch.nn.init.constant_(next(net.parameters()), torch.nan)
    return net


OFFSET = fastlip.losses.OffsetCrossEntropy
# What is built or computed without a network: the call, and what its message has to say.
ALONE = {
    "an odd width": (lambda: conv_net(width=5), "width=5: expected an even number"),
    "a method misspelt": (lambda: conv_net("alo"), "method='alo': allowed are 'aoc', 'aol'"),
    "a size of clothes": (lambda: conv_net(size="XXL"), "size='XXL': allowed are 'XS', 'S', 'M', 'L'"),
    "an image of a pixel": (lambda: conv_net(image_size=1), "image_size=1: expected at least 2"),
    "too many classes": (lambda: conv_net(width=4, num_classes=1000), "num_classes=1000: expected at most"),
    "no layers": (lambda: conv_net(layers_per_block=0), "layers_per_block=0: expected at least 1"),
    "a text for a number": (lambda: conv_net("soc", terms="5"), "terms='5': expected an int, got str"),
    "an unknown network": (lambda: fastlip.models.create_model("resnet"), "name='resnet': allowed are 'bro_net'"),
    "an unknown backend": (lambda: lip.AOLConv2d(3, 8, 3, backend="fast"), "backend='fast': allowed are 'auto'"),
    "a backend set later": (
        lambda: setattr(lip.AOLConv2d(3, 8, 3), "backend", "cuda"),
        "backend='cuda': allowed are",
    ),
    "padding that mirrors": (
        lambda: lip.CayleyConv2d(3, 8, 3, padding_mode="reflect"),
        "padding_mode='reflect': allowed are 'circular', 'zeros'",
    ),
    "padding that repeats": (
        lambda: lip.AOLConv2d(3, 8, 3, padding_mode="replicate"),
        "padding_mode='replicate': allowed are 'circular', 'zeros'",
    ),
    "no channels": (lambda: lip.AOLConv2d(0, 8, 3), "in_channels=0: expected at least 1"),
    "a float of channels": (lambda: lip.AOLConv2d(3.0, 8, 3), "in_channels=3.0: expected an int, got float"),
    "a negative kernel": (lambda: lip.AOLConv2d(3, 8, -3), "kernel_size=-3: expected at least 1"),
    "groups that do not divide": (lambda: lip.AOLConv2d(3, 8, 3, groups=2), "groups=2: expected a divisor of"),
    "an even kernel of SOC": (lambda: lip.SOCConv2d(4, 4, 2), "kernel_size=(2, 2): allowed are odd sides"),
    "groups of channels": (lambda: lip.GroupSort(5)(X), "group_size=5: expected a divisor of the 3"),
    "channels of the input": (lambda: lip.AOLConv2d(5, 8, 3)(X), "x: got shape (4, 3, 8, 8), expected (n, 5, h, w)"),
    "an image without channels": (lambda: lip.AOLConv2d(3, 8, 3)(X[0, 0]), "x: got shape (8, 8), expected (n, 3"),
    "features of the input": (lambda: lip.CayleyLinear(8, 4)(X[0, 0, :, :7]), "x: got shape (8, 7), expected (*, 8)"),
    "weights on meta": (lambda: lip.AOLConv2d(3, 8, 3, device="meta")(X), "bias: is on meta, without numbers"),
    "a matrix on meta": (lambda: lip.CayleyLinear(8, 4, bias=False, device="meta")(X), "raw_weight: is on meta"),
    "a temperature of 0": (lambda: OFFSET(1.0, 0), "temperature=0: expected a positive number"),
    "a negative offset": (lambda: OFFSET(-1.0), "offset=-1.0: expected a number, at least 0"),
    "alpha above 1": (lambda: fastlip.losses.HKR(alpha=2.0), "alpha=2.0: expected a number from 0 to 1"),
    "a label too many": (lambda: OFFSET(1.0)(X[:, :, 0, 0], Y), "labels: got values from 0 to 3, expected 0 to 2"),
    "labels too few": (lambda: OFFSET(1.0)(X[:, :, 0, 0], Y[:2]), "labels: got shape (2,), expected (4,) integers"),
    "whole scores": (lambda: OFFSET(1.0)(Y[:, None] + Y, Y), "logits: got torch.int64, expected a floating-point"),
    "an unknown data set": (lambda: fastlip.data.load("imagenet"), "data='imagenet': allowed are 'digits'"),
    "data without a folder": (lambda: fastlip.data.load("cifar10"), "path='': data='cifar10' needs the folder"),
    "a folder that is not there": (lambda: fastlip.data.load("mnist", "nowhere"), "nowhere: no such folder"),
    "a set without labels": (lambda: fastlip.data.from_datasets(X, X), "train: got Tensor, expected a pair"),
    "a set on another scale": (
        lambda: fastlip.data.from_datasets((255 * X, Y), (X, Y)),
        "expected [0, 1]",
    ),
    "a trained network in place of a run": (
        lambda: fastlip.hub.load("cayley_xs.digits"),
        "no such checkpoint; fastlip.models.create_model('cayley_xs.digits')",
    ),
    "a run that is not there": (lambda: fastlip.hub.load("nowhere"), "nowhere: no such checkpoint"),
    "a state dict of something else": (lambda: fastlip.load_official({}, "aol"), "state_dict: got no entry"),
    "an offset as text": (lambda: OFFSET("1"), "offset='1': expected a number, got str"),
    "a temperature as text": (lambda: OFFSET(1.0, "0.25"), "temperature='0.25': expected a number, got str"),
    "alpha as text": (lambda: fastlip.losses.HKR(alpha="0.5"), "alpha='0.5': expected a number, got str"),
    "a radius of EMMA as text": (lambda: fastlip.losses.EMMA("1"), "radius='1': expected a number, got str"),
    "labels for scores": (
        lambda: OFFSET(1.0)(Y, X[:, :, 0, 0]),
        "scores: got torch.int64, expected a floating-point",
    ),
    "a one-hot of other classes": (lambda: OFFSET(1.0)(X[:, 0, 0], torch.eye(4, 5)), "labels: got shape (4, 5)"),
    "a batch of no images": (lambda: batches(batch_size=0), "batch_size=0: expected a positive number"),
    "a divisor of 0": (lambda: batches(divisor=0), "divisor=0: expected a positive number"),
    "a number for a pattern": (lambda: fastlip.models.list_models(3), "pattern=3: expected a str, got int"),
    "a number for a run": (lambda: fastlip.hub.load(3), "path: got int, expected the name of a run folder"),
    "a number for a card": (lambda: fastlip.hub.card(3), "path: got int, expected the name of a run folder"),
    "a file for weights": (lambda: fastlip.load_official("net.pth", "aol"), "state_dict: got str, expected a dict"),
    "classes of other weights": (
        lambda: fastlip.models.create_model("cayley_xs.mnist", pretrained=True, num_classes=100),
        "num_classes=100: 'cayley_xs.mnist' is trained for num_classes=10",
    ),
    "weights that are not there": (
        lambda: fastlip.models.create_model("cayley_xs.cifar10", pretrained=True),
        "name='cayley_xs.cifar10': closest are 'cayley_xs.digits'",
    ),
    "a constant of 0": (lambda: conv_net(lipschitz=0), "lipschitz=0: expected a positive finite number"),
    "an example that is a list": (
        lambda: fastlip.convert(torch.nn.Conv2d(3, 4, 3), example=[X]),
        "example: got list, expected a tensor, a batch of the model's inputs",
    ),
    "an example without a batch": (
        lambda: fastlip.convert(torch.nn.Conv2d(3, 4, 3), example=X[0]),
        "example: the model does not run on a batch of shape (2, 8, 8)",
    ),
    "a class to convert": (
        lambda: fastlip.convert(torch.nn.Conv2d, example=X),
        "model: got type, expected a torch.nn",
    ),
    "a method to convert to": (
        lambda: fastlip.convert(torch.nn.Linear(2, 2), method="alo", example=X[0, 0, :, :2]),
        "method='alo': allowed are",
    ),
}
# What is done with a network.
WITH_A_NETWORK = {
    "a function for a network": (lambda net: fastlip.certify(torch.relu, [(X, Y)]), "model: got builtin_function"),
    "no batches": (lambda net: fastlip.certify(net, []), "loader: it has no batches"),
    "images alone": (
        lambda net: fastlip.certify(net, X),
        "loader: got Tensor, expected batches of images and labels",
    ),
    "a number for data": (lambda net: fastlip.certify(net, 3), "loader: got int, expected batches"),
    "bytes": (lambda net: fastlip.certify(net, ((255 * X).byte(), Y)), "are torch.uint8, expected floating-point"),
    "images not divided by 255": (lambda net: fastlip.certify(net, (255 * X, Y), bounds=(0, 1)), "outside of the bo"),
    "channels of the data": (lambda net: fastlip.certify(net, (X[:, :1], Y)), "built for images of (3, 8, 8)"),
    "sizes of the data": (lambda net: fastlip.certify(net, (X[..., :7], Y)), "built for images of (3, 8, 8)"),
    "labels too many": (lambda net: fastlip.certify(net, (X, torch.arange(5))), "got 4 images and 5 labels"),
    "labels out of range": (lambda net: fastlip.certify(net, (X, Y + 20)), "got values from 20 to 23, expected 0"),
    "images that are not numbers": (lambda net: fastlip.certify(net, (X * torch.nan, Y)), "contain NaN or Inf"),
    "a negative radius": (lambda net: fastlip.certify(net, (X, Y), eps=-1), "eps=-1: expected numbers, at least 0"),
    "a radius as text": (lambda net: fastlip.certify(net, (X, Y), eps="0.1"), "eps='0.1': expected a number"),
    "names for labels": (
        lambda net: fastlip.certify(net, [(X, ["cat"] * 4)]),
        "the labels of batch 0 are of type list, expected tensors, numpy arrays or lists of class numbers",
    ),
    "None for labels": (lambda net: fastlip.certify(net, [(X, None)]), "are of type NoneType, expected tensors"),
    "labels as floats": (lambda net: fastlip.certify(net, (X, Y.float())), "expected integers; use labels.long()"),
    "labels as a column": (lambda net: fastlip.certify(net, (X, Y[:, None])), "one-hot; use labels.squeeze(1)"),
    "channels last": (lambda net: fastlip.certify(net, (X.movedim(1, 3), Y)), "built for images of (3, 8, 8)"),
    "the model after the data": (
        lambda net: fastlip.certify((X, Y), net),
        "model: got tuple, expected a torch.nn.Mo",
    ),
    "labels before images": (lambda net: fastlip.certify(net, (Y, X)), "batch 0 is no pair of images and labels"),
    "weights for a network": (lambda net: fastlip.audit(net.state_dict(), (3, 8, 8)), "model: got OrderedDict, exp"),
    "weights that are NaN": (lambda net: fastlip.certify(of_nan(net), (X, Y)), "bias contains NaN or Inf"),
    "weights that are NaN in a file": (
        lambda net: fastlip.export(of_nan(net), "net.pt", (3, 8, 8)),
        "bias contains NaN or Inf",
    ),
    "a radius that is NaN": (lambda net: fastlip.certify(net, (X, Y), eps=float("nan")), "eps=nan: expected numbers"),
    "an attack in capitals": (lambda net: fastlip.attack(net, (X, Y), kind="PGD"), "kind='PGD': allowed are 'pgd'"),
    "a seed as text": (lambda net: fastlip.attack(net, (X, Y), seed="1"), "seed='1': expected an int or a torch.G"),
    "bytes to attack": (lambda net: fastlip.attack(net, ((255 * X).byte(), Y)), "such as images.float() / 255"),
    "a network in training to attack": (
        lambda net: fastlip.attack(conv_net(width=4), (X, Y)),
        "is in training mode; call model.eval() first",
    ),
    "an accuracy for a certificate": (
        lambda net: fastlip.export(net, "net.pt", (3, 8, 8), certificate=0.9),
        "certificate: got float, expected a fastlip Certificate",
    ),
    "the file before the network": (lambda net: fastlip.export("net.pt", net), "path: got LipConvNet, expected the"),
    "no suffix": (lambda net: fastlip.export(net, "net", (3, 8, 8)), "path='net': the suffix '' names no format"),
    "one image": (lambda net: net(X[0]), "x: got shape (3, 8, 8), expected (n, 3, 8, 8), that of the network's"),
    "one image, the remedy": (lambda net: net(X[0]), "use x.unsqueeze(0) for one image"),
    "an array": (lambda net: net(X.numpy()), "x: got ndarray, expected a tensor, such as torch.as_tensor(x)"),
    "a list of batches": (lambda net: net([X]), "x: got list, expected a tensor"),
    "half precision": (lambda net: fastlip.certify(net, (X, Y), dtype=torch.float16), "dtype=torch.float16: allowed"),
    "an unknown rounding": (lambda net: fastlip.certify(net, (X, Y), rounding="no"), "rounding='no': allowed are"),
    "one bound": (lambda net: fastlip.certify(net, (X, Y), bounds=1), "bounds=1: expected (low, high) or None"),
    "bounds the wrong way round": (
        lambda net: fastlip.certify(net, (X, Y), bounds=(1, 0)),
        "bounds=(1, 0): expected low <= high",
    ),
    "empty batches": (lambda net: fastlip.certify(net, [(X[:0], Y[:0])]), "no batches, or only empty ones"),
    "a device that is not there": (
        lambda net: fastlip.certify(net, (X, Y), device="gpu"),
        "device='gpu': torch cannot",
    ),
    "another device": (
        lambda net: fastlip.attack(net, (X, Y), device="xpu:7"),
        "device='xpu:7': torch cannot use it",
    ),
    "a side for a shape": (
        lambda net: fastlip.certify(net, (X, Y), input_shape=8),
        "input_shape=8: expected a tuple",
    ),
    "a batch for a shape": (lambda net: fastlip.audit(net, X), "input_shape: got a tensor of shape (4, 3, 8, 8)"),
    "a network for outputs": (
        lambda net: fastlip.certify_top_k(net, 1),
        "outputs: got LipConvNet, expected the Cert",
    ),
    "a network for a detector": (lambda net: fastlip.certify_detector(net), "outputs: got LipConvNet, expected the"),
    "a network for intervals": (lambda net: fastlip.conformal.calibrate_intervals(net), "outputs: got LipConvNet"),
    "a share as text": (
        lambda net: fastlip.conformal.calibrate(fastlip.certify_outputs(net, (X, Y)), "0.1"),
        "alpha='0.1': expected a number between 0 and 1",
    ),
    "a change for a radius as text": (
        lambda net: fastlip.certify_outputs(net, X).change("0.1"),
        "eps='0.1': expected a number, at least 0",
    ),
    "a network without numbers": (
        lambda net: fastlip.audit(copy.deepcopy(net).to("meta"), (3, 8, 8)),
        "is on the meta device",
    ),
    "a batch in double precision": (lambda net: net(X.double()), "x: got torch.float64, expected torch.float32"),
    "an unknown attack": (lambda net: fastlip.attack(net, (X, Y), kind="fgsm"), "kind='fgsm': allowed are 'pgd'"),
    "no steps": (lambda net: fastlip.attack(net, (X, Y), steps=0), "steps=0: expected at least 1"),
    "images out of bounds": (lambda net: fastlip.attack(net, (2 * X, Y)), "outside of 0 to 1; bounds=None sets none"),
    "a batch for a sample": (lambda net: fastlip.audit(net, (1, 3, 8, 8)), "expected 3 dimensions, channels first"),
    "a size to export for": (
        lambda net: fastlip.export(net, "net.pt", (3, 16, 16)),
        "input_shape=(3, 16, 16): the model does not run on a sample of this shape",
    ),
    "channels to export for": (
        lambda net: fastlip.export(torch.nn.Linear(4, 4), (3,)),
        "input_shape=(3,): the model does not run on a sample of this shape",
    ),
    "facts that JSON lacks": (
        lambda net: fastlip.export(net, "net.pt", (3, 8, 8), facts={"accuracy": float("nan")}),
        "facts: expected a dict of values that JSON can hold",
    ),
    "an unknown format": (lambda net: fastlip.export(net, "net.h5", (3, 8, 8)), "path='net.h5': the suffix '.h5'"),
}


def assert_says(call, *arguments, text):
    with pytest.raises((ValueError, TypeError)) as found:
        call(*arguments)
    message = str(found.value)
    assert text in message, message
    assert "\n" not in message


def test_there_are_fifty():
    assert len(ALONE) + len(WITH_A_NETWORK) >= 50


@pytest.mark.parametrize("mistake", ALONE)
def test_a_mistake(mistake):
    call, text = ALONE[mistake]
    assert_says(call, text=text)


@pytest.mark.parametrize("mistake", WITH_A_NETWORK)
def test_a_mistake_with_a_network(net, mistake):
    call, text = WITH_A_NETWORK[mistake]
    assert_says(call, net, text=text)


def test_training_mode(net):
    assert_says(fastlip.certify, conv_net(width=4), [(X, Y)], text="is in training mode; call model.eval() first")
