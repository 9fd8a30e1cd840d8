"""``torch.fx`` records the package's modules as single calls, as it does those of ``torch.nn``."""

import copy

import pytest
import torch
from layer_catalog import layers, name_of
from torch import fx, nn

import fastlip
from fastlip import nn as lip

OTHERS = [
    *(lip.MaxMin(), lip.GroupSort(), lip.Abs(), lip.HouseHolder(4), lip.PixelUnshuffle(2), lip.L2NormPool2d(2)),
    *(lip.PartialAbs(1), lip.SpatialShift(1), lip.AdaptiveL2NormPool2d(2), lip.BatchCentering(4), lip.Scale(5)),
    *(lip.LayerCentering(4), lip.PositionBias(6), lip.InputWeights(2.0), lip.Scale(0.9, learnable=True)),
    *(lip.ZeroChannelPad(6), lip.FirstChannels(2), lip.ScaledAvgPool2d(2), lip.AOCConvTranspose2d(4, 4, 2, stride=2)),
]


def called(graph_module):
    return [str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("item", layers("Conv2d") + layers("Linear"), ids=name_of)
def test_layers(item, training):
    kind, options = item
    model = nn.Sequential(kind(4, 4, *(3,) * ("Conv" in kind.__name__), **options), nn.ReLU()).train(training)
    traced = fx.symbolic_trace(model)
    assert called(traced) == ["0", "1"]
    x = torch.randn(2, 4, 6, 6) if "Conv" in kind.__name__ else torch.randn(2, 4)
    assert torch.equal(copy.deepcopy(traced)(x), copy.deepcopy(model)(x))


@pytest.mark.parametrize("module", OTHERS, ids=repr)
def test_other_modules(module):
    model, x = nn.Sequential(module), torch.randn(2, 4, 6, 6)
    traced = fx.symbolic_trace(model)
    assert called(traced) == ["0"]
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("method", fastlip.models.METHODS)
def test_networks_and_their_audit(method):
    torch.manual_seed(0)
    model = fastlip.models.lip_conv_net(method, width=4, image_size=8, in_channels=1).eval()
    traced, x = fx.symbolic_trace(model), torch.rand(64, 1, 8, 8)  # enough for kernels
    torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)
    assert fastlip.audit(traced, (1, 8, 8)).bound == pytest.approx(fastlip.audit(model, (1, 8, 8)).bound, rel=1e-6)


class Doubled(lip.AOLLinear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_with_a_forward_of_its_own_is_one_call():
    model, x = nn.Sequential(Doubled(4, 4)), torch.randn(2, 4)
    traced = fx.symbolic_trace(model)
    assert called(traced) == ["0"]
    assert torch.equal(traced(x), model(x))


def test_a_call_with_a_hook_is_not_recorded_twice():
    model, x = nn.Sequential(lip.Abs()), torch.randn(2, 4)
    model[0].register_forward_hook(lambda module, args, y: 3 * y)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))
