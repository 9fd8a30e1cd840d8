import torch
from torch import nn

from fastlip.benchmarking import perturb


def test_perturbed_weights_are_noisy_and_scaled():
    layer = nn.Linear(200, 100)
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    torch.manual_seed(0)
    perturb(layer, scale=3)
    noise = layer.weight / 3 - before
    assert abs(noise.std() / before.std() - 0.3) < 0.01
    assert torch.equal(layer.bias, bias)
