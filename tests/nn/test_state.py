"""What wrappers ask of a layer's parameters and buffers: shapes, initialisation, replicas, checkpoints, dtypes."""

import copy
import importlib

import pytest
import torch
from layer_catalog import every_layer, perturb
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import fastlip
from fastlip.nn.base import LipschitzLayer

LAYERS = every_layer()
STATEFUL = [name for name, (make, _) in LAYERS.items() if list(make().parameters())]
CONSTRAINED = [name for name in STATEFUL if isinstance(LAYERS[name][0](), LipschitzLayer)]
JUNK = 1e6


def made(name, **options):
    """A layer, its parameters moved away from their initial values, and two samples."""
    make, shape = LAYERS[name]
    return perturb(make(**options)), torch.randn(2, *shape)


def tensors(layer):
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


@pytest.mark.parametrize("name", STATEFUL)
def test_every_tensor_has_a_dimension(name):
    # FSDP splits along the first.
    assert not [key for key, tensor in tensors(LAYERS[name][0]()).items() if tensor.dim() == 0]


@pytest.mark.parametrize("name", STATEFUL)
def test_reset_after_the_meta_device_is_construction(name):
    make = LAYERS[name][0]
    torch.manual_seed(3)
    fresh = tensors(make())
    with torch.device("meta"):
        layer = make()
    layer.to_empty(device="cpu")
    for tensor in tensors(layer).values():
        tensor.data.fill_(JUNK)
    torch.manual_seed(3)
    for module in layer.modules():
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            module.reset_parameters()
    for key, tensor in tensors(layer).items():
        assert torch.equal(tensor, fresh[key]), key


@pytest.mark.parametrize("name", CONSTRAINED)
def test_effective_weights_are_contiguous(name):
    layer, x = made(name)
    if x.dim() == 4:
        layer = layer.to(memory_format=torch.channels_last)
    for training in (True, False):
        layer.train(training)
        seen = []
        layer._supplied = lambda own, context, seen=seen: seen.append(context)
        layer(x)
        layer._supplied = None
        assert all(weight.is_contiguous() for context in seen for weight in layer._effective(*context))
    state = fastlip.export(layer, tuple(x.shape[1:])).state_dict()
    assert all(tensor.is_contiguous() for tensor in state.values() if isinstance(tensor, torch.Tensor))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_checkpoint_changes_neither_gradients_nor_buffers(name, use_reentrant):
    layer, x = made(name)
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.normal_()
    other = copy.deepcopy(layer)
    for _ in range(2):  # the second step starts from moved buffers
        for one, run in ((layer, lambda x: checkpoint(layer, x, use_reentrant=use_reentrant)), (other, other)):
            one.zero_grad()
            images = x.clone().requires_grad_()
            run(images).square().sum().backward()
            one.images_gradient = images.grad
        torch.testing.assert_close(layer.images_gradient, other.images_gradient)
        for (key, mine), wanted in zip(layer.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, wanted.grad, msg=key)
        for (key, mine), wanted in zip(layer.named_buffers(), other.buffers(), strict=True):
            assert torch.equal(mine, wanted), key
        with torch.no_grad():
            for one in (layer, other):
                for parameter in one.parameters():
                    parameter.mul_(1.1).add_(0.01)


@pytest.fixture
def replicate(monkeypatch):
    """``torch.nn.parallel.replicate`` without a GPU: copies in the place of broadcasts."""
    module = importlib.import_module("torch.nn.parallel.replicate")

    def copies(tensors, devices, detach=False):
        return [[t.detach().clone() if detach else t.clone() for t in tensors] for _ in devices]

    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", copies)
    return module.replicate


@pytest.mark.parametrize("name", STATEFUL)
def test_replicas_run(name, replicate):
    layer, x = made(name)
    expected = copy.deepcopy(layer)(x)
    replicas = replicate(layer, [0, 1])
    assert not list(replicas[1].parameters())
    for replica in replicas:
        torch.testing.assert_close(replica(x), expected)
    sum(replica(x).square().sum() for replica in replicas).backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    layer.eval()
    with torch.no_grad():
        layer(x)
        for parameter in layer.parameters():
            parameter.mul_(0.6).add_(0.05)
        for _ in range(2):
            torch.testing.assert_close(replicate(layer, [0, 1])[1](x), copy.deepcopy(layer)(x))


@pytest.mark.parametrize("name", CONSTRAINED)
def test_plain_attributes_in_the_place_of_parameters(name):
    """As FSDP's flat parameters leave them."""
    layer, x = made(name)
    expected = copy.deepcopy(layer).eval()(x)
    leaves = {}
    for key, parameter in list(layer.named_parameters()):
        delattr(layer, key)
        leaves[key] = parameter.detach().clone().requires_grad_()
        setattr(layer, key, leaves[key] * 1)
    layer.eval()
    y = layer(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    assert all(leaf.grad is not None for leaf in leaves.values())


class _Twice(nn.Module):
    def forward(self, X):
        return 2 * X


@pytest.mark.parametrize("name", CONSTRAINED)
def test_parametrized_and_pruned_parameters(name):
    layer, x = made(name, bias=False)
    (key,) = [k for k, p in layer.named_parameters() if p.dim() > 1][:1]
    doubled = copy.deepcopy(layer)
    with torch.no_grad():
        getattr(doubled, key).mul_(2)
    parametrize.register_parametrization(layer, key, _Twice())
    halved = copy.deepcopy(doubled)
    prune.l1_unstructured(halved, key, amount=0.3)
    masked = copy.deepcopy(doubled)
    with torch.no_grad():
        getattr(masked, key).mul_(getattr(halved, f"{key}_mask"))
    for pair in ((layer, doubled), (halved, masked)):
        for training in (True, False):
            for gradients in (True, False):
                with torch.set_grad_enabled(gradients):
                    one, other = (module.train(training) for module in pair)
                    torch.testing.assert_close(one(x), other(x), rtol=1e-4, atol=1e-5)
    for module in (layer, halved):  # the chain rule goes through what made the parameter, once
        gradients = []
        for one in (copy.deepcopy(module), module, module):  # a copy has kept nothing
            one.zero_grad()
            one.eval()(x).square().sum().backward()
            gradients.append([p.grad for p in one.parameters() if p.grad is not None])
        for one, other in zip(gradients[0], gradients[-1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["CayleyConv2d zeros", "CayleyLinear"])
def test_numbers_that_old_checkpoints_hold_without_a_dimension(name):
    layer, x = made(name)
    state = layer.state_dict()
    old = {**state, "alpha": state["alpha"][0]}
    assert old["alpha"].shape == ()
    for options in ({}, {"assign": True}):
        again = LAYERS[name][0]()
        again.load_state_dict(old, **options)
        assert again.alpha.shape == (1,)
        assert torch.equal(again(x), layer(x))
    network = nn.Sequential(LAYERS[name][0]())
    network.load_state_dict({f"0.{key}": value for key, value in old.items()})
    assert torch.equal(network(x), layer(x))


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float64], ids=str)
def default_dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", LAYERS)
def test_other_default_dtypes(name, default_dtype):
    if "native" in name and default_dtype.itemsize == 2:
        pytest.skip("kernels take float32 and float64")
    layer, x = LAYERS[name][0](), torch.randn(2, *LAYERS[name][1])
    optimizer = torch.optim.SGD([*layer.parameters(), x.requires_grad_()], 0.01)
    y = layer(x)
    assert y.dtype == default_dtype
    y.square().mean().backward()
    optimizer.step()
    assert all(tensor.dtype == default_dtype and tensor.isfinite().all() for tensor in tensors(layer).values())
    assert layer.eval()(x.detach()).isfinite().all()


@pytest.mark.parametrize("method", [*fastlip.models.METHODS, "sll net"])
def test_networks_under_other_default_dtypes(method, default_dtype):
    if method == "sll net":
        sizes = {"width": 4, "convolutions": 1, "dense_layers": 1, "inner_features": 6}
        net = fastlip.models.sll_net(**sizes, image_size=8, in_channels=1)
    else:
        net = fastlip.models.lip_conv_net(method, width=4, image_size=8, in_channels=1, layers_per_block=1)
    scores = net(torch.rand(64, 1, 8, 8))  # enough for kernels, where they take the dtype
    fastlip.losses.OffsetCrossEntropy(0.5, 0.25)(scores, torch.arange(64) % 10).backward()
    assert all(parameter.grad.dtype == default_dtype for parameter in net.parameters())
    assert fastlip.certify(net.eval(), [(torch.rand(2, 1, 8, 8), torch.arange(2))]).radii.isfinite().all()
