"""Benchmarks run only when asked for (pytest --benchmark-only), and never on a red agreement gate."""

from pathlib import Path

import pytest
import torch

from fastlip import testing

HERE = Path(__file__).parent
_gates: dict[tuple, str] = {}


def pytest_collection_modifyitems(config, items):
    if config.getoption("benchmark_only"):
        return
    ours = [item for item in items if HERE in Path(item.path).parents]
    config.hook.pytest_deselected(items=ours)
    items[:] = [item for item in items if item not in ours]


@pytest.fixture
def gate(device):
    """Call it with an op, a backend and a case before timing: fails unless they agree with the float64 reference.

    The op's whole set of test cases is checked once per backend, not only the shape that is timed.
    """

    def check(op_name: str, backend: str) -> None:
        key = op_name, backend
        if key not in _gates:
            _gates[key] = _first_disagreement(op_name, backend, device)
        if _gates[key]:
            pytest.fail(f"not timed, because it is wrong: {_gates[key]}")

    return check


def _first_disagreement(op_name: str, backend: str, device: str) -> str:
    for name, case_name, case in testing.op_cases():
        if name != op_name:
            continue
        try:
            testing.check_agreement(op_name, backend, case, torch.float32, device)
        except AssertionError as error:
            return f"case {case_name}: {error}"
        except ValueError as error:
            if "cannot run here" not in str(error):
                raise
    return ""
