"""How many Python functions of the package an op's call enters, and in how many files.

What benchmarks/bench_dispatch.py times depends on how busy the machine is; a count does not.
"""

import sys
from pathlib import Path

import pytest
import torch

import fastlip
from fastlip import ops, testing
from fastlip.kernels.cayley.api import OPERATOR as CAYLEY
from fastlip.kernels.gram_rowsum.api import OPERATOR as GRAM_ROWSUM
from fastlip.kernels.spectral_cayley.api import OPERATOR as SPECTRAL_CAYLEY
from fastlip.kernels.spectral_conv.api import OPERATOR as SPECTRAL_CONV

PACKAGE = str(Path(fastlip.__file__).parent)


def entered(call):
    """(file, function) of each Python function of the package that the call enters, after one that warms it up."""
    call()
    found = []

    def note(frame, event, _):
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(PACKAGE):
            found.append((path.removeprefix(PACKAGE), frame.f_code.co_name))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def leaf(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def small_calls():
    """name: (the op, its call on small tensors, frames allowed, files allowed)."""
    M, tall, weight, psi, x, bias = leaf(3, 4, 4), leaf(3, 5, 4), leaf(8, 8, 3, 3), leaf(8), leaf(2, 8, 8, 8), leaf(8)
    Q = leaf(34, 8, 8, dtype=torch.complex64)
    return {
        "cayley": ("cayley", lambda: ops.cayley(M), 7, 3),
        "cayley, checked": ("cayley", lambda: CAYLEY(M, "auto"), 5, 2),
        "cayley, tall": ("cayley", lambda: CAYLEY(tall, "auto"), 5, 2),
        "gram_rowsum": ("gram_rowsum", lambda: ops.gram_rowsum(weight), 7, 3),
        "gram_rowsum, checked": ("gram_rowsum", lambda: GRAM_ROWSUM(weight, None, 1, "auto"), 5, 2),
        "gram_rowsum, psi": ("gram_rowsum", lambda: GRAM_ROWSUM(weight, psi, 1, "native"), 5, 2),
        "spectral_conv": ("spectral_conv", lambda: ops.spectral_conv(x, Q, bias), 8, 4),
        "spectral_conv, checked": ("spectral_conv", lambda: SPECTRAL_CONV(x, Q, bias, (8, 8), 1, "auto"), 5, 2),
        "spectral_cayley, checked": (
            "spectral_cayley",
            lambda: SPECTRAL_CAYLEY(weight, (8, 8), (1, 1), 1, "auto"),
            7,
            3,
        ),
        "maxmin": ("maxmin", lambda: ops.maxmin(x), 12, 3),
    }


@pytest.mark.parametrize("name", list(small_calls()))
def test_a_call_reaches_its_kernel_in_few_steps(name):
    op, call, frames, files = small_calls()[name]
    if reason := testing.op(op).status("native"):
        pytest.skip(reason)
    found = entered(call)
    assert any(file.endswith("native.py") for file, _ in found), "no kernel ran"
    assert len(found) <= frames, found
    assert len({file for file, _ in found}) <= files, found


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("op", ["conv_chain", "sdp_residual"])
def test_a_small_convolution_reaches_its_reference_in_few_steps(op, mode, monkeypatch):
    monkeypatch.undo()  # sizes as they are outside of tests
    if (op, mode) == ("sdp_residual", "circular"):
        pytest.skip("its kernels win at every size")
    x, weight, bias, scale = leaf(2, 4, 8, 8), leaf(4, 4, 3, 3), leaf(4), torch.ones(4)
    calls = {
        "conv_chain": lambda: ops.conv_chain(x, [weight], [bias], padding_mode=mode),
        "sdp_residual": lambda: ops.sdp_residual(x, weight, bias, scale, padding_mode=mode),
    }
    found = entered(calls[op])
    assert any(file.endswith("reference.py") for file, _ in found), "a kernel ran"
    assert len(found) <= 10, found
