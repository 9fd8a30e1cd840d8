"""cayley forward against torch.linalg.solve(I + A, I - A), complex64, at the frequencies of s x s images."""

import pytest
import torch

from fastlip import ops

SHAPES = ((16, 32), (32, 32), (64, 32), (128, 16), (256, 8))


@pytest.mark.parametrize("contestant", ["native", "solve"])
@pytest.mark.parametrize(("channels", "side"), SHAPES)
def test_forward(channels, side, contestant, benchmark, gate):
    gate("cayley", "native")
    M = torch.randn((side * side - 4) // 2, channels, channels, dtype=torch.complex64) / channels**0.5
    A, identity = M - M.mH, torch.eye(channels, dtype=M.dtype)
    steps = {
        "native": lambda: ops.cayley(M, backend="native"),
        "solve": lambda: torch.linalg.solve(identity + A, identity - A),
    }
    benchmark.group = f"cayley c={channels} s={side}"
    benchmark.pedantic(steps[contestant], rounds=7, iterations=1, warmup_rounds=2)
