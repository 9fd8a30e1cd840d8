"""Forward and backward of every op at its benchmark cases: kernels against the reference, eager and compiled.

The same algebra in pure PyTorch (the op's BASELINES) is a contestant too, so that no kernel is credited for it.
"""

import pytest
import torch

from fastlip import testing


def contestants():
    for op_name, case_name, case in testing.op_cases(bench=True):
        names = [*testing.backends_of(op_name), "compiled reference"]
        names += list(getattr(testing.cases_of(op_name), "BASELINES", {}))
        for name in names:
            yield pytest.param(op_name, case, name, id=f"{op_name}-{case_name}-{name.replace(' ', '_')}")


def function_of(op_name, case, name):
    baselines = getattr(testing.cases_of(op_name), "BASELINES", {})
    if name in baselines:
        return lambda **tensors: baselines[name](**tensors, **case.options)
    backend = "reference" if name == "compiled reference" else name

    def function(**tensors):
        return testing.call(op_name, backend, case, tensors)

    if name != "compiled reference":
        return function
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


@pytest.mark.parametrize(("op_name", "case", "name"), list(contestants()))
def test_forward_and_backward(op_name, case, name, benchmark, gate):
    tensors = case.make(torch.float32)
    if name in testing.backends_of(op_name):
        require(op_name, name, case, tensors)
        gate(op_name, name)
    leaves = {key: tensor.requires_grad_() for key, tensor in tensors.items()}
    function = function_of(op_name, case, name)
    cotangent = torch.randn_like(function(**leaves))

    def step():
        torch.autograd.grad(function(**leaves), list(leaves.values()), cotangent)

    benchmark.group = f"{op_name}: {dict(case.shapes)} {case.options} {case.layout}"
    benchmark.extra_info["bytes saved"] = testing.saved_bytes(function, tensors)
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.pedantic(step, rounds=rounds(case), iterations=1, warmup_rounds=2)


def rounds(case):
    elements = sum(torch.Size(shape).numel() for shape in case.shapes.values())
    return 200 if elements < 100_000 else 9


def require(op_name, backend, case, tensors):
    if backend == "reference":
        return
    reason = testing.op(op_name).status(backend)
    if not reason:
        try:
            testing.call(op_name, backend, case, tensors)
        except ValueError as error:
            reason = str(error)
    if reason:
        pytest.skip(reason)
