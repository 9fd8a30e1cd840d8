"""Like layers of a chain compute their weights together, as they do on a GPU in training: here on the CPU."""

import copy
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastlip
from fastlip import nn as lip
from fastlip.nn import _lending, _merging

LAYERS = {
    "aol": (lip.AOLConv2d, {}),
    "aol groups": (lip.AOLConv2d, {"groups": 2, "epsilon": 1e-3}),
    "aol quasi-residual": (lip.AOLConv2d, {"quasi_residual": 0.5, "groups": 2}),
    "sll": (lip.SLLConv2d, {}),
    "sll groups": (lip.SLLConv2d, {"groups": 2, "inner_channels": 6}),
    "cpl bound": (lip.CPLConv2d, {}),
    "cpl power": (lip.CPLConv2d, {"training_sigma": "power", "groups": 2}),
    "aoc": (lip.AOCConv2d, {}),
    "aoc groups": (lip.AOCConv2d, {"groups": 2, "quasi_residual": True}),
    "bcop": (lip.BCOPConv2d, {}),
    "bcop groups": (lip.BCOPConv2d, {"groups": 2, "quasi_residual": True}),
    "lot": (lip.LOTConv2d, {}),
    "lot groups": (lip.LOTConv2d, {"groups": 2, "quasi_residual": True}),
    "lot published": (lip.LOTConv2d, {"ridge": 1e-4, "steps": 10, "padding_mode": "zeros"}),
    "cayley": (lip.CayleyConv2d, {}),
    "cayley groups": (lip.CayleyConv2d, {"groups": 2, "quasi_residual": True}),
    "cayley zeros": (lip.CayleyConv2d, {"padding_mode": "zeros"}),
    "soc": (lip.SOCConv2d, {}),
    "soc groups": (lip.SOCConv2d, {"groups": 2, "quasi_residual": True}),
    "soc spectral": (lip.SOCConv2d, {"exponential": "spectral"}),
}


@pytest.fixture
def calls(monkeypatch):
    """How many layers each computation was of; and chains merge on the CPU too."""
    found, original = [], _merging.merged

    def counted(layers, context):
        found.append(len(layers))
        return original(layers, context)

    monkeypatch.setattr(_lending, "merged", counted)
    monkeypatch.setattr(_lending, "may_lend", lambda x: True)
    return found


def filled(model):
    """The model in float64, with parameters that differ from layer to layer."""
    generator = torch.Generator().manual_seed(0)
    model = model.double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    return model


def three(name, kernel_size=3, between=lip.MaxMin):
    make, options = LAYERS[name]
    layers = [module for _ in range(3) for module in (make(4, 4, kernel_size, **options), between())]
    return filled(lip.Chain(*layers))


def steps(model, x, count=2):
    """Outputs, gradients and buffers of some steps of gradient descent."""
    found = []
    for _ in range(count):
        x = x.detach().requires_grad_()
        model.zero_grad()
        y = model(x)
        (y * torch.linspace(0, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        found += [y.detach(), x.grad, *(parameter.grad.clone() for parameter in model.parameters())]
        found += [buffer.clone() for buffer in model.buffers()]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(parameter.grad, alpha=0.01)
    return found


def images(side=6):
    return torch.randn(2, 4, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_weights_computed_together_are_those_of_each_layer(name, kernel_size, backend, calls, monkeypatch):
    model = three(name, kernel_size)
    for layer in model[::2]:
        layer.backend = backend
    twin = copy.deepcopy(model)
    found = steps(model, images(), 3)
    assert 3 in calls
    assert calls[-1] == 3  # in every step but the first, when nobody knows what the others will ask for
    monkeypatch.setattr(_lending, "may_lend", lambda x: False)
    assert_equal(found, steps(twin, images(), 3))
    assert all("_supplied" not in vars(layer) for layer in model)


@pytest.mark.parametrize("make", [lip.AOLConv1d, lip.CayleyConv1d, lip.SLLConv1d])
def test_layers_of_sequences_too(make, calls, monkeypatch):
    model = filled(lip.Chain(*(make(4, 4, 3) for _ in range(3))))
    twin, x = copy.deepcopy(model), images()[:, :, 0]
    found = steps(model, x)
    assert calls == [3]
    monkeypatch.setattr(_lending, "may_lend", lambda x: False)
    assert_equal(found, steps(twin, x))


@pytest.mark.parametrize("method", ["aol", "bcop", "cayley", "cpl"])
def test_a_network_trains_as_without(method, calls, monkeypatch):
    model = filled(fastlip.fuse(fastlip.models.lip_conv_net(method, width=4, image_size=8, in_channels=4)))
    twin = copy.deepcopy(model)
    found = steps(model, images(8))
    assert 5 in calls
    monkeypatch.setattr(_lending, "may_lend", lambda x: False)
    assert_equal(found, steps(twin, images(8)))


def test_layers_that_differ_are_computed_apart(calls):
    model = filled(
        lip.Chain(
            lip.AOLConv2d(4, 4, 3), lip.AOLConv2d(4, 4, 3, dilation=2), lip.AOLConv2d(4, 4, 3, epsilon=0.1),
            lip.AOLConv2d(4, 4, 1), lip.AOLConv2d(4, 8, 3), lip.BCOPConv2d(8, 4, 3),
        )
    )  # fmt: skip
    model.append(copy.deepcopy(model[0]).requires_grad_(False))
    for _ in range(2):
        model(images())
    assert calls == []


def test_layers_that_ask_for_other_sizes_are_computed_apart(calls):
    first, second, third, fourth = (lip.LOTConv2d(4, 4, 3) for _ in range(4))
    model = filled(lip.Chain(first, second, torch.nn.AvgPool2d(2), third, fourth))
    for side in (8, 8, 4, 4):
        model(images(side))
    assert calls == [2, 2, 2, 2]


def test_what_is_touched_is_computed_by_itself(calls):
    class Own(lip.AOLConv2d):
        def _parametrize(self):
            return (2 * super()._parametrize()[0],)

    model = three("aol")
    model[0].register_forward_pre_hook(lambda layer, x: None)
    torch.nn.utils.parametrize.register_parametrization(model[2], "raw_weight", torch.nn.Identity())
    model.extend([Own(4, 4, 3).double(), Own(4, 4, 3).double()])
    for _ in range(2):
        model(images())
    assert calls == []


class Halve(torch.nn.Module):
    """Writes to the layer after it while a pass runs."""

    def __init__(self, layer):
        super().__init__()
        self.layer = [layer]

    def forward(self, x):
        with torch.no_grad():
            self.layer[0].raw_weight.add_(0.5 * self.layer[0].raw_weight.flip(0))
        return x


def test_a_parameter_that_changes_within_the_pass_is_seen(calls, monkeypatch):
    model = three("aol", between=torch.nn.Identity)
    twin = copy.deepcopy(model)
    for one in (model, twin):
        one[3] = Halve(one[4])
    passes = [model(images()) for _ in range(2)]
    assert calls == [3]
    monkeypatch.setattr(_lending, "may_lend", lambda x: False)
    assert_equal(passes, [twin(images()) for _ in range(2)])
    assert not torch.allclose(*passes)


def test_a_layer_that_occurs_twice_is_computed_twice(calls):
    layer = lip.CPLConv2d(4, 4, 3, training_sigma="power")
    model = filled(lip.Chain(layer, lip.MaxMin(), layer))
    x = images()
    model(x)
    before = layer.power_vector.clone()
    model(x)
    assert not torch.equal(before, layer.power_vector)
    assert calls == []


def test_a_checkpoint_repeats_what_the_first_pass_did(monkeypatch):
    calls, original = [], _merging.merged
    monkeypatch.setattr(_lending, "merged", lambda *given: calls.append(1) or original(*given))
    model = three("cayley")
    x = images().requires_grad_()
    hooks = torch._C._autograd._top_saved_tensors_default_hooks
    monkeypatch.setattr(_lending, "may_lend", lambda x: hooks(True) is None)  # the CPU's images are let pass
    for _ in range(3):
        checkpoint(model, x, use_reentrant=False).sum().backward()
    assert calls == []
    for _ in range(2):
        model(x)
    assert calls == [1]


def test_a_pass_in_another_thread_computes_its_own(calls):
    model = three("aol")
    x, outputs = images(), []

    class Other(torch.nn.Module):
        def forward(self, x):
            thread = threading.Thread(target=lambda: outputs.append(model[3](x)))
            thread.start()
            thread.join()
            return x

    model.insert(1, Other())
    ys = [model(x) for _ in range(2)]
    assert calls == [3]
    assert_equal(outputs, [model[3](model[0](x))] * 2)
    assert_equal(ys[:1], ys[1:])


def test_an_error_takes_the_weights_back(calls):
    model = three("aol")
    model.append(torch.nn.Linear(3, 3).double())
    with pytest.raises(RuntimeError):
        model(images())
    assert all("_supplied" not in vars(layer) for layer in model)


def test_evaluation_and_the_cpu_compute_layer_by_layer(monkeypatch):
    monkeypatch.setattr(_lending, "merged", None)
    model = three("aol")
    model(images())
    monkeypatch.setattr(_lending, "may_lend", lambda x: True)
    model.eval()(images())
