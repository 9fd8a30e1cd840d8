"""Data sets of one's own: tensors, data sets of torch and Hugging Face, and functions for ``fastlip train``."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from fastlip.data import Batches, DataError, from_datasets
from fastlip.data.own import from_function, is_place
from fastlip.training.recipe import Recipe

GENERATOR = torch.Generator().manual_seed(0)
BYTES = torch.randint(256, (40, 1, 8, 8), generator=GENERATOR, dtype=torch.uint8)
LABELS = torch.arange(40) % 4
SMALL = ["--width=4", "--layers-per-block=1", "--batch-size=16", "--epochs=2", "--threads=1", "--no-tensorboard"]
MODULE = """
import torch
from torch.utils.data import TensorDataset

calls = []


def bytes_and_labels():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 4
    images = torch.randint(60, (80, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[torch.arange(80), labels % 3] += (40 * labels[:, None, None]).byte()
    return images, labels


def sets():
    calls.append("sets")
    images, labels = bytes_and_labels()
    images = images.float() / 255
    return TensorDataset(images[:64], labels[:64]), TensorDataset(images[64:], labels[64:])


def pairs():
    images, labels = bytes_and_labels()
    return (images[:64], labels[:64]), (images[64:], labels[64:])


def nothing():
    return 3


constant = 3


def of_a_folder(root, **options):
    return sets()
"""


class Samples(Dataset):
    """Samples as they are given, with names of the classes."""

    classes = ("a", "b", "c", "d")

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def same(data, pixels, labels):
    """Compares the training images of a data set with stored values and labels."""
    x, y = next(iter(Batches(data.train, data.divisor, 64)))
    torch.testing.assert_close(x, pixels.float() / 255)
    assert torch.equal(y, labels)


def test_a_set_in_every_form_is_the_same():
    floats = BYTES.float() / 255
    image = pytest.importorskip("PIL.Image")
    pictures = [image.fromarray(pixels[0].numpy()) for pixels in BYTES]
    numbers = LABELS.tolist()
    forms = {
        "bytes": (BYTES, LABELS),
        "numbers": (floats, LABELS),
        "float64 arrays": (floats.double().numpy(), LABELS.numpy()),
        "grey arrays": (BYTES[:, 0].numpy(), LABELS.numpy()),
        "one-hot": (BYTES, torch.nn.functional.one_hot(LABELS, 4).float()),
        "TensorDataset": TensorDataset(floats, LABELS),
        "dicts": Samples([{"pixel_values": x, "label": y} for x, y in zip(floats, numbers, strict=True)]),
        "Pillow": Samples(list(zip(pictures, numbers, strict=True))),
    }
    for name, form in forms.items():
        data = from_datasets(form, form, name=name)
        same(data, BYTES, LABELS)
        assert data.shape == (1, 8, 8)
        assert data.classes == (("a", "b", "c", "d") if isinstance(form, Samples) else ("0", "1", "2", "3"))
        assert data.mean == pytest.approx([BYTES.float().mean().item() / 255], abs=0.01)
        shuffled = next(Batches(data.train, data.divisor, 8, mean=data.mean).epoch(0))
        assert shuffled[0].shape == (8, 1, 8, 8)


def test_labels_of_a_data_set_are_read_once():
    class Counted(Samples):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    samples = Counted(list(zip(BYTES.float() / 255, LABELS.tolist(), strict=True)))
    samples.targets = LABELS.tolist()
    from_datasets(samples, (BYTES.float() / 255, LABELS))
    assert samples.reads == 40, "the images that are looked at"


WRONG = {
    "images alone": (BYTES, "train: got Tensor, expected a pair"),
    "empty": (Samples([]), "train: has no images"),
    "an image alone": (Samples([BYTES[0]]), "train: sample 0 is of type Tensor"),
    "keys": (Samples([{"picture": BYTES[0], "label": 0}]), r"train: sample 0 has the keys \['picture', 'label'\]"),
    "lengths": ((BYTES, LABELS[:5]), "train: got 40 images and 5 labels"),
    "soft": ((BYTES, torch.full((40, 4), 0.25)), "train: its labels are soft"),
    "halves": ((BYTES, LABELS / 2), "are no class numbers"),
    "negative": ((BYTES, LABELS - 1), "are no class numbers"),
    "words": ((BYTES, np.array(["a"] * 40)), "its labels are no numbers"),
    "scale": ((BYTES.float(), LABELS), r"values from 0 to 255, expected \[0, 1\]; .*divide them by 255"),
    "standardised": (((BYTES / 255 - 0.5) / 0.25, LABELS), r"standardised with mean=\(0.5\), std=\(0.25\)"),
    "not square": ((BYTES[..., :4], LABELS), r"shape \(1, 8, 4\), expected \(c, h, w\) with h = w"),
    "integers": ((BYTES.long(), LABELS), "images of torch.int64, expected uint8"),
    "sizes": (Samples([(torch.rand(1, 8, 8), 0), (torch.rand(1, 4, 4), 1)]), "train: .*images of one size"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_set_that_is_refused(name):
    data, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        from_datasets(data, (BYTES, LABELS))


def test_the_second_set_is_checked_too():
    with pytest.raises(DataError, match=r"test: has images \(1, 4, 4\) of torch.uint8, train \(1, 8, 8\)"):
        from_datasets((BYTES, LABELS), (BYTES[..., :4, :4], LABELS))
    with pytest.raises(DataError, match="test: got Tensor"):
        from_datasets((BYTES, LABELS), BYTES)
    with pytest.raises(DataError, match="classes: got 2 names, the labels go up to 3"):
        from_datasets((BYTES, LABELS), (BYTES, LABELS), classes=["a", "b"])


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    name = f"mydata_{abs(hash(request.node.name)) % 10**9}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def test_places():
    assert is_place("my.data:load")
    assert not any(map(is_place, ("digits", "cifar10", "my.data:", ":load", "a:b:c", "a b:c", "../a:b")))
    assert Recipe(data="my.data:load").data == "my.data:load"
    for text in ("imagenet", "my.data:"):
        with pytest.raises(ValueError, match=r"data=.*allowed are 'digits'"):
            Recipe(data=text)
    with pytest.raises(ValueError, match="path='x': the function of data='a:b' takes none"):
        Recipe(data="a:b", path="x")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "got int, expected"),
        ("constant", "has no function 'constant'"),
        ("absent", "has no function"),
        (
            "of_a_folder",
            r"data='\w+:of_a_folder': needs arguments \(root\), expected a function that is called without",
        ),
    ],
)
def test_a_function_that_is_refused(module, function, message):
    with pytest.raises(DataError, match=message):
        from_function(f"{module}:{function}")


def test_a_module_that_is_missing():
    with pytest.raises(DataError, match="data='no_such_module:f': cannot import 'no_such_module'"):
        from_function("no_such_module:f")


@pytest.mark.parametrize("function", ["sets", "pairs"])
def test_training_on_a_function(cli, module, tmp_path, function):
    place = f"{module}:{function}"
    code, output, errors = cli("train", "--data", place, *SMALL)
    assert code == 0, errors
    assert "64 training and 16 test images, 3x8x8, 4 classes" in " ".join(output.split())
    run = tmp_path / "runs" / f"{module}.{function}-aol-XS"
    accuracy = json.loads((run / "certificate.json").read_text())["accuracy"]
    code, output, errors = cli("certify", run, "--json")
    assert (code, output) == (2, ""), "a checkpoint does not decide what code runs"
    assert f"Pass --data {place} to run it" in errors
    code, output, errors = cli("certify", run, "--data", place, "--json")
    assert code == 0, errors
    assert json.loads(output[output.index("{") :])["accuracy"] == accuracy
    assert cli("audit", run)[0] == cli("export", run, "--out", "net.pt")[0] == 0
