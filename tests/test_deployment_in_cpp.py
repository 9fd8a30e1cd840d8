"""The C++ of the guide to deployment, built with torch's own libtorch: the classes and radii of certify."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import fastlip

# ``python`` is the one that runs the tests.
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
LAST_LINE = "build/classify < pixels.bin"
GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "deploy.md"


def block(kind, title):
    (found,) = re.findall(rf'^```{kind} title="{title}"\n(.*?)^```', GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    return found


@pytest.mark.slow
def test_the_program_of_the_page_prints_the_radii_of_certify(tmp_path):
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    for kind, title in (("cpp", "classify.cpp"), ("cmake", "CMakeLists.txt"), ("sh", "build.sh")):
        (tmp_path / title).write_text(block(kind, title))
    data = fastlip.data.digits()
    images = data.test.all_pixels[:20] / data.divisor
    images.numpy().tofile(tmp_path / "pixels.bin")
    for name, command in (("cayley_xs.digits", ["sh", "build.sh"]), ("aol_xs.digits", ["sh", "-c", LAST_LINE])):
        model = fastlip.models.create_model(name, pretrained=True)
        labels = model(images).argmax(1)
        fastlip.export(model, tmp_path / "net.pt", radius=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = torch.load(tmp_path / "net.pt", weights_only=False)
            torch.jit.trace(network, images[:3]).save(tmp_path / "net.ts")
        found = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr
        rows = re.findall(r"^class (\d+), certified within (\S+)$", found.stdout, re.M)
        assert [int(label) for label, _ in rows] == labels.tolist()
        expected = fastlip.certify(model, [(images, labels)], eps=[], bounds=(0, 1)).radii
        radii = torch.tensor([float(radius) for _, radius in rows], dtype=expected.dtype)
        assert (radii > 0.05).any()
        torch.testing.assert_close(radii, expected, rtol=0, atol=1e-5)
