"""Calls inside the package: each measured public call stays within its budget (tools/count_calls.py)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import count_calls

import fastlip


@pytest.mark.parametrize("name", count_calls.BUDGETS)
def test_a_call_stays_within_its_budget(name):
    reason = count_calls.excess(name, [count_calls.count(call) for call in count_calls.calls()[name]])
    assert not reason


def generator(pieces):
    yield from range(pieces)


def test_a_generator_counts_once(monkeypatch):
    monkeypatch.setattr(count_calls, "PACKAGE", Path(__file__).parent)
    entered = count_calls.count(lambda: (list(generator(5)), list(generator(7))))
    assert entered[Path(__file__).name, "generator"] == 2


def test_an_excess_is_an_exit_status_and_a_line(monkeypatch, capsys):
    name = count_calls.AOL
    call = count_calls.calls()[name][0]
    monkeypatch.setattr(count_calls, "calls", lambda: {name: [call]})
    monkeypatch.setattr(sys, "argv", ["count_calls.py", "--check"])
    monkeypatch.setitem(count_calls.BUDGETS, name, count_calls.Budget(1, 1))
    with pytest.raises(SystemExit, match=rf"{name}: \d+ calls in \d+ files, allowed are 1 calls in 1 files"):
        count_calls.main()
    monkeypatch.setitem(count_calls.BUDGETS, name, count_calls.Budget(10**6))
    count_calls.main()
    assert str(Path(fastlip.__file__).parent) not in capsys.readouterr().out
