"""The batches that certificates and attacks take, and those that they refuse by name."""

import warnings

import numpy as np
import pytest
import torch

import fastlip
from fastlip import nn as lip

IMAGES, LABELS = torch.rand(6, 8, generator=torch.Generator().manual_seed(3)), torch.arange(6) % 4


@pytest.fixture
def model():
    return lip.AOLLinear(8, 4).eval()


def read_only(array):
    array.flags.writeable = False
    return array


BATCHES = {
    "pair": (IMAGES, LABELS),
    "with an index": (IMAGES, LABELS, torch.arange(6)),
    "list": [IMAGES, LABELS],
    "dict": {"image": IMAGES, "label": LABELS},
    "dict of Hugging Face": {"pixel_values": IMAGES, "labels": LABELS, "idx": list(range(6))},
    "dict in capitals": {"X": IMAGES, "Y": LABELS},
    "NumPy": (IMAGES.double().numpy(), LABELS.numpy()),
    "NumPy, read-only": (read_only(IMAGES.numpy().copy()), LABELS.numpy().astype(np.uint8)),
    "one-hot": (IMAGES, torch.nn.functional.one_hot(LABELS, 4)),
    "lists": (IMAGES.tolist(), LABELS.tolist()),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_in_every_form_is_certified_alike(model, name):
    expected = fastlip.certify(model, [(IMAGES, LABELS)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fastlip.certify(model, [BATCHES[name]])
    torch.testing.assert_close(found.radii, expected.radii)


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_in_every_form_is_attacked_alike(model, name):
    options = {"eps": [0.1], "steps": 2, "restarts": 1}
    expected = fastlip.attack(model, [(IMAGES, LABELS)], **options)
    torch.testing.assert_close(fastlip.attack(model, [BATCHES[name]], **options).distances, expected.distances)


REFUSED = {
    "images alone": (IMAGES, TypeError, "batch 0 is no pair of images and labels: it has no labels"),
    "a tuple of one": ((IMAGES,), TypeError, "it has no labels"),
    "a string": ("images", TypeError, "it is of type str"),
    "bytes": ((IMAGES.mul(255).byte(), LABELS), TypeError, r"images of batch 0 are torch\.uint8.*float\(\) / 255"),
    "integers": ((IMAGES.numpy().astype(int), LABELS), TypeError, r"images of batch 0 are torch\.int64"),
    "too few labels": ((IMAGES, LABELS[:5]), ValueError, r"shape \(6, 8\) and labels of shape \(5,\)"),
    "no keys of labels": ({"image": IMAGES, "class": LABELS}, ValueError, r"keys \['image', 'class'\]; .* labels"),
    "two keys of images": ({"x": IMAGES, "image": IMAGES, "y": LABELS}, ValueError, "exactly one of .* images"),
    "objects": ((IMAGES, np.array(["a"] * 6)), TypeError, "labels of batch 0 are of type ndarray"),
    "NaN": ((IMAGES.numpy() * np.nan, LABELS), ValueError, "images of batch 0 contain NaN or Inf"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("call", [fastlip.certify, lambda *a: fastlip.attack(*a, eps=[0.1], steps=1)])
def test_a_batch_that_is_refused(model, name, call):
    batch, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        call(model, [batch])


def test_images_outside_of_the_bounds_are_refused(model):
    batches = [(IMAGES, LABELS), (IMAGES * 255, LABELS)]
    assert fastlip.certify(model, batches[:1], bounds=(0, 1)).n == 6
    with pytest.raises(
        ValueError, match=r"batch 1 have values from .* outside of the bounds.*radii are in the units"
    ):
        fastlip.certify(model, batches, bounds=(0, 1))
    low, high = torch.zeros(8), torch.ones(8)
    assert fastlip.certify(model, batches[:1], bounds=(low, high)).n == 6
    with pytest.raises(ValueError, match="batch 0"):
        fastlip.certify(model, batches[:1], bounds=(low, high / 2))
    with pytest.raises(ValueError, match=r"bounds=1: expected \(low, high\) or None"):
        fastlip.certify(model, batches, bounds=1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 12)])
def test_images_of_a_shape_that_the_network_was_not_built_for(shape):
    net = fastlip.models.lip_conv_net("aol", width=4, image_size=8, layers_per_block=1).eval()
    batch = torch.rand(2, *shape), torch.arange(2)
    with pytest.raises(ValueError, match=r"the model was built for images of \(3, 8, 8\)"):
        fastlip.certify(net, [batch])
    with pytest.raises(ValueError, match=r"the model was built for images of \(3, 8, 8\)"):
        fastlip.attack(net, [batch], eps=[0.1], steps=1)
