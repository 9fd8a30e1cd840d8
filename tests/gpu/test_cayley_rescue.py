"""Which inaccurate Cayley transforms the CUDA kernel refines, and which it computes again with pivots: on the CPU."""

import ctypes

import pytest
import shim
import torch

from fastlip import ops, testing
from fastlip.kernels.common import binding

FORWARD = {torch.float32: "cayley_workspace_forward_float32", torch.complex64: "cayley_workspace_forward_complex64"}


@pytest.fixture(scope="module")
def kernels():
    if reason := testing.op("cayley").status("native"):
        pytest.skip(reason)
    return shim.Kernels(shim.build("kernels.so", "-O0", "-shared"))


@pytest.fixture
def transform(kernels, monkeypatch):
    """The CUDA kernel: Q, which matrices were inaccurate, and which of these were eliminated with pivots."""
    found = []

    def watched(name):
        def call(*values):
            memory, size, batch, n = values[4], values[5], values[6], values[8]
            # A slot for each matrix, and of the shim's four blocks. Row numbers of pivots are at the end.
            assert values[10] == batch <= 4
            ctypes.memset(memory, 255, size)
            kernels[name](*values)
            failed = torch.tensor([*ctypes.string_at(values[3], batch)], dtype=torch.bool)
            rows = torch.frombuffer(bytearray(ctypes.string_at(memory, size)[-8 * n * batch :]), dtype=torch.int64)
            found.append((failed, (rows.view(batch, n) >= 0).all(1)))

        return call

    for name in FORWARD.values():
        monkeypatch.setitem(binding.CPU, name, watched(name))

    def run(M):
        Q = ops.cayley(M, backend="native")
        return Q, *found.pop()

    return run


def of_norm(norm, dtype, n=24):
    """Matrices whose skew part has about this norm in one direction, and about 1 in the others."""
    generator = torch.Generator().manual_seed(0)
    M = torch.randn(4, n, n, dtype=dtype, generator=generator)
    u, v = (torch.randn(4, n, 1, dtype=dtype, generator=generator) for _ in range(2))
    u, v = (x / torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (u, v))
    return M / torch.linalg.matrix_norm(M - M.mH, 2)[:, None, None] + norm * u @ v.mH


def check(Q, M):
    wide = torch.complex128 if M.is_complex() else torch.float64
    assert (torch.linalg.svdvals(Q.to(wide)) - 1).abs().max() < 1e-5
    torch.testing.assert_close(Q.to(wide), ops.cayley(M.to(wide), backend="reference"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", FORWARD, ids=str)
def test_what_a_newton_step_makes_accurate_is_not_eliminated_again(dtype, transform):
    M = of_norm(50, dtype)
    Q, inaccurate, pivoted = transform(M)
    assert inaccurate.all()
    assert not pivoted.any()
    check(Q, M)


@pytest.mark.parametrize("dtype", FORWARD, ids=str)
def test_what_it_does_not_is_eliminated_with_pivots(dtype, transform):
    M = torch.cat((of_norm(1, dtype)[:2], of_norm(1000, dtype)[:2]))
    Q, inaccurate, pivoted = transform(M)
    assert inaccurate.tolist() == pivoted.tolist() == [False, False, True, True]
    check(Q, M)
