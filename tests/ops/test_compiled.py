"""What the compiler is told of functions, without importing it."""

import subprocess
import sys

import pytest
import torch

from fastlip.kernels.common import compiled

# Whatever was imported for this line: importing the package takes a fraction of a second more than importing torch.
_IMPORTED = "import sys, fastlip.nn; print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"


def test_the_package_does_not_import_the_compiler():
    done = subprocess.run([sys.executable, "-c", _IMPORTED], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_constants_are_marked_as_torch_marks_them():
    marked, expected = compiled.constant(lambda: 0), torch.compiler.assume_constant_result(lambda: 0)
    assert vars(marked) == vars(expected) != {}


def test_a_trace_asks_constants_once():
    calls = []

    @compiled.constant
    def ask():
        calls.append(1)
        return 3

    step = torch.compile(lambda x: x * ask(), backend="eager", fullgraph=True)
    assert [step(torch.tensor(2.0)).item() for _ in range(3)] == [6.0] * 3
    assert len(calls) == 1


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


@pytest.mark.parametrize("decorate", [compiled.left_whole, torch.compiler.allow_in_graph])
def test_a_call_is_left_whole_as_torch_leaves_it(decorate):
    graphs = []

    def double(x):
        return _Twice.apply(x)

    def watch(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    whole = decorate(double)
    assert whole(torch.ones(2)).tolist() == [2, 2]
    x = torch.ones(2, requires_grad=True)
    y = torch.compile(lambda x: whole(x) + 1, backend=watch, fullgraph=True)(x)
    y.sum().backward()
    assert y.tolist() == [3, 3]
    assert x.grad.tolist() == [2, 2]
    assert graphs[0][0] is double
