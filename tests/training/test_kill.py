"""A run that is killed at any moment continues to the same weights."""

import os
import random
import signal
import sys

import pytest
import torch
from fresh_processes import command, join, start

RUN = ("train", "--method=aol", "--width=2", "--layers-per-block=1", "--batch-size=256", "--epochs=3", "--seed=3")
OPTIONS = ("--save-every=2", "--out=run", "--no-tensorboard")
POINTS = [random.Random(0).random() for _ in range(5)]


def counted(limit, *arguments):
    """The command, in a process that kills itself at its limit-th call of a function; writes how many there were."""
    calls = 0

    def count(frame, event, _):
        nonlocal calls
        calls += event in ("call", "c_call")
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    try:
        command(*arguments)
    finally:
        sys.setprofile(None)
        with open("calls.txt", "w") as file:
            file.write(str(calls))


def weights(folder):
    return torch.load(folder / "run" / "checkpoint.pt", weights_only=True)["model"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run's weights, and how many calls it made."""
    folder = tmp_path_factory.mktemp("whole")
    assert join([start(counted, 0, *RUN, *OPTIONS, folder=folder)]) == [0], (folder / "output-.txt").read_text()
    return weights(folder), int((folder / "calls.txt").read_text())


@pytest.mark.parametrize("share", POINTS)
def test_a_killed_run_continues_to_the_same_weights(whole, tmp_path, share):
    expected, calls = whole
    (code,) = join([start(counted, int(share * calls), *RUN, *OPTIONS, folder=tmp_path)])
    assert code == -signal.SIGKILL
    again = ("--resume",) if (tmp_path / "run" / "recipe.json").exists() else ()
    assert join([start(command, *RUN, *OPTIONS, *again, folder=tmp_path)]) == [0], (
        tmp_path / "output-.txt"
    ).read_text()
    found = weights(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (tmp_path / "run" / "certificate.json").is_file()
