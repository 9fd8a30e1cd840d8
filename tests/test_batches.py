"""The batches that certificates and attacks take, and those that they refuse by name."""

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import fastlip
from fastlip import nn as lip
from fastlip.inspection import loading

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


class Table:
    """A data set as Hugging Face's ``datasets`` has them: columns, features, slices that are dicts of lists."""

    column_names = ("image", "label")
    features = column_names

    def __init__(self, images, labels):
        self.columns = {"image": images, "label": labels}

    def __len__(self):
        return len(self.columns["label"])

    def __getitem__(self, rows):
        return {name: column[rows] for name, column in self.columns.items()}


class Samples(Dataset):
    """A data set of dicts, each with an index too."""

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        return {"image": IMAGES[index], "label": int(LABELS[index]), "index": index}


SETS = {
    "pair of tensors": (IMAGES, LABELS),
    "list of tensors": [IMAGES, LABELS],
    "pair of arrays": (IMAGES.numpy(), LABELS.numpy()),
    "dict of tensors": {"x": IMAGES, "y": LABELS},
    "TensorDataset": TensorDataset(IMAGES, LABELS),
    "Dataset of dicts": Samples(),
    "Subset": Subset(TensorDataset(IMAGES, LABELS, LABELS), range(6)),
    "DataLoader": DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4),
    "Hugging Face": Table(IMAGES.tolist(), LABELS.tolist()),
}


@pytest.mark.parametrize("name", SETS)
def test_a_whole_set_is_certified_and_attacked_alike(model, name, monkeypatch):
    monkeypatch.setattr(loading, "BATCH_SIZE", 4)
    expected = fastlip.certify(model, [(IMAGES, LABELS)], eps=[0.1])
    found = fastlip.certify(model, SETS[name], eps=0.1)
    torch.testing.assert_close(found.radii, expected.radii)
    assert found.cra == expected.cra
    attacked = fastlip.attack(model, SETS[name], eps=0.1, steps=2, restarts=1, certificate=found)
    assert attacked.n == 6
    outputs = fastlip.certify_outputs(model, SETS[name] if name != "list of tensors" else IMAGES)
    assert len(outputs) == 6


def test_two_batches_of_inputs_alone_are_no_pair(model):
    assert len(fastlip.certify_outputs(model, [IMAGES, IMAGES])) == 12


def test_pillow_images_are_scaled():
    image = pytest.importorskip("PIL.Image")
    pictures = [image.fromarray(np.full((8, 8), level, np.uint8)) for level in (0, 51, 255)]
    model = torch.nn.Sequential(torch.nn.Flatten(), lip.AOLLinear(64, 4)).eval()
    tensors = torch.tensor([0.0, 0.2, 1.0])[:, None, None, None].expand(3, 1, 8, 8)
    expected = fastlip.certify(model, (tensors, LABELS[:3]))
    for data in (
        Table(pictures, LABELS[:3].tolist()),
        list_set(list(zip(pictures, LABELS[:3].tolist(), strict=True))),
    ):
        torch.testing.assert_close(fastlip.certify(model, data).radii, expected.radii)
    colours = image.new("RGB", (4, 2), (255, 0, 51))
    assert torch.equal(loading.picture(colours)[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))


def list_set(samples):
    """A data set of torch with these samples."""

    class Listed(Dataset):
        def __len__(self):
            return len(samples)

        def __getitem__(self, index):
            return samples[index]

    return Listed()


WRONG_SETS = {
    "images alone": (IMAGES, TypeError, "got Tensor, expected batches of images and labels"),
    "a number": (3, TypeError, "got int, expected batches"),
    "a splits' dict": ({"train": Table([], []), "test": Table([], [])}, ValueError, "choose one of 'train', 'test'"),
    "lengths": ((IMAGES, LABELS[:5]), ValueError, "got 6 images and 5 labels"),
    "lengths in a dict": ({"x": IMAGES, "y": LABELS[:5]}, ValueError, "entries of lengths"),
    "sizes": (
        list_set([(torch.rand(3, 4, 4), 0), (torch.rand(3, 5, 5), 1)]),
        ValueError,
        "cannot be stacked into a batch .* images of one size",
    ),
}


@pytest.mark.parametrize("name", WRONG_SETS)
def test_a_set_that_is_refused(model, name):
    data, kind, message = WRONG_SETS[name]
    for call in (fastlip.certify, lambda *a: fastlip.attack(*a, steps=1)):
        with pytest.raises(kind, match=message):
            call(model, data)


@pytest.mark.parametrize(
    "eps", [0.1, [0.1], np.float64(0.1), torch.tensor(0.1, dtype=torch.float64), np.array([0.1])]
)
def test_one_radius_or_several(model, eps):
    assert list(fastlip.certify(model, (IMAGES, LABELS), eps=eps).cra) == [0.1]
    assert list(fastlip.attack(model, (IMAGES, LABELS), eps=eps, steps=1).robust_accuracy) == [0.1]


@pytest.mark.parametrize(
    ("eps", "kind"), [("0.1", TypeError), (None, TypeError), (-0.1, ValueError), ([0.1, float("nan")], ValueError)]
)
def test_a_radius_that_is_refused(model, eps, kind):
    for call in (fastlip.certify, lambda *a, eps: fastlip.attack(*a, eps=eps, steps=1)):
        with pytest.raises(kind, match="eps"):
            call(model, (IMAGES, LABELS), eps=eps)


PIXELS = torch.randint(256, (20, 3, 8, 8), generator=torch.Generator().manual_seed(1))
MEAN, STD = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.mark.parametrize(
    ("images", "remark"),
    [
        ((PIXELS / 255 - MEAN) / STD, r"standardised with mean=\(0.485, 0.456, 0.406\), std=\(0.229, 0.224, 0.225\)"),
        (PIXELS / 127.5 - 1, r"standardised with mean=\(0.5, 0.5, 0.5\), std=\(0.5, 0.5, 0.5\)"),
        ((PIXELS.clamp(20, 200) / 255 - MEAN) / STD, r"standardised with std=\(0.229, 0.224, 0.225\)"),
        (PIXELS.float(), "values up to 255: divide them by 255"),
        (PIXELS / 255, ""),
        (PIXELS / 255 - MEAN, ""),
        (torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(2)), ""),
        (torch.zeros(20, 3, 8, 8), ""),
    ],
)
def test_standardised_images_are_noticed(images, remark):
    model = torch.nn.Sequential(torch.nn.Flatten(), lip.AOLLinear(192, 4)).eval()
    labels = torch.arange(20) % 4
    if not remark:
        fastlip.certify(model, (images, labels))  # warnings are errors here
        return
    with pytest.warns(UserWarning, match=remark):
        fastlip.certify(model, (images, labels))
    with pytest.raises(ValueError, match=f"outside of the bounds; .*{remark}"):
        fastlip.certify(model, (images, labels), bounds=(0, 1))


@pytest.mark.parametrize("eps", [[36, 72], 36, [0.0, 36.0]], ids=str)
def test_levels_of_pixels_in_place_of_radii_are_noticed(eps):
    images, labels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 4
    model = torch.nn.Sequential(torch.nn.Flatten(), lip.AOLLinear(3072, 4)).eval()
    text = r"eps=36: the image in the middle of the range is within 27.7 of every image.*; .* pass eps=36/255"
    for bounds in (None, (0, 1)):
        with pytest.warns(UserWarning, match=text):
            fastlip.certify(model, (images, labels), eps, bounds=bounds)
    segmentation = lip.AOLConv2d(3, 2, 1).eval()
    with pytest.warns(UserWarning, match=text):
        fastlip.certify_segmentation(segmentation, [(images, torch.zeros(6, 32, 32, dtype=torch.long))], eps)


def test_large_radii_are_not_noticed_where_they_may_be_meant():
    images, labels = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 4
    model = torch.nn.Sequential(torch.nn.Flatten(), lip.AOLLinear(192, 4)).eval()
    fastlip.certify(model, (images, labels), [0.1, 36.0])  # a curve: warnings are errors here
    fastlip.certify(model, (images - 0.5, labels), 36.0)  # other units
    fastlip.attack(model, (images, labels), 36.0, steps=1, restarts=1)  # as far as it takes
    fastlip.certify(model, (images, labels), 36.0, bounds=(0, 10))
    fastlip.certify(torch.nn.Sequential(lip.AOLLinear(2, 2)).eval(), (images[:, 0, 0, :2], labels % 2), 5.0)
    weighted = torch.nn.Sequential(lip.InputWeights(255.0), *model).eval()
    fastlip.certify(weighted, (images, labels), 36.0)


def test_empty_batches_count_for_nothing(model):
    batches = [(IMAGES[:0], LABELS[:0]), (IMAGES, LABELS), (IMAGES[:0], LABELS[:0])]
    whole, parts = (fastlip.certify(model, loader, eps=0.1) for loader in (batches[1:2], batches))
    assert torch.equal(whole.radii, parts.radii)
    assert len(fastlip.certify_outputs(model, batches)) == 6
    assert fastlip.attack(model, batches, eps=0.1, steps=1, restarts=1).n == 6
    with pytest.raises(ValueError, match="no batches, or only empty ones"):
        fastlip.attack(model, batches[:1], eps=0.1)
