"""``fastlip train --data folder``: it trains on image files, and whatever is wrong with them is one line."""

import shutil

import numpy as np
import pytest
from PIL import Image

LINE = ("train", "--data=folder", "--path=photos", "--width=2", "--layers-per-block=1", "--threads=1", "--out=run")


@pytest.fixture
def photos(tmp_path):
    """Four training and two test images of each of two classes, 8x8."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_a_folder_trains(cli, photos):
    code, output, errors = cli(*LINE, "--epochs=1", "--no-tensorboard")
    assert code == 0, errors
    assert "photos: 8 training and 4 test images, 3x8x8, 2 classes" in output
    assert (photos.parent / "run" / "certificate.json").exists()


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def truncate(file):
    file.write_bytes(file.read_bytes()[:50])


def without_heading(errors):
    """The lines of an error, without the heading of the table of epochs, which stands before the first epoch."""
    lines = errors.splitlines()
    return lines[2:] if lines[0].split() == ["training", "images", "test", "images"] else lines


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda photos: shutil.rmtree(photos), "photos: no such folder (data='folder')"),
        (lambda photos: shutil.rmtree(photos / "train"), "photos/train: no such folder"),
        (lambda photos: shutil.rmtree(photos / "val"), "photos: no subfolder val or test"),
        (
            lambda photos: shutil.rmtree(photos / "train" / "dog"),
            "photos/train: got 1 subfolders, expected one for each",
        ),
        (lambda photos: empty(photos / "train" / "cat"), "photos/train/cat: no images of class 'cat'"),
        (lambda photos: truncate(photos / "train" / "cat" / "0.png"), "cat/0.png: cannot be decoded as an image ("),
        (lambda photos: truncate(photos / "train" / "dog" / "3.png"), "dog/3.png: cannot be decoded as an image ("),
        (lambda photos: truncate(photos / "val" / "dog" / "1.png"), "dog/1.png: cannot be decoded as an image ("),
    ],
)
def test_a_damaged_folder_is_one_line(cli, photos, damage, text):
    damage(photos)
    code, _, errors = cli(*LINE, "--epochs=1", "--no-tensorboard")
    assert code == 1
    (line,) = without_heading(errors)
    assert line.startswith("Error: ")
    assert text in line


def test_workers_name_a_damaged_image_too(cli, photos):
    truncate(photos / "train" / "dog" / "3.png")
    code, _, errors = cli(*LINE, "--epochs=1", "--no-tensorboard", "--workers=1")
    assert (code, len(without_heading(errors))) == (1, 1)
    assert "dog/3.png: cannot be decoded as an image (" in errors
