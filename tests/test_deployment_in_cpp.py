"""The C++ of the guide to deployment, built with torch's own libtorch: the classes and radii of certify."""

import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import torch

import fastlip

GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "deploy.md"


def block(kind, title):
    (found,) = re.findall(rf'^```{kind} title="{title}"\n(.*?)^```', GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    return found


def built(folder):
    """The program, or a skipped test where there is no compiler."""
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    for kind, title in (("cpp", "classify.cpp"), ("cmake", "CMakeLists.txt")):
        (folder / title).write_text(block(kind, title))
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (["cmake", "-S", ".", "-B", "build", prefix], ["cmake", "--build", "build"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "classify"


@pytest.mark.slow
def test_the_program_of_the_page_prints_the_radii_of_certify(tmp_path):
    program = built(tmp_path)
    data = fastlip.data.digits()
    images = data.test.all_pixels[:20] / data.divisor
    for name in ("cayley_xs.digits", "aol_xs.digits"):
        model = fastlip.models.create_model(name, pretrained=True)
        labels = model(images).argmax(1)
        fastlip.export(model, tmp_path / "net.pt", radius=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = torch.load(tmp_path / "net.pt", weights_only=False)
            torch.jit.trace(network, images[:3]).save(tmp_path / "net.ts")
        pixels = images.numpy().tobytes()
        found = subprocess.run([program], cwd=tmp_path, input=pixels, capture_output=True, check=False)
        assert found.returncode == 0, found.stderr
        rows = re.findall(r"^class (\d+), certified within (\S+)$", found.stdout.decode(), re.M)
        assert [int(label) for label, _ in rows] == labels.tolist()
        expected = fastlip.certify(model, [(images, labels)], eps=[], bounds=(0, 1)).radii
        radii = torch.tensor([float(radius) for _, radius in rows], dtype=expected.dtype)
        assert (radii > 0.05).any()
        torch.testing.assert_close(radii, expected, rtol=0, atol=1e-5)
