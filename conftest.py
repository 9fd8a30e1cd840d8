"""Options that tests and benchmarks share."""

import pytest


def pytest_addoption(parser):
    """Adds --device."""
    parser.addoption("--device", default="cpu", help="where agreement tests and op benchmarks run: cpu, cuda")


@pytest.fixture(scope="session")
def device(request):
    """The device that --device names."""
    return request.config.getoption("--device")
