"""Weights and bounds are IEEE float32 or better, whatever torch's settings for float32 products say."""

import contextlib
import random
import threading
from functools import partial

import pytest
import torch
from tf32_model import CPU, FULL, LOWER, PLACES, PRODUCTS, TF32, get, put, reset

import fastlip
from fastlip import nn as lip
from fastlip import testing
from fastlip.kernels.common import precision


@pytest.fixture(autouse=True)
def _settings_come_back():
    yield
    reset()


def convolutions():
    for name in ("AOC", "AOL", "BCOP", "BRO", "Cayley", "CPL", "LOT", "SLL", "SOC", "Sandwich"):
        for backend in ("auto", "reference"):
            yield pytest.param(getattr(lip, f"{name}Conv2d"), {"backend": backend}, id=f"{name}-{backend}")
    yield pytest.param(lip.CPLConv2d, {"training_sigma": "power"}, id="CPL-power")
    yield pytest.param(lip.SOCConv2d, {"exponential": "spectral"}, id="SOC-spectral")


def weights_and_gradients(layer, context):
    layer.zero_grad()
    weights = layer._effective(*context)
    generator = torch.Generator().manual_seed(1)
    total = 0
    for weight in weights:
        real = torch.view_as_real(weight) if weight.is_complex() else weight
        total = total + (real * torch.randn(real.shape, generator=generator)).sum()
    total.backward()
    return [weight.detach().clone() for weight in weights], [
        p.grad.clone() for p in layer.parameters() if p.grad is not None
    ]


def asked(layer, x):
    seen = []
    layer._supplied = lambda own, context: seen.append(context)
    layer(x)
    layer._supplied = None
    return seen[0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("lower", ["high", "oneDNN"])
@pytest.mark.parametrize(("kind", "options"), list(convolutions()))
def test_weights_and_their_gradients_are_the_same(kind, options, lower, training):
    layer = kind(6, 6, 3, **options).train(training)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    context = asked(layer, torch.randn(2, 6, 5, 5))
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    expected = weights_and_gradients(layer, context)
    for lowered in (lambda: None, LOWER[lower]):
        lowered()
        layer.load_state_dict(state)
        layer.train(training)
        with TF32() as mode:
            found = weights_and_gradients(layer, context)
        assert mode.rounded == 0
        for one, other in zip(found, expected, strict=True):
            for value, wanted in zip(one, other, strict=True):
                scale = wanted.abs().max() + 1e-6
                assert ((value - wanted).abs().max() / scale) < 2e-5


class _Twice(torch.nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("name", ["AOC", "BCOP", "BRO", "Cayley", "CPL", "LOT", "SOC", "Sandwich"])
def test_so_are_those_of_parameters_that_are_computed(name):
    """``torch.nn.utils.parametrize`` makes the computation a child of the layer."""
    layer = getattr(lip, f"{name}Conv2d")(6, 6, 3, backend="reference")
    key = next(key for key, value in layer.named_parameters() if value.dim() > 1)
    torch.nn.utils.parametrize.register_parametrization(layer, key, _Twice())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    context = asked(layer, torch.randn(2, 6, 5, 5))
    expected = weights_and_gradients(layer, context)
    torch.set_float32_matmul_precision("high")
    with TF32() as mode:
        found = weights_and_gradients(layer, context)
    assert mode.rounded == 0
    assert len(found[1]) == len(expected[1]) > 0
    for value, wanted in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        assert (value - wanted).abs().max() <= 2e-5 * (wanted.abs().max() + 1e-6)


def test_the_mode_rounds_and_a_planted_fault_is_seen():
    torch.set_float32_matmul_precision("high")
    a = torch.randn(8, 8)
    with TF32() as mode:
        assert not torch.equal(a @ a, (a.double() @ a.double()).float())
    assert mode.rounded == 2

    class Faulty(lip.BjorckLinear):
        def _compute(self, context, reference=None):
            return self._parametrize(*context)

    layer = Faulty(8, 8, backend="reference")
    torch.nn.init.normal_(layer.raw_weight)
    with TF32() as mode:
        layer(torch.randn(2, 8)).sum()
    assert mode.rounded > 2  # of the product with the images, and of the polar factor's


@pytest.mark.parametrize("lower", LOWER)
@pytest.mark.parametrize("method", ["bcop", "soc", "cpl"])
def test_audits_and_certificates_are_the_same(method, lower):
    network = fastlip.models.lip_conv_net(method, width=4, image_size=8, in_channels=1, layers_per_block=1).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    data = [(torch.rand(4, 1, 8, 8), torch.arange(4))]
    expected = fastlip.certify(network, data)
    LOWER[lower]()
    network.train().eval()
    before = [get(*place) for place in PLACES]
    with TF32() as mode:
        found = fastlip.certify(network, data)
        bound = fastlip.audit(network, (1, 8, 8)).bound
    assert [get(*place) for place in PLACES] == before
    assert found.lipschitz == pytest.approx(expected.lipschitz, rel=1e-6)
    assert bound == pytest.approx(expected.lipschitz, rel=1e-6)
    torch.testing.assert_close(found.margins, expected.margins, rtol=1e-4, atol=1e-5)
    assert mode is not None


def state():
    def old(read):
        try:
            return read()
        except RuntimeError:
            return "refused"

    older = torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32
    return [get(*place) for place in PLACES], [old(read) for read in older]


def moves():
    found = [lambda p=p: torch.set_float32_matmul_precision(p) for p in ("highest", "high", "medium")]
    found += [lambda on=on: torch._C._set_cudnn_allow_tf32(on) for on in (False, True)]
    for place in PLACES:
        values = ("none", "ieee", "tf32", *(("bf16",) if place[0] == "mkldnn" else ()))
        found += [lambda place=place, value=value: put(*place, value) for value in values]
    return found


def test_settings_are_full_inside_and_as_before_afterwards():
    chooser, possible = random.Random(0), moves()
    for _ in range(500):
        chooser.choice(possible)()
        before = state()
        with precision.everything_ieee():
            inside = state()
            assert all(get(*product) in FULL for product in PRODUCTS)
            # torch refuses where its two interfaces differ: not here, unless the user has mixed them up.
            assert "refused" not in inside[1] or "refused" in before[1]
        assert state() == before
        with pytest.raises(KeyError):
            _fail_in_full_precision()
        assert state() == before


def _fail_in_full_precision():
    with precision.full_precision(CPU):
        assert precision.is_ieee(CPU)
        raise KeyError


def test_what_follows_its_library_follows_it_afterwards():
    put("generic", "all", "tf32")
    with precision.full_precision(CPU):
        assert get("mkldnn", "matmul") == "ieee"
    put("generic", "all", "ieee")
    assert get("mkldnn", "matmul") == "ieee"


def test_a_setting_of_meanwhile_does_not_reach_weights():
    torch.set_float32_matmul_precision("high")
    with precision.full_precision(CPU):
        torch.set_float32_matmul_precision("medium")
        with precision.full_precision(CPU):
            assert precision.is_ieee(CPU)
    assert get("mkldnn", "matmul") == "bf16"


def test_a_context_that_opens_or_closes_meanwhile_is_not_taken_for_a_setting(monkeypatch):
    """Between the looks at the holders and at the setting another thread enters, or enters and leaves."""
    torch.set_float32_matmul_precision("high")
    real = precision.is_ieee

    def looked(device, leaves):
        precision.PRODUCTS.__enter__()
        found = real(device)
        if leaves:
            precision.PRODUCTS.__exit__()
        return found

    for leaves in (True, False):
        monkeypatch.setattr(precision, "is_ieee", partial(looked, leaves=leaves))
        assert precision.ieee(CPU) is precision.PRODUCTS
        monkeypatch.undo()
    precision.PRODUCTS.__exit__()
    assert get("mkldnn", "matmul") == "tf32"


def test_the_settings_are_restored_before_the_last_holder_is_gone(monkeypatch):
    torch.set_float32_matmul_precision("high")
    seen, restore = [], precision.PRODUCTS._restore
    monkeypatch.setattr(precision.PRODUCTS, "_restore", lambda: (seen.append(precision.PRODUCTS.holders), restore()))
    with precision.full_precision(CPU):
        pass
    assert seen == [1]


def test_threads_keep_full_precision_until_the_last_is_done():
    torch.set_float32_matmul_precision("high")
    wrong, stop = [], threading.Event()

    def work():
        while not stop.is_set():
            with precision.full_precision(CPU):
                wrong.extend(() if precision.is_ieee(CPU) else (1,))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    stop.wait(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert torch.get_float32_matmul_precision() == "high"
    assert get("mkldnn", "matmul") == "tf32"


@pytest.mark.parametrize(
    "kind", [lip.SOCConv2d, *(pytest.param(k, marks=pytest.mark.slow) for k in (lip.BCOPConv2d, lip.CPLConv2d))]
)
def test_compiled_weights_are_wider_where_products_are_lowered(kind):
    layer = kind(4, 4, 3, backend="reference")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    x = torch.randn(2, 4, 5, 5)
    expected = layer(x)
    seen = set()

    def backend(graph, _):
        for node in graph.graph.nodes:
            value = node.meta.get("example_value")
            if isinstance(value, torch.Tensor):
                seen.add(value.dtype)
        return graph.forward

    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    wide = {torch.float64, torch.complex128}
    torch.set_float32_matmul_precision("high")
    torch.compiler.reset()
    seen.clear()
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    assert seen & wide


@pytest.mark.parametrize("op_name", ["conv_chain", "conv_exp", "sdp_residual"])
def test_the_agreement_gate_asks_for_full_precision(op_name, monkeypatch):
    cases = list(testing.cases_of(op_name).CASES.values())[:4]
    LOWER["all libraries"]()

    def agree():
        for case in cases:
            testing.check_agreement(op_name, "reference", case, torch.float32)

    with TF32() as model:
        agree()
        assert model.rounded == 0
        monkeypatch.setattr(testing, "everything_ieee", contextlib.nullcontext)
        with pytest.raises(AssertionError, match="is off by"):
            agree()
    assert model.rounded


@contextlib.contextmanager
def another_thread_in_full_precision():
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with precision.full_precision(CPU):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    try:
        yield
    finally:
        leave.set()
        thread.join()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["AOCConv2d", "BCOPConv2d", "CayleyLinear", "CPLLinear", "SandwichLinear"])
def test_gradients_are_the_same_where_another_thread_held_full_precision_in_the_forward(name, backend):
    """It has left it when the backward runs: then products are lowered again."""
    kind = getattr(lip, name)
    layer = kind(6, 6, **({} if name.endswith("Linear") else {"kernel_size": 3}), backend=backend)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    torch.set_float32_matmul_precision("high")
    with another_thread_in_full_precision():
        assert precision.is_ieee(CPU)
        weights = layer._effective()
    with TF32() as mode:
        torch.autograd.backward([weight.sum() for weight in weights])
    assert mode.rounded == 0


def test_a_thread_that_is_inside_has_full_precision_itself():
    torch.set_float32_matmul_precision("high")
    with another_thread_in_full_precision(), precision.full_precision(CPU):
        assert precision.stays_ieee(CPU)
    assert not precision.stays_ieee(CPU)
    torch.set_float32_matmul_precision("highest")
    with another_thread_in_full_precision():
        assert precision.stays_ieee(CPU)
