"""The layers that tests run one by one, as marks that parametrize them; an input, an evaluation, a training step."""

import pytest
import torch
from layer_catalog import automatic, layers, name_of, perturb

from fastlip.nn import NormalizedLinear

CONVOLUTIONS, DENSE = layers("Conv2d", square=True), layers("Linear", square=True)
CHANNELS, IMAGE = 4, (4, 6, 5)
EVERY = [*CONVOLUTIONS, *DENSE, (NormalizedLinear, {})]
every_layer = pytest.mark.parametrize("item", EVERY, ids=name_of)
every_bounded_layer = pytest.mark.parametrize("item", [*CONVOLUTIONS, *DENSE], ids=name_of)
every_automatic_layer = pytest.mark.parametrize("item", automatic(EVERY), ids=name_of)
every_convolution = pytest.mark.parametrize("item", CONVOLUTIONS, ids=name_of)
# Also with other numbers of outputs than inputs, and strides.
every_convolution_of_any_shape = pytest.mark.parametrize("item", layers("Conv2d"), ids=name_of)
every_automatic_convolution = pytest.mark.parametrize("item", automatic(layers("Conv2d")), ids=name_of)
every_dense_layer = pytest.mark.parametrize("item", DENSE, ids=name_of)


def make(item, *, moved=True, **more):
    """A layer of four channels or features, away from its initialisation, and an input."""
    cls, options = item
    dtype = more.setdefault("dtype", torch.float32)
    convolution = cls.__name__.endswith("Conv2d")
    layer = cls(CHANNELS, CHANNELS, *([3] if convolution else []), **options, **more)
    x = torch.randn(3, *(IMAGE if convolution else IMAGE[:1]), dtype=dtype)
    return (perturb(layer) if moved else layer), x


def evaluate(layer, x):
    """The output without a graph, where the cache works."""
    layer.eval()
    with torch.no_grad():
        return layer(x)


def step(layer, x, lr=0.1):
    """One optimiser step on a loss that every parameter sees; returns the gradients."""
    layer.train()
    optimizer = torch.optim.SGD(layer.parameters(), lr)
    optimizer.zero_grad()
    (layer(x) * torch.linspace(0.5, 2.0, CHANNELS).view(-1, *[1] * (x.dim() - 2))).square().sum().backward()
    optimizer.step()
    return [parameter.grad for parameter in layer.parameters()]
