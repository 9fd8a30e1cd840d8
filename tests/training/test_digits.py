"""The main job: `fastlip train` on the digits, with nothing but a method, reaches its bar."""

import json

import pytest
from click.testing import CliRunner

from fastlip.cli import main
from fastlip.models import METHODS


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_defaults_reach_the_bar(method, tmp_path):
    folder = tmp_path / "run"
    result = CliRunner().invoke(main, ["train", f"--method={method}", "--out", str(folder), "--no-tensorboard"])
    assert result.exit_code == 0, result.stderr
    certificate = json.loads((folder / "certificate.json").read_text())
    # Orthogonal layers have norm 1 to rounding, and there are seventeen.
    assert certificate["lipschitz"] <= 1 + (1e-6 if method in ("aol", "sll") else 1e-5)
    assert certificate["accuracy"] >= 0.94
    assert certificate["joint_cra"][str(36 / 255)] >= 0.88
    assert certificate["cra"][str(36 / 255)] >= certificate["joint_cra"][str(36 / 255)]
