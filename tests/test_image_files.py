"""Image files and folders as they are in the wild: read rightly, or refused by name."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from fastlip.data import DataError, load
from fastlip.data.decoding import decode

RAMP = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


def tree(root, save=lambda file: Image.fromarray(GREY).save(file)):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            save(root / split / name / "0.png")
    return root


def decoded(file):
    return np.asarray(decode(file)).astype(int)


@pytest.mark.parametrize("name", ["x.png", "x.PNG", "x.tif", "x.TIFF", "x.pgm"])
def test_sixteen_bits_are_rounded_to_eight(tmp_path, name):
    Image.fromarray(RAMP).save(tmp_path / name)
    values = decoded(tmp_path / name)
    assert (values == np.rint(RAMP / 257)[..., None]).all()
    assert len(np.unique(values)) == 64


def test_sixteen_bits_survive_the_folder_and_resizing(tmp_path):
    tree(tmp_path, lambda file: Image.fromarray(RAMP).save(file))
    assert load("folder", tmp_path).train.pixels(torch.tensor([0])).float().mean() == pytest.approx(127.5, abs=0.5)
    assert load("folder", tmp_path, 4).train.pixels(torch.tensor([0])).float().mean() == pytest.approx(127.5, abs=1)


RGB = Image.fromarray(np.stack([GREY, GREY * 2, GREY * 3], 2))


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (Image.fromarray(GREY), "x.png"),
        (RGB, "x.bmp"),
        (RGB.quantize(256), "x.png"),
        (RGB.quantize(256), "x.gif"),
        (RGB.convert("RGBA"), "x.png"),
        (Image.fromarray(GREY).convert("LA"), "x.png"),
        (Image.fromarray(GREY > 32), "x.png"),
        (RGB.convert("CMYK"), "x.tif"),
        (RGB.convert("CMYK"), "x.jfif"),
        (RGB, "x.webp"),
    ],
)
def test_modes_with_one_meaning_are_read(tmp_path, image, name):
    kind = {"format": "JPEG", "quality": 100} if name == "x.jfif" else {"lossless": True} if name == "x.webp" else {}
    image.save(tmp_path / name, **kind)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert abs(decoded(tmp_path / name) - expected).max() <= (6 if name == "x.jfif" else 0)


def transparent_palette(file):
    image = RGB.quantize(256)
    image.save(file, transparency=int(np.asarray(image)[0, 0]))


def transparent_sixteen_bits(file):
    Image.fromarray(RAMP).save(file, transparency=int(RAMP[0, 0]))


def half_transparent(mode):
    def save(file):
        image = RGB.convert(mode)
        image.putalpha(Image.fromarray(GREY))
        image.save(file)

    return save


def frames(file):
    RGB.save(file, save_all=True, append_images=[Image.new("RGB", RGB.size)])


def tiff(array, **tags):
    return lambda file: Image.fromarray(array).save(file, "TIFF", tiffinfo=tags.get("tags", {}))


@pytest.mark.parametrize(
    ("save", "name", "text"),
    [
        (tiff(RAMP.astype(np.float32) / 65535), "x.tif", "floating-point values of unknown range"),
        (tiff(RAMP.astype(np.int32)), "x.tiff", "integers of unknown range"),
        (tiff(RAMP, tags={262: 0}), "x.tif", "white as 0"),
        (transparent_palette, "x.png", "transparent pixels"),
        (transparent_palette, "x.gif", "transparent pixels"),
        (transparent_sixteen_bits, "x.png", "transparent pixels"),
        (half_transparent("L"), "x.png", "transparent pixels"),
        (half_transparent("RGB"), "x.png", "transparent pixels"),
        (half_transparent("RGB"), "x.webp", "transparent pixels"),
        (frames, "x.gif", "several frames"),
        (frames, "x.tif", "several frames"),
        (frames, "x.png", "several frames"),
        (lambda file: file.write_bytes(b""), "x.png", "cannot identify"),
        (
            lambda file: file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"),
            "x.png",
            "cannot identify",
        ),
        (lambda file: file.write_bytes(b"P5 8 8 255\n"), "x.pgm", "truncated|not enough"),
    ],
)
def test_what_has_no_single_meaning_is_refused_by_name(tmp_path, save, name, text):
    save(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: cannot be decoded as an image \(.*({text})"):
        decode(tmp_path / name)


def test_an_image_of_absurd_size_is_refused_by_name(tmp_path, monkeypatch):
    tree(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)
    with pytest.raises(DataError, match=r"0\.png: cannot be decoded as an image \(Image size"):
        load("folder", tmp_path)


def test_a_photograph_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned
    RGB.save(tmp_path / "x.png", exif=exif)
    assert (decoded(tmp_path / "x.png") == np.rot90(np.asarray(RGB), -1)).all()


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir"])
@pytest.mark.parametrize("place", ["train", "val", "train/a"])
@pytest.mark.parametrize("empty", [True, False])
def test_folders_of_notebooks_and_systems_are_ignored(tmp_path, folder, place, empty):
    left = tree(tmp_path) / place / folder
    left.mkdir()
    if not empty:
        Image.fromarray(GREY).save(left / "0-checkpoint.png")
    data = load("folder", tmp_path)
    assert data.classes == ("a", "b")
    assert (len(data.train.labels), len(data.test.labels)) == (2, 2)


def test_sidecar_files_are_ignored(tmp_path):
    tree(tmp_path)
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
        (tmp_path / "train" / "a" / name).write_bytes(b"\0\5\x16\7")
        (tmp_path / "train" / name).write_bytes(b"\0\5\x16\7")
    assert len(load("folder", tmp_path).train.labels) == 2


def test_a_class_of_ignored_files_is_empty(tmp_path):
    tree(tmp_path)
    (tmp_path / "train" / "a" / "0.png").rename(tmp_path / "train" / "a" / "._0.png")
    with pytest.raises(DataError, match="a: no images of class 'a'"):
        load("folder", tmp_path)


def test_links_are_followed(tmp_path):
    root = tree(tmp_path / "root")
    store = tmp_path / "store" / "deeper"
    store.mkdir(parents=True)
    for i in range(3):
        Image.fromarray(GREY).save(store / f"{i}.png")
    (root / "train" / "a" / "site").symlink_to(store.parent)
    (root / "train" / "b" / "link.png").symlink_to(store / "1.png")
    (root / "train" / "c").symlink_to(store)
    data = load("folder", root)
    assert data.classes == ("a", "b", "c")
    assert data.train.labels.bincount().tolist() == [4, 2, 3]


@pytest.mark.parametrize(
    ("link", "target", "text"),
    [
        ("train/a/again", "train/a", "again: a link that leads back"),
        ("train/a/deep/up", "train", "a: a link that leads back"),
        ("train/a/gone", "nowhere", "gone: a broken link to"),
        ("train/a/gone.png", "nowhere.png", r"gone\.png: a broken link to"),
        ("train/gone", "nowhere", "gone: a broken link to"),
        ("val/gone", "nowhere", "gone: a broken link to"),
    ],
)
def test_cycles_and_broken_links_are_named(tmp_path, link, target, text):
    tree(tmp_path)
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=text):
        load("folder", tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_what_is_no_file_or_no_format_of_ours_is_named(tmp_path):
    tree(tmp_path)
    os.mkfifo(tmp_path / "train" / "a" / "1.png")
    with pytest.raises(DataError, match=r"1\.png: is not a regular file"):
        load("folder", tmp_path)
    (tmp_path / "train" / "a" / "1.png").rename(tmp_path / "train" / "a" / "1.HEIC")
    with pytest.raises(DataError, match=r"1\.HEIC: images of this format are not read"):
        load("folder", tmp_path)


def test_names_that_are_no_utf8(tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    tree(root)
    (root / "train" / "a").rename(root / "train" / os.fsdecode(b"\xff"))
    (root / "val" / "a").rename(root / "val" / os.fsdecode(b"\xff"))
    data = load("folder", root)
    assert (data.name, data.classes) == (r"caf\xe9", ("b", r"\xff"))
    assert data.train.pixels(torch.tensor([1])).shape == (1, 3, 8, 8)
    str(data).encode()
    (root / "train" / os.fsdecode(b"\xff") / "0.png").unlink()
    with pytest.raises(DataError, match=r"no images of class"):
        load("folder", root)
