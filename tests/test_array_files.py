"""SVHN's MATLAB files and NumPy's .npz files: what they hold, and one clear error for each damage."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest
import torch

from fastlip.data import DataError, load, npz, svhn
from fastlip.data.matlab import read_matlab

GENERATOR = np.random.default_rng(0)
SVHN = GENERATOR.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
DIGITS = (1 + np.arange(20) % 10).astype(np.uint8)[:, None]
GREY = GENERATOR.integers(0, 256, (24, 8, 8), dtype=np.uint8)
COLOUR = GENERATOR.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(24) % 4


def write_svhn(folder, **changes):
    matlab = pytest.importorskip("scipy.io")
    for part in ("train", "test"):
        content = {"X": SVHN, "y": DIGITS} | (changes if part == "train" else {})
        matlab.savemat(folder / f"{part}_32x32.mat", content, do_compression=True)


def test_svhn_has_its_images_and_counts_10_as_0(tmp_path):
    write_svhn(tmp_path)
    data = load("svhn", tmp_path)
    assert str(data) == "svhn: 20 training and 20 test images, 3x32x32, 10 classes, values / 255 in [0, 1]"
    image = data.train.pixels(torch.tensor([7]))[0]
    assert torch.equal(image, torch.from_numpy(SVHN[..., 7].transpose(2, 0, 1).copy()))
    assert data.train.labels.tolist() == [*range(1, 10), 0] * 2
    assert data.mean == pytest.approx(tuple(SVHN.mean((0, 1, 3)) / 255))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": SVHN[:31]}, r"got X of shape \(31, 32, 3, 20\) and type uint8, expected X of shape \(32, 32, 3, n\)"),
        ({"X": SVHN.astype(np.int16)}, "type int16, expected"),
        ({"y": DIGITS[:-1]}, r"got y of shape \(19, 1\), expected \(20, 1\)"),
        ({"y": DIGITS - 1}, "labels from 0 to 9 found, expected 1 to 10"),
    ],
)
def test_another_matlab_file_is_named(tmp_path, changes, message):
    write_svhn(tmp_path, **changes)
    with pytest.raises(DataError, match=rf"train_32x32\.mat: .*{message}"):
        svhn(tmp_path)


@pytest.mark.parametrize(
    "change",
    [lambda b: b[:-9], lambda b: b[:300], lambda b: b[:50], lambda b: b"", lambda b: b[:400] + bytes(99) + b[499:]],
)
def test_a_damaged_matlab_file_is_named(tmp_path, change):
    write_svhn(tmp_path)
    file = tmp_path / "train_32x32.mat"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=r"train_32x32\.mat: "):
        svhn(tmp_path)


def test_a_folder_without_files_of_svhn(tmp_path):
    with pytest.raises(DataError, match=r"train_32x32\.mat: no such file"):
        svhn(tmp_path)
    matlab = pytest.importorskip("scipy.io")
    matlab.savemat(tmp_path / "train_32x32.mat", {"Z": SVHN})
    with pytest.raises(DataError, match=r"got the variables \['Z'\], expected X"):
        svhn(tmp_path)
    (tmp_path / "train_32x32.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512))
    with pytest.raises(DataError, match=r"got 0002494d at byte 124, .*: not a MATLAB file of version 5"):
        svhn(tmp_path)


ARRAYS = {
    "name_of_some_length": np.arange(6.0).reshape(2, 3),
    "a": np.array([[3]], np.int16),
    "b": np.arange(24, dtype=np.int64).reshape(2, 3, 4),
    "c": np.float32([[0.5, -1]]),
    "d": np.zeros((0, 3), np.uint8),
}


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_of_numbers_are_read_as_scipy_wrote_them(tmp_path, compressed):
    matlab = pytest.importorskip("scipy.io")
    others = {"text": "words", "cells": np.array([[1, "a"]], object), "table": {"x": 1}, "numbers": np.array([[1j]])}
    matlab.savemat(tmp_path / "all.mat", {**ARRAYS, **others}, do_compression=compressed)
    found = read_matlab(tmp_path / "all.mat")
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
    assert found.keys() - ARRAYS.keys() <= {"text"}


def test_a_big_endian_file_is_read(tmp_path):
    parts = [(6, struct.pack(">II", 6, 0)), (5, struct.pack(">ii", 2, 1)), (1, b"y"), (4, struct.pack(">HH", 1, 258))]
    body = b"".join(
        struct.pack(">II", kind, len(part)) + part.ljust(-(-len(part) // 8) * 8, b"\0") for kind, part in parts
    )
    file = tmp_path / "big.mat"
    file.write_bytes(b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + struct.pack(">II", 14, len(body)) + body)
    assert read_matlab(file)["y"].tolist() == [[1], [258]]


FORMS = {
    "keras": {"x_train": GREY, "y_train": LABELS, "x_test": GREY[:8], "y_test": LABELS[:8]},
    "medmnist": {
        **{"train_images": GREY, "train_labels": LABELS[:, None].astype(np.uint8)},
        **{"val_images": GREY[8:], "val_labels": LABELS[8:, None]},
        **{"test_images": GREY[:8], "test_labels": LABELS[:8, None]},
    },
    "validation": {"train_x": GREY, "train_y": LABELS, "val_x": GREY[:8], "val_y": LABELS[:8]},
    "big-endian floats": {
        **{"X_train": (GREY / 255).astype(">f4"), "Y_train": LABELS},
        **{"X_test": (GREY[:8] / 255).astype(">f4"), "Y_test": LABELS[:8]},
    },
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_one_file_has_both_sets(tmp_path, name, save):
    file = tmp_path / "own.npz"
    save(file, **FORMS[name])
    data = load("npz", file)
    assert (data.name, data.shape, len(data.train.labels), len(data.test.labels)) == ("own", (1, 8, 8), 24, 8)
    pixels = data.train.pixels(torch.arange(24)) / data.divisor
    torch.testing.assert_close(pixels[:, 0], torch.from_numpy(GREY / 255).float())
    assert data.train.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("images", [COLOUR, COLOUR.transpose(0, 3, 1, 2)])
def test_a_folder_has_a_file_for_each_set(tmp_path, images):
    np.savez(tmp_path / "train.npz", image=images, label=LABELS)
    np.savez(tmp_path / "test.npz", images=images[:8], y=np.eye(4)[LABELS[:8]])
    data = load("npz", tmp_path)
    assert (data.name, data.shape, data.test.labels.tolist()) == (tmp_path.name, (3, 8, 8), LABELS[:8].tolist())
    stored = data.train.pixels(torch.tensor([5]))[0]
    assert torch.equal(stored, torch.from_numpy(COLOUR[5].transpose(2, 0, 1).copy()))


GOOD = FORMS["keras"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "has the arrays x_train, y_train, y_test; expected x_train, y_train, x_test and y_test"),
        ({"y_train": LABELS[:-1]}, r"got 24 images \(x_train\) and 23 labels \(y_train\)"),
        ({"x_train": GREY[:, 0]}, r"x_train has shape \(24, 8\), expected"),
        ({"x_train": GREY[..., :4]}, r"train: has images of shape \(1, 8, 4\)"),
        ({"x_test": GREY[:8, :4, :4]}, r"test: has images \(1, 4, 4\)"),
        ({"x_train": GREY.astype(float)}, "train: has values from 0 to 255"),
        ({"x_train": GREY.astype(np.int32)}, "train: has images of torch.int32, expected uint8"),
        ({"y_train": LABELS - 1}, "train: its labels .* are no class numbers from 0"),
        ({"y_train": LABELS.astype("U1")}, "y_train is of type <U1, expected numbers"),
        ({"x_train": np.array([None] * 24)}, "x_train is of type object, expected numbers"),
    ],
)
def test_arrays_that_are_refused(tmp_path, changes, message):
    file = tmp_path / "own.npz"
    np.savez(file, **{name: array for name, array in {**GOOD, **changes}.items() if array is not None})
    with pytest.raises(DataError, match=rf"own\.npz: .*{message}"):
        npz(file)


@pytest.mark.parametrize(
    "change", [lambda b: b[:-9], lambda b: b[:300], lambda b: b"", lambda b: b[:200] + bytes(50) + b[250:]]
)
def test_a_damaged_file_is_named(tmp_path, change):
    file = tmp_path / "own.npz"
    np.savez_compressed(file, **GOOD)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=r"own\.npz: "):
        npz(file)


def test_a_header_that_announces_more_than_the_file_has_is_refused(tmp_path):
    file, stream = tmp_path / "own.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 8, 8)})
    np.savez(file, **{name: array for name, array in GOOD.items() if name != "x_train"})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("x_train.npy", stream.getvalue() + bytes(64))
    with pytest.raises(DataError, match=r"own\.npz: x_train has \d+ bytes, expected 64000000000128 for uint8"):
        npz(file)
    with pytest.raises(DataError, match=r"none\.npz: no such file"):
        npz(tmp_path / "none.npz")
    with pytest.raises(DataError, match=r"train\.npz: no such file"):
        npz(tmp_path)


def test_the_command_line_trains_and_certifies(cli, tmp_path):
    np.savez(tmp_path / "own.npz", **GOOD)
    small = ["--width=2", "--layers-per-block=1", "--batch-size=12", "--epochs=1", "--threads=1", "--no-tensorboard"]
    run = tmp_path / "run"
    code, _, errors = cli("train", "--data", "npz", "--path", tmp_path / "own.npz", "--out", run, *small)
    assert code == 0, errors
    assert json.loads((run / "recipe.json").read_text())["data"] == "npz"
    code, output, errors = cli("certify", run, "--json")
    assert code == 0, errors
    assert json.loads(output[output.index("{") :])["n"] == 8
