"""Evaluation follows the parameters: after every change, by whatever route, a layer gives what a fresh copy gives."""

import copy
import random

import pytest
import torch
import torch.multiprocessing as mp
from layer_catalog import KERNELS, automatic, layers, name_of, perturb
from parameter_routes import ROUTES, call_with_others
from torch import nn
from torch.nn.utils import parametrize, prune

import fastlip
from fastlip import nn as lip

LAYERS = [*layers("Conv2d"), *layers("Linear"), (lip.NormalizedLinear, {}), (lip.AOCConvTranspose2d, {})]
SIZES = ((6, 5), (4, 4), (7, 3))


def make(item, dtype=torch.float32):
    """A layer in eval mode whose parameters ask for no gradient."""
    cls, options = item
    convolution = not cls.__name__.endswith("Linear")
    layer = cls(4, 4, *([3] if convolution else []), **options)
    return perturb(layer).to(dtype).eval().requires_grad_(False)


def images(layer, size, dtype=torch.float32):
    shape = (3, 4) if isinstance(layer, lip.NormalizedLinear) or hasattr(layer, "in_features") else (3, 4, *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def no_grad(layer, x):
    with torch.no_grad():
        return layer(x)


def inference(layer, x):
    with torch.inference_mode():
        return layer(x).clone()


def frozen_parameters(layer, x):
    return layer(x.clone().requires_grad_()).detach()


def autocast(layer, x):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return layer(x)


CONTEXTS = (no_grad, inference, frozen_parameters, autocast)


def compare(layer, x, evaluate):
    """Returns the output of the layer, and that of a copy that has cached nothing."""
    return evaluate(layer, x), evaluate(copy.deepcopy(layer), x)


def same(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def run_sequence(seed):
    """A random layer through random changes in random contexts; the first difference is described."""
    chosen, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    item = chosen.choice(LAYERS)
    layer = make(item)
    contexts = CONTEXTS if automatic([item]) else CONTEXTS[:-1]  # no kernel runs under autocast
    done = []
    with torch.no_grad():
        for _ in range(4):
            evaluate = chosen.choice(contexts)
            x = images(layer, chosen.choice(SIZES))
            evaluate(layer, x)
            done.append((chosen.choice(list(ROUTES)), evaluate.__name__, tuple(x.shape)))
            with torch.enable_grad():
                ROUTES[done[-1][0]](layer, generator)
            for again in (evaluate, chosen.choice(contexts)):
                with torch.enable_grad():
                    one, other = compare(layer, x, again)
                if not same(one, other):
                    return f"{name_of(item)} seed {seed}: {done} {again.__name__} {(one - other).abs().max()}"
            if chosen.random() < 0.2 and not same(*call_with_others(layer, x, generator)):
                return f"{name_of(item)} seed {seed}: functional_call after {done}"
    return ""


@pytest.mark.parametrize("part", range(4))
def test_random_changes_are_followed(part):
    failures = [text for seed in range(25 * part, 25 * (part + 1)) if (text := run_sequence(seed))]
    assert not failures, "\n".join(failures)


@pytest.mark.slow
def test_thousands_of_random_changes_are_followed():
    failures = [text for seed in range(1000, 3500) if (text := run_sequence(seed))]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("route", ROUTES)
@torch.no_grad()
def test_every_route_is_followed_by_layers_of_every_kind(route):
    kinds = lip.AOLConv2d, lip.CPLConv2d, lip.CayleyConv2d, lip.SOCConv2d, lip.SLLLinear, lip.BjorckLinear
    for item in (*((kind, {}) for kind in kinds), *((lip.CPLConv2d, options) for options in KERNELS)):
        layer = make(item)
        x = images(layer, SIZES[0])
        layer(x)
        with torch.enable_grad():
            ROUTES[route](layer, torch.Generator().manual_seed(1))
        assert same(*compare(layer, x, no_grad)), name_of(item)


@torch.no_grad()
def test_parametrizations_and_pruned_layers_are_followed(monkeypatch):
    class Scaled(nn.Module):
        factor = 1.0

        def forward(self, weight):
            return self.factor * weight

    layer = make((lip.NormalizedLinear, {}))
    layer.raw_weight[0] = 1e-3
    x = images(layer, ())
    shift = Scaled()
    parametrize.register_parametrization(layer, "raw_weight", shift)
    before = layer(x)
    with monkeypatch.context() as patch:
        patch.setattr(lip.NormalizedLinear, "_parametrize", None)  # not computed again
        assert torch.equal(layer(x), before)
    shift.factor = -1.0  # no tensor of the layer changes
    assert torch.allclose(layer(x) - layer.bias, layer.bias - before, atol=1e-6)
    pruned = make((lip.AOLLinear, {}))
    prune.random_unstructured(pruned, "raw_weight", 0.5)
    pruned(x)
    pruned.raw_weight_mask.data.fill_(1)
    pruned.raw_weight_orig.data.normal_()
    plain = make((lip.AOLLinear, {}))
    plain.raw_weight.copy_(pruned.raw_weight_orig)
    plain.bias.copy_(pruned.bias)
    torch.testing.assert_close(pruned(x), plain(x))


def _write(tensor):
    tensor.copy_(torch.linspace(-1, 1, tensor.numel()).view_as(tensor))


@torch.no_grad()
def test_another_process_may_write():
    layer = make((lip.AOLLinear, {}))
    layer.share_memory()
    x = images(layer, ())
    before = layer(x)
    process = mp.get_context("fork").Process(target=_write, args=(layer.raw_weight.data,))
    process.start()
    process.join()
    one, other = compare(layer, x, no_grad)
    assert torch.equal(one, other)
    assert not torch.equal(one, before)


@torch.no_grad()
def test_tensors_made_in_inference_mode_are_cached_and_followed(monkeypatch):
    with torch.inference_mode():
        layer = make((lip.AOLLinear, {}))
        x = images(layer, ())
        expected = layer(x).clone()
        with monkeypatch.context() as patch:
            patch.setattr(lip.AOLLinear, "_parametrize", None)  # not computed again
            assert torch.equal(layer(x), expected)
        layer.raw_weight.add_(torch.randn(4, 4))
        assert not torch.equal(layer(x), expected)
        assert same(*compare(layer, x, inference))


RESIDUAL = [
    *((cls, {}) for cls in (lip.CPLConv2d, lip.SLLConv2d, lip.CPLLinear, lip.SLLLinear)),
    *((cls, options) for cls in (lip.CPLConv2d, lip.SLLConv2d) for options in KERNELS),
]


@pytest.mark.parametrize("item", RESIDUAL, ids=name_of)
@torch.no_grad()
def test_a_scale_is_never_that_of_another_kernel(item, monkeypatch):
    """While the scale is computed another thread writes: the kernel that is used must be the one that was read."""
    layer, cls = make(item), item[0]
    x = 100 * images(layer, SIZES[0])
    layer.bias.zero_()
    original = cls._parametrize

    def interrupted(self, *context):
        scale = original(self, *context)
        layer.kernel.data.mul_(1000)
        return scale

    expected = copy.deepcopy(layer)(x)
    monkeypatch.setattr(cls, "_parametrize", interrupted)
    torch.testing.assert_close(layer(x), expected)
    monkeypatch.undo()
    assert same(*compare(layer, x, no_grad))


@torch.no_grad()
def test_certificates_refuse_parameters_that_change_meanwhile():
    model = nn.Sequential(make((lip.AOLLinear, {})), make((lip.AOLLinear, {}))).eval()

    def loader():
        for _ in range(2):
            yield torch.randn(3, 4), torch.zeros(3, dtype=torch.long)
            model[0].raw_weight.data.normal_()

    with pytest.raises(ValueError, match="model: its parameters changed"):
        fastlip.certify(model, loader())


@pytest.mark.parametrize("run", ["audit", "certify", "export", "attack"])
@torch.no_grad()
def test_results_are_those_of_the_parameters(run):
    model = nn.Sequential(make((lip.NormalizedLinear, {})), make((lip.NormalizedLinear, {}))).eval()
    x = images(model[0], ())
    batches = [(x, torch.zeros(3, dtype=torch.long))]
    calls = {
        "audit": lambda m: fastlip.audit(m, (4,)).bound,
        "certify": lambda m: fastlip.certify(m, batches).radii.tolist(),
        "export": lambda m: fastlip.export(m, (4,))(x).tolist(),
        "attack": lambda m: fastlip.attack(m, batches, [1.0], bounds=None, steps=3).distances.tolist(),
    }
    fastlip.freeze(model)
    model(x)
    for layer in model:
        layer.raw_weight.data.normal_()
    assert calls[run](model) == calls[run](copy.deepcopy(model))
    assert torch.equal(model(x), copy.deepcopy(model)(x))
