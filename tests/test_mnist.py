"""MNIST's format: every layout in which it is published, and one clear error for each damage."""

import gzip
import json
import struct

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastlip.cli import main
from fastlip.data import DataError, load, mnist

CLASSES = 5


def idx(values):
    """The bytes of an IDX file."""
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write(folder, train="train", test="t10k", mark="-", ending="", first=0, side=8, count=20):
    """Writes a data set; returns its training images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, made = np.random.default_rng(0), []
    for name, n in ((train, count), (test, 10)):
        images = generator.integers(0, 256, (n, side, side), dtype=np.uint8)
        labels = (first + np.arange(n) % CLASSES).astype(np.uint8)
        for kind, values in ((f"images{mark}idx3", images), (f"labels{mark}idx1", labels)):
            content = idx(values)
            (folder / f"{name}-{kind}-ubyte{ending}").write_bytes(gzip.compress(content) if ending else content)
        made.append((images, labels))
    return made[0]


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("folder", [".", "raw"])
def test_images_labels_and_mean(tmp_path, mark, ending, folder):
    images, labels = write(tmp_path / folder, mark=mark, ending=ending)
    data = load("mnist", tmp_path)
    assert str(data) == "mnist: 20 training and 10 test images, 1x8x8, 5 classes, values / 255 in [0, 1]"
    assert torch.equal(data.train.pixels(torch.arange(20)), torch.from_numpy(images)[:, None])
    assert data.train.labels.tolist() == labels.tolist()
    assert data.train.labels.dtype == torch.int64
    assert data.mean == pytest.approx((images.mean() / 255,))


def test_emnist_is_turned_upright_and_counted_from_0(tmp_path):
    images, labels = write(tmp_path, "emnist-letters-train", "emnist-letters-test", ending=".gz", first=1)
    data = mnist(tmp_path)
    assert torch.equal(data.train.pixels(torch.tensor([3]))[0, 0], torch.from_numpy(images[3].T.copy()))
    assert data.train.labels.tolist() == (labels - 1).tolist()
    assert data.classes == ("1", "2", "3", "4", "5")


def test_the_uncompressed_file_is_read_where_there_are_both(tmp_path):
    write(tmp_path, ending=".gz", count=30)
    write(tmp_path)
    assert len(mnist(tmp_path).train.labels) == 20


LABELS, IMAGES = "train-labels-idx1-ubyte", "train-images-idx3-ubyte"


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (IMAGES, lambda content: content[:-1], "got 1279 values, expected 1280 .*truncated"),
        (IMAGES, lambda content: content + b"0", "got 1281 values, expected 1280 .*there is more"),
        (IMAGES, lambda content: content[:9], "got 9 bytes, expected more: the file is truncated"),
        (IMAGES, lambda _: b"", "begins with nothing, expected 00000803"),
        (IMAGES, lambda content: b"\0\0\r" + content[3:], "begins with 00000d03, expected 00000803: not an IDX file"),
        (IMAGES, lambda _: idx(np.zeros((20, 8, 7), np.uint8)), "images of 8x7 pixels, expected squares"),
        (IMAGES, lambda _: idx(np.zeros((20, 9, 9), np.uint8)), "t10k-images.*like those of training"),
        (IMAGES, lambda content: content[:4] + b"\xff" * 12, "its header announces 7922.* values, expected 1 to"),
        (IMAGES, lambda content: content[:4] + b"\0" * 12, "its header announces 0 values"),
        (LABELS, lambda _: idx(np.zeros(19, np.uint8)), "got 19 labels, expected 20 as in train-images"),
        (LABELS, lambda _: idx(np.zeros((20, 8, 8), np.uint8)), "begins with 00000803, expected 00000801"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, ending, name, change, message):
    write(tmp_path, ending=ending)
    file = tmp_path / (name + ending)
    content = file.read_bytes()
    changed = change(gzip.decompress(content) if ending else content)
    file.write_bytes(gzip.compress(changed) if ending else changed)
    with pytest.raises(DataError, match=message):
        mnist(tmp_path)


@pytest.mark.parametrize(
    "change", [lambda b: b[:-9], lambda b: b[:40], lambda b: b"PK" + b[2:], lambda b: b[:-30] + bytes(30)]
)
def test_a_damaged_compressed_file_is_named(tmp_path, change):
    write(tmp_path, ending=".gz")
    file = tmp_path / f"{IMAGES}.gz"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=rf"{IMAGES}\.gz: "):
        mnist(tmp_path)


@pytest.mark.parametrize("name", [LABELS, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_missing_file_is_named(tmp_path, name):
    write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}: no such file"):
        mnist(tmp_path)


def test_folders_without_one_data_set(tmp_path):
    with pytest.raises(DataError, match="no train-images-idx3-ubyte here or in raw"):
        mnist(tmp_path)
    for split in ("letters", "digits"):
        write(tmp_path, f"emnist-{split}-train", f"emnist-{split}-test")
    with pytest.raises(DataError, match=r"several data sets \(emnist-digits-.*, emnist-letters-"):
        mnist(tmp_path)


def test_the_command_line_trains_and_certifies(tmp_path):
    write(tmp_path / "data", ending=".gz")
    small = {"width": 2, "layers-per-block": 1, "batch-size": 10, "epochs": 1, "threads": 1, "loss": "emma"}
    out = tmp_path / "run"
    options = ["--data", "mnist", "--path", tmp_path / "data", "--out", out]
    options += [part for name, value in small.items() for part in (f"--{name}", value)]
    result = CliRunner().invoke(main, ["train", *map(str, options)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "recipe.json").read_text())["data"] == "mnist"
    assert (out / "certificate.json").is_file()
