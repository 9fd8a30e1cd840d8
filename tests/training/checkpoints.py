"""Checkpoints, read and compared."""

import torch

from fastlip.training.run_folder import RunFolder


def load_state(folder):
    return RunFolder(folder).load_state()


def assert_equal(one, other, where=""):
    """Equal values and tensors at every level."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_equal(value, other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (value, another) in enumerate(zip(one, other, strict=True)):
            assert_equal(value, another, f"{where}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def without_times(state):
    timed = {"images_per_second", "seconds"}
    progress = {**state["progress"], "seconds": 0}
    progress["history"] = [{k: v for k, v in row.items() if k not in timed} for row in progress["history"]]
    return {**state, "progress": progress}
