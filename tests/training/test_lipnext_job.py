"""The guide's job with LipNeXt on MNIST, as it is written: train, certify, export, and load without fastlip."""

import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import fastlip

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "train.md"
SMALL = ["--epochs=2", "--batch-size=64", "--width=8", "--depth=1", "--no-tensorboard"]
WITHOUT = """
import sys

sys.modules["fastlip"] = None
{}
torch.save((scores, net(torch.load("images.pt"))), "scores.pt")
"""


def block(title):
    """The block of the page with this title."""
    found = re.findall(rf'^```\w+ title="{title}"\n(.*?)^```', PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(found) == 1
    return found[0]


def write_mnist(folder):
    """Images of 28 x 28 pixels in MNIST's files: a bright row says which of ten classes it is."""
    folder.mkdir()
    for name, count in (("train", 192), ("t10k", 64)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        pixels = np.zeros((count, 28, 28), np.uint8)
        pixels[np.arange(count), 2 * labels + 3] = 255
        for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(head + values.tobytes())


def test_the_job_runs_as_written(cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "FOLDER")
    for line in block("mnist_lipnext.sh").splitlines():
        name, *arguments = shlex.split(line)
        assert name == "fastlip"
        code, output, errors = cli(*arguments, *(SMALL if arguments[0] == "train" else []))
        assert code == 0, errors or output
    images = torch.rand(3, 1, 28, 28)
    torch.save(images, "images.pt")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(block("load.py"))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    scores, own = torch.load("scores.pt")
    assert scores.shape == (5, 10)
    with torch.no_grad():
        torch.testing.assert_close(own, fastlip.hub.load("runs/mnist-lipnext")(images), rtol=1e-4, atol=1e-5)
