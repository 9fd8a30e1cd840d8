"""A whole training step, loss and optimiser included: compiled in one graph, and captured in a CUDA graph."""

import copy

import pytest
import torch

import fastlip

OFFSET, TEMPERATURE = 0.5, 0.25


def network(method, device, **sizes):
    torch.manual_seed(0)
    options = {"training_sigma": "power"} if method == "cpl" else {}
    return fastlip.models.lip_conv_net(method, **sizes, **options).to(device).train()


def batch(side, device, count=8):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, side, side, generator=generator)
    return images.to(device), (torch.arange(count) % 10).to(device)


def stepper(model, function):
    """A step of training by function, the mean loss of the model."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(images, labels):
        optimiser.zero_grad(set_to_none=True)
        loss = function(images, labels)
        loss.backward()
        optimiser.step()
        return loss

    return step


def mean_loss(model):
    criterion = fastlip.losses.OffsetCrossEntropy(offset=OFFSET, temperature=TEMPERATURE)
    return lambda images, labels: criterion(model(images), labels)


def assert_same_parameters(one, other, **tolerance):
    others = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(
            parameter, others[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance
        )


@pytest.mark.parametrize("method", ["aol", "cayley"])
def test_a_training_step_compiles_without_graph_break(method):
    model = network(method, "cpu", width=4, image_size=16, layers_per_block=1)
    compiled_model, images = copy.deepcopy(model), batch(16, "cpu", 256)  # enough for kernels
    torch._dynamo.reset()
    eager = stepper(model, mean_loss(model))
    compiled = torch.compile(mean_loss(compiled_model), fullgraph=True, backend="aot_eager")
    ours = stepper(compiled_model, compiled)
    before = copy.deepcopy(model)
    for _ in range(2):
        expected = eager(*images)
        torch.testing.assert_close(ours(*images), expected)
    assert_same_parameters(compiled_model, model)
    assert any((one != other).any() for one, other in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["aol", "sll", "cpl", "cayley"])
def test_a_training_step_is_captured_in_a_cuda_graph(method):
    model = fastlip.fuse(network(method, "cuda", width=16, image_size=16, layers_per_block=2))
    start, images = copy.deepcopy(model), batch(16, "cuda")
    step = stepper(model, mean_loss(model))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles kernels, makes tables, and the optimiser's state
        for _ in range(3):
            step(*images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(*images)
    for _ in range(2):
        graph.replay()
    eager = stepper(start, mean_loss(start))
    for _ in range(5):
        expected = eager(*images)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert_same_parameters(model, start, rtol=1e-3, atol=1e-4)
