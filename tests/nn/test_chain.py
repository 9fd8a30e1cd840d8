"""Chain runs convolution -> MaxMin pairs fused, with the results, parameters and hooks of Sequential."""

import copy
import pickle

import pytest
import torch
from autograd_graph import kernels_of
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip import testing
from fastlip.nn import aol, fusion
from fastlip.nn.applications import spectra

# Images for which "auto" takes the kernels in every run of this file.
LARGE = 6, 4, 32, 32


def pairs_of(*convolutions, pairing="adjacent"):
    modules = []
    for convolution in convolutions:
        modules += [convolution, lip.MaxMin(pairing)]
    return modules


def sequences():
    torch.manual_seed(0)
    aol, sll, cpl = lip.AOLConv2d, lip.SLLConv2d, lip.CPLConv2d
    return {
        "aol": pairs_of(aol(4, 6, 3), aol(6, 6, 3), aol(6, 4, 1)),
        "zeros": pairs_of(aol(4, 6, 3, padding_mode="zeros"), aol(6, 6, 3, padding_mode="zeros")),
        "plain": pairs_of(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding="same", bias=False)),
        "plain circular": pairs_of(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular")),
        "mixed": pairs_of(aol(4, 6, 3), nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular")),
        "mixed modes": pairs_of(aol(4, 6, 3), nn.Conv2d(6, 6, 3, padding=1), aol(6, 4, 3)),
        "residual": pairs_of(sll(4, 4, 3), cpl(4, 4, 3), aol(4, 4, 3)),
        "residual widths": pairs_of(sll(4, 6, 3), sll(6, 4, 3, stride=2)),
        "halves": pairs_of(aol(4, 6, 3), sll(6, 6, 3, padding_mode="circular"), pairing="halves"),
        "not fusable": pairs_of(aol(4, 6, 3, stride=2), aol(6, 6, 3, groups=2), nn.Conv2d(6, 4, 3)),
        "no activation": [aol(4, 4, 3), nn.ReLU(), aol(4, 4, 3)],
        "orthogonal": pairs_of(lip.CayleyConv2d(4, 4, 3), lip.BCOPConv2d(4, 4, 3)),
    }


def results(module, x):
    x = x.detach().clone().requires_grad_()
    y = module(x)
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], torch.ones_like(y).cumsum(-1))]


# Which kernels each sequence runs in training, if any.
KERNELS = {
    "residual": {"sdp_residual", "conv_chain"},
    "residual widths": {"sdp_residual"},
    "halves": {"sdp_residual", "conv_chain"},
    "not fusable": set(),
    "no activation": set(),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 4, 8, 8), LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", sequences())
def test_equals_sequential(name, shape, training):
    modules = sequences()[name]
    sequential = fastlip.unfuse(nn.Sequential(*modules).train(training).double())
    fused = fastlip.fuse(copy.deepcopy(sequential))
    assert type(fused) is lip.Chain
    x = torch.randn(shape, dtype=torch.float64)
    found = results(fused, x)
    for one, other in zip(found, results(sequential, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    if shape == LARGE and not fusion.CONV_CHAIN.status("native"):
        assert kernels_of(found[0]) & {"sdp_residual", "conv_chain"} == KERNELS.get(name, {"conv_chain"})


@pytest.fixture
def native():
    if reason := fusion.CONV_CHAIN.status("native"):
        pytest.skip(reason)


@pytest.fixture
def calls(monkeypatch):
    """How many pairs each call of the fused operator runs."""
    seen = []
    original = fusion.ops.conv_chain

    def record(x, weights, *rest, **options):
        seen.append(len(weights))
        return original(x, weights, *rest, **options)

    monkeypatch.setattr(fusion.ops, "conv_chain", record)
    return seen


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aol", [3]),
        ("plain", [2]),
        ("mixed", [2]),
        ("mixed modes", [1, 1, 1]),
        ("residual", [1]),
        ("not fusable", []),
    ],
)
def test_which_pairs_run_together(name, expected, calls, native):
    y = fastlip.fuse(nn.Sequential(*sequences()[name]))(torch.randn(LARGE))
    assert calls == expected
    assert ("conv_chain" in kernels_of(y)) == bool(expected)


def test_a_hook_is_called_with_its_modules_output(calls, native):
    model = fastlip.fuse(nn.Sequential(*sequences()["aol"]))
    seen, x = [], torch.randn(LARGE)
    expected = model[2](model[1](model[0](x)))
    model[2].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(x)
    assert calls == [1, 1]
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_pair_bound_to_another_backend_is_not_fused(backend, calls):
    model = fastlip.fuse(nn.Sequential(*sequences()["aol"]))
    model[0].backend = backend
    assert fusion.fusion_of(model[0], model[1]) is None
    model[0].backend, model[1].backend = "auto", backend
    assert fusion.fusion_of(model[0], model[1]) is None


def test_other_dtypes_run_module_by_module(calls, native):
    model = fastlip.fuse(nn.Sequential(*sequences()["aol"]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(LARGE))
    assert calls == []
    y = model(torch.randn(LARGE))
    assert calls == [3]
    assert "conv_chain" in kernels_of(y)


def test_where_the_chain_cannot_run_weights_are_computed_once(monkeypatch):
    layer = lip.AOLConv2d(4, 4, 3).train()
    model, counts = fastlip.fuse(nn.Sequential(layer, lip.MaxMin())), []
    original = aol.GRAM_ROWSUM
    monkeypatch.setattr(aol, "GRAM_ROWSUM", lambda *a: counts.append(1) or original(*a))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(2, 4, 5, 5))
    assert len(counts) == 1


@pytest.mark.parametrize("dim", [1, -3])
@pytest.mark.parametrize("layer", [lip.SLLConv2d, lip.AOLConv2d])
def test_an_image_without_batch_is_sorted_along_the_dimension_asked_for(layer, dim):
    sequential = nn.Sequential(layer(4, 4, 3), lip.MaxMin(dim=dim)).double()
    x = torch.randn(4, 6, 6, dtype=torch.float64)
    expected = sequential(x)
    torch.testing.assert_close(fastlip.fuse(sequential)(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_a_fused_chain_follows_load_state_dict_and_a_second_resolution(training):
    sequential = nn.Sequential(*pairs_of(lip.AOLConv2d(4, 4, 3), lip.SLLConv2d(4, 4, 3), lip.CPLConv2d(4, 4, 3)))
    fused = fastlip.fuse(copy.deepcopy(sequential).train(training))
    sequential = fastlip.unfuse(sequential).train(training)
    with torch.no_grad():
        fused(torch.randn(LARGE))
        for parameter in sequential.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        fused.load_state_dict(sequential.state_dict())
        for size in ((32, 32), (31, 35), (5, 7), (32, 32)):
            x = torch.randn(*LARGE[:2], *size)
            torch.testing.assert_close(fused(x), sequential(x), rtol=1e-4, atol=1e-5)


def test_fuse_keeps_names_and_is_undone():
    model = nn.Sequential(nn.Sequential(*sequences()["aol"]), lip.Chain(*sequences()["plain"]))
    names = list(model.state_dict())
    fastlip.fuse(model)
    assert [type(module) for module in (model, model[0], model[1])] == [lip.Chain] * 3
    assert list(model.state_dict()) == names
    copied = pickle.loads(pickle.dumps(model))
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(copied(x), model(x))
    fastlip.unfuse(model)
    assert [type(module) for module in (model, model[0], model[1])] == [nn.Sequential, nn.Sequential, lip.Chain]


class Own(nn.Sequential):
    """A user's subclass with a forward of its own."""

    def forward(self, x):
        return super().forward(x) + x


def test_a_subclass_is_left_alone():
    model = fastlip.fuse(Own(*sequences()["aol"]))
    assert type(model) is Own


def test_wrong_channels_name_the_argument():
    with pytest.raises(ValueError, match="x: got shape"):
        fastlip.fuse(nn.Sequential(*sequences()["aol"]))(torch.randn(2, 3, 5, 5))


@pytest.mark.parametrize("method", ["aol", "sll", "cpl"])
def test_a_network_compiles_without_graph_break(method):
    torch.manual_seed(0)
    model = fastlip.models.lip_conv_net(method, width=8, image_size=4, layers_per_block=2).train()
    compiled_model, x = copy.deepcopy(model), torch.randn(128, 3, 4, 4)  # enough for kernels
    torch._dynamo.reset()
    compiled = torch.compile(compiled_model, fullgraph=True, backend="aot_eager")
    model(x).sum().backward()
    compiled(x).sum().backward()
    for (name, one), other in zip(model.named_parameters(), compiled_model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_the_aol_chain_keeps_inputs_weights_and_bits(native):
    layers = [lip.AOLConv2d(8, 8, 3) for _ in range(3)]
    model = fastlip.fuse(nn.Sequential(*pairs_of(*layers)))
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    kept = testing.bytes_kept(lambda: model(x))
    images, bits = 3 * x.numel() * 4, 3 * x.numel() // 2 // 8
    weights = 3 * 8 * 8 * 9 * 4
    signs = 3 * 13 * 8 * 2 * 4  # half the offsets, two planes of 8 rows
    assert images + bits + weights < kept <= images + bits + weights + signs + 3 * 10 * 8 * 4


SPECTRAL = {
    "cayley": (lip.CayleyConv2d, {}),
    "lot": (lip.LOTConv2d, {"padding_mode": "zeros"}),
    "spectral soc": (lip.SOCConv2d, {"exponential": "spectral"}),
    "circular soc": (lip.SOCConv2d, {"padding_mode": "circular", "terms": 12}),
}


@pytest.fixture
def activations(monkeypatch):
    """What follows each convolution by kept matrices in its last transform."""
    seen, original = [], spectra.spectral_conv_fixed

    def record(x, spectrum, bias, residual, activation, memory_format):
        seen.append(activation)
        return original(x, spectrum, bias, residual, activation, memory_format)

    monkeypatch.setattr(spectra, "spectral_conv_fixed", record)
    return seen


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("pairing", ["adjacent", "halves"])
@pytest.mark.parametrize(("widths", "side"), [((4, 4), 5), ((34, 34), 8), ((1, 5), 4), ((7, 4), 3)], ids=str)
@pytest.mark.parametrize("name", SPECTRAL)
def test_layers_per_frequency_sort_in_their_last_transform(name, widths, side, pairing, activations):
    cls, options = SPECTRAL[name]
    convolutions = cls(*widths, 3, **options), cls(widths[1], 6, 3, stride=2 if name != "lot" else 1, **options)
    sequential = nn.Sequential(*(m for c in convolutions for m in (c, lip.MaxMin(pairing)))).double().eval()
    fused = fastlip.fuse(copy.deepcopy(sequential))
    x = torch.randn(3, widths[0], side, side, dtype=torch.float64)
    expected = fastlip.unfuse(sequential)(x).detach()
    with torch.no_grad():
        y = fused(x)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert activations == ["maxmin" if pairing == "adjacent" else "none"] * 2
        torch.testing.assert_close(fused[0](x), fastlip.unfuse(sequential)[0](x), rtol=1e-10, atol=1e-10)
        assert activations.pop() == "none"
    x.requires_grad_()
    torch.testing.assert_close(fused(x).detach(), expected, rtol=1e-10, atol=1e-10)
    assert len(activations) == 2  # a gradient needs the bits


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", SPECTRAL)
@torch.no_grad()
def test_kept_matrices_follow_the_parameters_and_take_the_place_of_others(name):
    cls, options = SPECTRAL[name]
    layer = cls(6, 4, 3, **options).double().eval()
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    before = layer(x)
    assert [key[0] for key in layer._cache.entries] == ["spectra"]
    for change in (lambda: layer.raw_weight.add_(torch.randn_like(layer.raw_weight)), lambda: layer.bias.add_(1)):
        change()
        after = layer(x)
        torch.testing.assert_close(after, fastlip.unfuse(copy.deepcopy(layer))(x), rtol=1e-10, atol=1e-10)
        assert not torch.allclose(before, after)
        before = after
    for side in range(3, 14):
        layer(x[:, :, :1, :1].expand(-1, -1, side, side))
    assert len(layer._cache.entries) == 8
