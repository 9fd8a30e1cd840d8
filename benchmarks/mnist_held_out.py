"""Trains by a recipe for MNIST with the last training images held out in place of test images: figures of the guides.

    python benchmarks/mnist_held_out.py --path FOLDER [--recipe mnist-minute] [--held-out 5000]

MNIST's own test images are not read. What follows a ``--`` goes on to ``fastlip train``.
"""

from __future__ import annotations

import argparse
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from torch import Tensor

from fastlip.data.mnist import training_images


def write(folder: Path, name: str, pixels: Tensor, labels: Tensor) -> None:
    """Writes images (n, 1, h, w) of bytes and their labels as IDX files."""
    count, _, height, width = pixels.shape
    head = struct.pack(">IIII", 0x803, count, height, width)
    (folder / f"{name}-images-idx3-ubyte").write_bytes(head + pixels.numpy().tobytes())
    head = struct.pack(">II", 0x801, count)
    (folder / f"{name}-labels-idx1-ubyte").write_bytes(head + labels.byte().numpy().tobytes())


def main() -> None:
    """Divides the training images, and runs the command on the parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--path", required=True, help="folder of MNIST's training images and labels")
    parser.add_argument("--recipe", default="mnist-minute")
    parser.add_argument("--held-out", type=int, default=5000, help="images that are not trained on")
    parser.add_argument("options", nargs="*", help="of fastlip train")
    options = parser.parse_args()
    images = training_images(options.path)
    cut = len(images.labels) - options.held_out
    if not 0 < cut < len(images.labels):
        parser.error(f"--held-out={options.held_out}: allowed are 1 to {len(images.labels) - 1}")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), "train", images.all_pixels[:cut], images.labels[:cut])
        write(Path(folder), "t10k", images.all_pixels[cut:], images.labels[cut:])
        command = [sys.executable, "-m", "fastlip", "train", "--recipe", options.recipe, "--path", folder]
        sys.exit(subprocess.run([*command, *options.options], check=False).returncode)


if __name__ == "__main__":
    main()
