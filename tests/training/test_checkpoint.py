import copy
import os
import random

import numpy as np
import pytest
import torch

from fastlip.training import checkpoint
from fastlip.training.checkpoint import CheckpointError

EMPTY = {name: {} for name in ("recipe", "data", "model", "optimizer", "scheduler", "progress")}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {**EMPTY, "model": {"weight": torch.arange(1000.0)}})
    return path


def test_a_checkpoint_loads_with_weights_only(saved):
    assert torch.equal(torch.load(saved, weights_only=True)["model"]["weight"], torch.arange(1000.0))
    assert torch.equal(checkpoint.load(saved)["model"]["weight"], torch.arange(1000.0))


def test_random_generators_continue_where_they_were(tmp_path):
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    draw()
    checkpoint.save(tmp_path / "c.pt", EMPTY)
    expected = draw()
    assert draw() != expected
    checkpoint.restore_random_state(checkpoint.load(tmp_path / "c.pt")["random"])
    assert draw() == expected


def test_a_failed_write_keeps_the_old_checkpoint(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(saved, {})
    assert saved.read_bytes() == before


def test_a_checkpoint_is_replaced_only_when_it_is_complete(saved, monkeypatch):
    seen = []
    replace = os.replace

    def check(source, target):
        seen.append(torch.load(source, weights_only=True)["model"])
        replace(source, target)

    monkeypatch.setattr(os, "replace", check)
    checkpoint.save(saved, {**EMPTY, "model": {"new": 1}})
    assert seen == [{"new": 1}]
    assert [file.name for file in saved.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("position", [0, 2000, 4000, -4000])
def test_a_flipped_bit_is_found(saved, position):
    content = bytearray(saved.read_bytes())
    content[position] ^= 4
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: corrupt checkpoint"):
        checkpoint.load(saved)


@pytest.mark.parametrize("size", [0, 1, 100, 3000, -1])
def test_a_truncated_file_is_found(saved, size):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: corrupt checkpoint"):
        checkpoint.load(saved)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this version"):
        checkpoint.load(tmp_path / "foreign.pt")
    torch.save(Exploit(), tmp_path / "exploit.pt")
    with pytest.raises(CheckpointError, match="corrupt checkpoint"):
        checkpoint.load(tmp_path / "exploit.pt")


class Exploit:
    def __reduce__(self):
        return (pytest.fail, ("unpickling ran code",))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_state_of_numbers_without_a_dimension(kind):
    parameter = torch.nn.Parameter(torch.ones(1))
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    made = [kind([parameter], lr=0.1, **options) for _ in range(2)]
    parameter.sum().backward()
    made[0].step()
    state = copy.deepcopy(made[0].state_dict())
    old = {key: value[0].clone() if key != "step" else value for key, value in state["state"][0].items()}
    checkpoint.load_optimizer(made[1], {**state, "state": {0: old}})
    before = parameter.detach().clone()
    made[0].step()
    after = parameter.detach().clone()
    parameter.data.copy_(before)
    made[1].step()
    assert torch.equal(parameter, after)
