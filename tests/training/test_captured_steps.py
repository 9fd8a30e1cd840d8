"""``--cuda-graph`` trains what eager trains. Here a graph is a function that is called again on the same memory."""

import pytest
import torch

from fastlip.kernels.common import capture
from fastlip.training import captured_steps, loop
from fastlip.training.captured_steps import WARM_UPS, require_graphs
from fastlip.training.checkpoint import load_optimizer
from fastlip.training.distributed import World

CPU = torch.device("cpu")


class Graphs:
    """Graphs on a CPU: a capture runs nothing, and a replay fills the memory of gradients and result."""

    def __init__(self):
        self.parameters = []
        self.replays = 0

    def captured(self, step):
        result = torch.empty(4, dtype=torch.float64)
        gradients = [torch.empty_like(parameter) for parameter in self.parameters]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            assert parameter.grad is None  # so that a graph has them in its own memory
            parameter.grad = gradient

        def replay():
            self.replays += 1
            before = [parameter.grad for parameter in self.parameters]
            for parameter in self.parameters:
                parameter.grad = None
            result.copy_(step())
            for parameter, gradient, old in zip(self.parameters, gradients, before, strict=True):
                gradient.copy_(parameter.grad)
                parameter.grad = old

        return replay, result


@pytest.fixture
def graphs(monkeypatch):
    found = Graphs()
    monkeypatch.setattr(capture, "captured", found.captured)
    monkeypatch.setattr(capture, "on_side_stream", torch.enable_grad)
    monkeypatch.setattr(loop, "require_graphs", lambda *_: None)
    return found


def train(training, epochs=4):
    training.network.train()
    values = []
    for epoch in range(epochs):
        training.progress.batch = 0
        for x, y in training.train_batches.epoch(epoch):
            values.append(training.step(x, y).tolist())
            training.progress.batch += 1
    return values


OPTIONS = {
    "schedule": {"clip_norm": 0.5, "weight_decay": 0.01, "decayed": "weights"},
    "last batch": {"batch_size": 20},
    "parts": {"accumulate": 2},
    "ramp": {"loss": "emma", "radius": 0.5, "ramp": 1.0},
    "average": {"ema": 0.9},
    "power": {"method": "cpl"},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("captures_update", [True, False])
def test_a_captured_run_is_the_eager_run(make_training, tiny_recipe, graphs, monkeypatch, name, captures_update):
    if not captures_update:
        monkeypatch.setattr(captured_steps, "_CAPTURED", ())
    eager, captured = (make_training(tiny_recipe(cuda_graph=on, **OPTIONS[name])) for on in (False, True))
    graphs.parameters = list(captured.model.parameters())
    expected, found = train(eager), train(captured)
    assert len({tuple(values) for values in expected}) == len(expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    whole = 8 if name == "last batch" else 12
    assert graphs.replays == whole - WARM_UPS
    for one, other in zip(eager.result.parameters(), captured.result.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_learning_rate_is_that_of_each_step(make_training, tiny_recipe, graphs):
    training = make_training(tiny_recipe(cuda_graph=True))
    graphs.parameters = list(training.model.parameters())
    rates = []
    step = training.captured

    def noting(*arguments):
        values = step(*arguments)
        if step._graph is not None:
            rates.append((step._graph.rates[0].item(), training.optimizer.param_groups[0]["lr"]))
        return values

    training.captured = noting
    train(training)
    assert len({rate for rate, _ in rates}) == len(rates) > 3
    assert [rate for rate, _ in rates] == pytest.approx([rate for _, rate in rates])
    assert all(type(rate) is float for _, rate in rates)


def test_where_a_step_cannot_be_captured(tiny_recipe, make_training):
    with pytest.raises(ValueError, match=r"^cuda_graph=True: needs a CUDA device, got cpu$"):
        make_training(tiny_recipe(cuda_graph=True))
    recipe, cuda = tiny_recipe(cuda_graph=True), torch.device("cuda:0")
    require_graphs(recipe, cuda, World())
    with pytest.raises(ValueError, match=r"^cuda_graph=True: needs a single process, got 2$"):
        require_graphs(recipe, cuda, World(0, 2))
    require_graphs(tiny_recipe(), CPU, World(0, 2))


@pytest.mark.parametrize("captured_first", [True, False])
def test_a_run_goes_on_with_and_without_graphs(captured_first):
    parameter = torch.nn.Parameter(torch.ones(2))
    one, other = (
        torch.optim.SGD([parameter], lr=0.1, momentum=0.9, fused=fused)
        for fused in (captured_first, not captured_first)
    )
    parameter.grad = torch.ones(2)
    one.step()
    load_optimizer(other, one.state_dict())
    assert other.param_groups[0]["fused"] is not captured_first
    torch.testing.assert_close(other.state[parameter]["momentum_buffer"], one.state[parameter]["momentum_buffer"])
