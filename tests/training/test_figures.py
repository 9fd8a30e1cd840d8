"""Figures of steps that are read for several steps at once, as on a GPU."""

import pytest
import torch

from fastlip.training.figures import STEPS, Figures, Pending
from fastlip.training.loop import Training
from fastlip.training.watch import NotFiniteError


def history(training):
    training.fit(tensorboard=False)
    timed = ("seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in timed} for row in training.progress.history]


@pytest.mark.parametrize("limit", [2, STEPS])
def test_a_run_is_the_same_however_late_its_figures_are_read(make_training, tiny_recipe, limit):
    expected = history(make_training(tiny_recipe(epochs=2)))
    late = make_training(tiny_recipe(epochs=2))
    late.pending.limit = limit
    assert history(late) == expected


@pytest.mark.parametrize("limit", [1, 2])
def test_the_loop_reads_no_earlier_than_it_must(make_training, tiny_recipe, limit, monkeypatch):
    training, read, counts = make_training(tiny_recipe(epochs=1)), Pending.read, []
    monkeypatch.setattr(Pending, "read", lambda self: counts.append(len(self)) or read(self))
    training.pending.limit = limit
    training.fit(tensorboard=False)
    steps = len(training.train_batches)
    assert steps == 3
    assert [count for count in counts if count] == [limit] * (steps // limit) + [steps % limit] * (steps % limit > 0)


def test_a_loss_that_is_not_finite_is_found_late_but_by_its_step(make_training, tiny_recipe, monkeypatch):
    training = make_training(tiny_recipe(epochs=2))
    training.pending.limit = STEPS
    original, count = Training.step, 0

    def second_is_nan(self, x, y):
        nonlocal count
        count += 1
        return original(self, x, y) * (float("nan") if count == 2 else 1)

    monkeypatch.setattr(Training, "step", second_is_nan)
    with pytest.raises(NotFiniteError, match="epoch 1, step 2: loss is nan"):
        training.fit(tensorboard=False)


def test_steps_are_read_once_and_in_order():
    pending = Pending(torch.device("cpu"))
    assert pending.limit == 1
    assert Pending(torch.device("cuda")).limit == STEPS
    for index in range(3):
        pending.add(Figures(torch.full((4,), index, dtype=torch.float64), 8, f"step {index}"))
    assert len(pending) == 3
    assert [(figures.step, values[0]) for figures, values in pending.read()] == [(f"step {i}", i) for i in range(3)]
    assert pending.read() == []
