"""What is exported is what runs: repeats, shared modules, hooks, replaced methods, and images of other sizes."""

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.nn.applications import KernelConvolution


def shared_everywhere():
    act = lip.MaxMin()
    block = lip.Chain(lip.AOLConv2d(4, 4, 3), act)
    return nn.Sequential(lip.AOLConv2d(4, 4, 3), act, block, nn.Sequential(block, act), nn.Flatten(), act)


def twice(module, between, channels=4):
    return nn.Sequential(module, between, module), channels


SHARED = {
    "everywhere": lambda: (shared_everywhere(), 4),
    "a fused chain": lambda: (fastlip.fuse(shared_everywhere()), 4),
    "a layer of one size": lambda: twice(lip.SLLConv2d(4, 4, 3), nn.Identity()),
    "patches of two sizes": lambda: twice(lip.PixelUnshuffle(2), nn.Identity(), 1),
    "channels of two counts": lambda: twice(lip.ZeroChannelPad(9), lip.FirstChannels(3)),
    "reflections at two sizes": lambda: twice(lip.HouseHolder(4), nn.AvgPool2d(2)),
    "sorting at two sizes": lambda: twice(lip.MaxMin(), nn.Flatten()),
}


@pytest.mark.parametrize("name", SHARED)
@torch.no_grad()
def test_modules_that_stand_at_several_places(name):
    torch.manual_seed(0)
    model, channels = SHARED[name]()
    model, x = model.eval(), torch.randn(128, channels, 7, 7)  # enough for kernels
    plain = fastlip.export(model, (channels, 7, 7))
    assert not any(type(module).__module__.startswith("fastlip.") for module in plain.modules())
    torch.testing.assert_close(plain(x), model(x), rtol=1e-5, atol=1e-5)


KINDS = [lip.AOLConv2d, lip.SLLConv2d, lip.CPLConv2d, lip.SOCConv2d, lip.BCOPConv2d, lip.BROConv2d, lip.CayleyConv2d]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_circular_layer_of_a_small_image_refuses_other_sizes(kind):
    layer = kind(2, 2, 5, padding_mode="circular").eval()
    for parameter in layer.parameters():
        parameter.add_(torch.randn_like(parameter))
    plain = fastlip.export(nn.Sequential(layer), (2, 1, 1))
    x = torch.randn(3, 2, 1, 1)
    torch.testing.assert_close(plain(x), layer(x), rtol=1e-4, atol=1e-4)
    for size in ((6, 6), (1, 2), (2, 1)):
        with pytest.raises(AssertionError, match=r"exported for images of \(1, 1\)"):
            plain(torch.randn(1, 2, *size))
    with pytest.raises(AssertionError, match="exported for images"):
        fastlip.audit(plain, (2, 6, 6))
    assert fastlip.audit(plain, (2, 1, 1)).bound <= 1 + 1e-4


class Louder(KernelConvolution):
    def convolve(self, x, weight, bias=None):
        return 7 * super().convolve(x, weight, bias)


class Convolving(lip.AOLConv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__dict__["_application"] = Louder(self._application.geometry)


class Called(lip.AOLConv2d):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Backwards(lip.Chain):
    def __iter__(self):
        return reversed(list(self._modules.values()))


def hooked():
    model = lip.Chain(lip.AOLConv2d(2, 2, 3))
    model.register_forward_hook(lambda module, args, y: 2 * y)
    return model


def replaced():
    layer = lip.AOLConv2d(2, 2, 3)
    layer._effective = lambda: (torch.ones(2, 2, 3, 3),)
    return nn.Sequential(layer)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(Convolving(2, 2, 3)),
        lambda: nn.Sequential(Called(2, 2, 3)),
        lambda: Backwards(lip.AOLConv2d(2, 2, 3), lip.MaxMin()),
        hooked,
        replaced,
    ],
)
def test_calls_that_do_more_than_their_module_are_refused(make):
    with pytest.raises(TypeError, match="no rule exports"):
        fastlip.export(make(), (2, 6, 6))


class Doubled(nn.Module):
    """A user's module that looks into a layer of ours, which the export replaces."""

    def __init__(self):
        super().__init__()
        self.layer = lip.AOLConv2d(2, 2, 3)

    def forward(self, x):
        y = self.layer(x)
        return 2 * y if isinstance(self.layer, lip.AOLConv2d) else y


def test_a_copy_of_another_function_is_refused():
    with pytest.raises(ValueError, match="export: its outputs differ from the model's"):
        fastlip.export(Doubled(), (2, 6, 6))


def test_a_users_random_module_is_copied():
    class Noisy(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + torch.rand_like(x)

    state = torch.get_rng_state()
    fastlip.export(Noisy(lip.AOLConv2d(2, 2, 3)), (2, 6, 6))
    assert torch.equal(torch.get_rng_state(), state)
