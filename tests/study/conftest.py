import pytest
import torch
from studies import fake_clock

from fastlip.study import plots


@pytest.fixture(autouse=True)
def _process_settings():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def clock(monkeypatch):
    """Measuring that takes no time: the reference is a tenth slower; names in the returned set fail."""
    monkeypatch.setattr(plots, "draw", lambda groups: [])  # takes longer than all the rest
    return fake_clock(monkeypatch)
