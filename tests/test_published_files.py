"""Files of LiResNets and BRONets in every form in which weights are saved, and one line for all that is wrong."""

import pytest
import torch
from click.testing import CliRunner
from published_networks import bronet, published_outputs

import fastlip
from fastlip.cli import main


def images(state, count=2):
    return torch.rand(count, *state["stem.0.init_x"].shape[1:], dtype=torch.float64)


WRAPPED = {
    "data parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled, data parallel": lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "with an optimiser": lambda state: {
        "backbone": state,
        "ema": {name: value / 2 for name, value in state.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
        "start_epoch": 3,
        "training_logs": ["Epoch 2"],
    },
    "under another name": lambda state: {"epoch": 3, "state_dict": WRAPPED["data parallel"](state), "optimizer": {}},
    "parameters": lambda state: {name: torch.nn.Parameter(value) for name, value in state.items()},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_wrapped_entries_are_found(form, tmp_path):
    torch.manual_seed(0)
    state = bronet()
    written = WRAPPED[form](state)
    x = images(state)
    torch.testing.assert_close(
        fastlip.load_published(written)(x), published_outputs(state, x), rtol=1e-10, atol=1e-10
    )
    torch.save(written, tmp_path / "net.pth")
    result = CliRunner().invoke(main, ["audit", str(tmp_path / "net.pth")])
    assert result.exit_code == 0, result.stderr
    assert "BRONet before its head: published constant" in result.stdout


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_read_as_float32(dtype):
    torch.manual_seed(0)
    state = {name: value.to(dtype) for name, value in bronet().items()}
    state["head.bias"] = state["head.bias"].float()  # some tools leave parts of a network in float32
    model, x = fastlip.load_published(state), images(state)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    wide = {name: value.double() for name, value in state.items()}
    torch.testing.assert_close(model(x.float()).double(), published_outputs(wide, x.double()), rtol=1e-4, atol=1e-4)
    report = fastlip.audit_published(state, steps=2)
    assert 0 < report.published <= report.audited


def test_the_command_line_says_in_a_line_what_is_wrong(tmp_path):
    file = tmp_path / "net.pth"
    huge = {name: value.float() for name, value in bronet().items()}
    huge["conv.weights"] = huge["conv.weights"] * 1e25
    for content, text in (
        ({"backbone": None}, "expected names and tensors, or a dict with them, got NoneType"),
        ({"backbone": bronet(), "configs": {"model": "L"}}, "config: got str"),
        ({k: v for k, v in bronet().items() if k != "conv.gamma"}, "missing ['conv.gamma']"),
        (huge, "checkpoint: its values are too large to compute norms of its layers"),
    ):
        torch.save(content, file)
        result = CliRunner().invoke(main, ["audit", str(file)])
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"Error: {file}: ")
        assert text in line
