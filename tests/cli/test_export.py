"""fastlip export."""

import json

import pytest
import torch
from command_line import assert_one_line


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_export_writes_a_network_that_needs_no_fastlip(cli, trained, tmp_path, name):
    code, output, errors = cli("export", trained, "--out", name, "--json")
    assert code == 0, errors
    about = json.loads(output)
    assert about["input_shape"] == [1, 8, 8]
    assert about["difference"] <= 1e-6
    assert about["lipschitz"] <= 1 + 1e-6
    x = torch.rand(5, 1, 8, 8)
    if name == "net.pt":
        net = torch.load(tmp_path / name, weights_only=False)
        assert type(net) is torch.nn.Sequential
    else:
        net = torch.export.load(tmp_path / name).module()
    assert net(x).shape == (5, 10)
    _, text, steps = cli("export", trained, "--out", name)
    assert steps.startswith(f"{name}: copying the network\n{name}: auditing")
    assert "Lipschitz bound" in text
    assert "stored value / 16 - [0." in text


def test_export_refuses_in_one_line(cli, trained, monkeypatch):
    from fastlip import _extras

    assert_one_line(cli("export", "runs/none", "--out", "net.pt"), "runs/none: no such checkpoint")
    assert_one_line(cli("export", trained, "--out", "nowhere/net.pt"), "nowhere: No such file")
    assert_one_line(cli("export", trained, "--out", "net.pt", "--format=tflite"), "'--format'", 2)
    monkeypatch.setattr(_extras, "find_spec", lambda name: None)
    assert_one_line(cli("export", trained, "--out", "net.onnx"), "onnx and onnxscript are not installed: pip install")


@pytest.mark.parametrize("name", ["net.safetensors", "net", "net.onnxx", "net.pkl"])
def test_a_suffix_that_names_no_format_is_refused(cli, trained, tmp_path, name):
    assert_one_line(cli("export", trained, "--out", name), "names no format; allowed are .onnx, .pt2, .pt, .pth", 2)
    assert not (tmp_path / name).exists()
    assert cli("export", trained, "--out", name, "--format=torch")[0] == 0
    assert (tmp_path / name).stat().st_size > 1000
