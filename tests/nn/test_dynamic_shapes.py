"""One program for every number of images, by ``torch.compile(dynamic=True)`` and ``torch.export``."""

import pytest
import torch
from layer_catalog import every_layer

import fastlip
from fastlip.kernels.common import sizes

LAYERS = every_layer()
FEW = ("AOLConv2d circular", "SOCConv2d zeros")
SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def programs(module, inputs):
    """How many programs the calls take; their results are those of the module."""
    count = []
    backend = lambda graph, _: count.append(1) or graph.forward  # noqa: E731
    compiled = torch.compile(module, backend=backend, dynamic=True, fullgraph=True)
    for x in inputs:
        y = compiled(x)
        if not module.training:
            torch.testing.assert_close(y, module(x), rtol=1e-4, atol=1e-5)
        if y.requires_grad:
            y.sum().backward()
    return len(count)


def network(method, fused=False):
    net = fastlip.models.lip_conv_net(method, width=4, image_size=8, in_channels=1, layers_per_block=1)
    return fastlip.fuse(net) if fused else fastlip.unfuse(net)


@pytest.mark.parametrize("method", ["aol", "sll", *(pytest.param(m, marks=SLOW) for m in fastlip.models.METHODS)])
def test_a_network_of_kernels_takes_one_program(method):
    assert programs(network(method, fused=True).eval(), [torch.rand(n, 1, 8, 8) for n in range(2, 16)]) == 1


@SLOW
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", fastlip.models.METHODS)
def test_a_network_of_references_takes_one_program(method, training):
    assert programs(network(method).train(training), [torch.rand(n, 1, 8, 8) for n in range(2, 16)]) == 1


@pytest.mark.parametrize("name", [*FEW, *(pytest.param(name, marks=SLOW) for name in LAYERS)])
def test_a_layer_takes_one_program(name):
    make, shape = LAYERS[name]
    for training in (True, False):
        torch.compiler.reset()
        layer = make().train(training)
        assert programs(layer, [torch.randn(n, *shape, requires_grad=True) for n in (2, 3, 5, 9)]) == 1


@pytest.mark.parametrize("name", [*FEW, *(pytest.param(name, marks=SLOW) for name in LAYERS)])
def test_a_layer_is_exported_for_any_batch(name):
    make, shape = LAYERS[name]
    layer = make().eval()
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(layer, (torch.randn(3, *shape),), dynamic_shapes=dynamic)
    for n in (2, 7):
        x = torch.randn(n, *shape)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-5)


@SLOW
@pytest.mark.parametrize("method", fastlip.models.METHODS)
def test_a_network_is_exported_for_any_batch(method):
    net, dynamic = network(method, fused=True).eval(), ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (torch.rand(3, 1, 8, 8),), dynamic_shapes=dynamic)
    x = torch.rand(6, 1, 8, 8)
    torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-5)


@SLOW
@pytest.mark.parametrize("name", ["AOLConv2d zeros", "SLLConv2d circular", "SOCConv2d zeros", "AOCConv2d circular"])
def test_images_of_any_size_take_few_programs(name):
    layer = LAYERS[name][0]()
    assert programs(layer, [torch.randn(2, 4, n, n + 1) for n in (5, 6, 9, 12, 17)]) <= 2


def test_sizes_are_numbers_outside_of_a_compiler():
    assert sizes.surely_below(3, 4)
    assert not sizes.surely_below(4, 4)
    assert sizes.are_static(1, 2)
