import pytest
import torch
from command_line import SMALL


@pytest.fixture(autouse=True)
def _process_settings():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def trained(cli, tmp_path):
    code, _, errors = cli("train", *SMALL, "--out", "run")
    assert code == 0, errors
    return tmp_path / "run"
