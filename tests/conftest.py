import os

import pytest
import torch
from click.testing import CliRunner
from sklearn.datasets import load_digits

import fastlip
from fastlip.cli import main

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Processes share the cores (pytest -n): more threads than cores would wait for each other.
    torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Runs a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture(scope="module")
def digits():
    """500 images with values in [0, 1], and their labels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    return images[:500], torch.tensor(data.target)[:500]


@pytest.fixture(scope="module")
def trained(digits):
    """A small AOL network after a few steps, in eval mode."""
    torch.manual_seed(0)
    model = fastlip.models.lip_conv_net("aol", width=8, image_size=8, in_channels=1, layers_per_block=1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    loss = fastlip.losses.OffsetCrossEntropy(2**1.5 * 36 / 255, 0.25)
    for _ in range(12):
        for images, labels in zip(*(part.split(100) for part in digits), strict=True):
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
    return model.eval()
