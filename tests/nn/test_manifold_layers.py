"""Dense layers whose parameter is the orthogonal matrix: start, cost, bound, warning, refusals, export."""

import copy
import inspect
import math
import warnings

import pytest
import torch

import fastlip
from fastlip import nn as lip
from fastlip.nn._manifold import orthogonality_error, retracted
from fastlip.nn.base import LipschitzLayer

LAYERS = (lip.BROLinear, lip.BjorckLinear, lip.CayleyLinear, lip.LOTLinear, lip.SOCLinear)
SIZES = ((6, 6), (4, 7), (7, 4), (1, 1), (5, 1))
every_layer = pytest.mark.parametrize("cls", LAYERS)
every_size = pytest.mark.parametrize("sizes", SIZES, ids=str)


def make(cls, sizes=(6, 6), **options):
    return cls(*sizes, parametrization="manifold", **options)


def test_every_orthogonal_dense_layer_has_the_option():
    found = [value for value in vars(lip).values() if inspect.isclass(value) and issubclass(value, LipschitzLayer)]
    assert {cls for cls in found if "parametrization" in inspect.signature(cls).parameters} == {*LAYERS}
    dense = [cls for cls in found if cls.__name__.endswith("Linear") and cls is not lip.NormalizedLinear]
    assert {cls for cls in dense if cls(4, 4)._application.orthogonal} == {*LAYERS}


@every_layer
@every_size
def test_it_starts_where_the_unconstrained_layer_starts(cls, sizes):
    torch.manual_seed(5)
    plain = cls(*sizes, dtype=torch.float64)
    torch.manual_seed(5)
    layer = make(cls, sizes, dtype=torch.float64)
    torch.testing.assert_close(layer.weight, plain.weight, rtol=1e-12, atol=1e-12)
    assert [name for name, _ in layer.named_parameters()] == ["bias", "orthogonal_weight"]
    assert layer.orthogonal_weight.shape == sizes[::-1]
    assert not layer.bias.any()


@every_layer
@every_size
def test_the_parameter_is_the_weight_and_orthogonal(cls, sizes):
    layer = make(cls, sizes)
    assert layer.weight is layer.orthogonal_weight
    assert orthogonality_error(layer.weight) < 3e-7
    x = torch.randn(3, sizes[0])
    torch.testing.assert_close(layer(x), x @ layer.orthogonal_weight.T, rtol=1e-6, atol=1e-6)
    if sizes[0] <= sizes[1]:
        torch.testing.assert_close(layer(x).norm(dim=1), x.norm(dim=1))
    (layer(x) ** 3).sum().backward()
    expected = torch.einsum("bo,bi->oi", 3 * layer(x) ** 2, x)
    torch.testing.assert_close(layer.orthogonal_weight.grad, expected, rtol=1e-4, atol=1e-5)


@every_layer
def test_the_bound_is_measured_on_the_weight_as_it_is(cls):
    """A planted fault: whatever moves the matrix, the audit and the certificate see it."""
    layer = make(cls, dtype=torch.float64).eval()
    x = torch.randn(8, 6, dtype=torch.float64)
    with torch.no_grad():
        layer(x)  # fills the cache
        for factor in (0.5, 1.0 + 1e-6, 3.0):
            moved = copy.deepcopy(layer)
            moved.orthogonal_weight.mul_(factor)
            assert moved.lipschitz_bound((6,)) == pytest.approx(factor, rel=1e-10)
            assert fastlip.audit(moved, (6,)).bound >= factor
        layer.orthogonal_weight[0] += 0.7
        norm = torch.linalg.matrix_norm(layer.orthogonal_weight, 2).item()
        assert layer.lipschitz_bound((6,)) >= norm * (1 - 1e-12)
        certificate = fastlip.certify(layer, [(x, layer(x).argmax(1))])
    scores, rows = layer(x).detach(), layer.orthogonal_weight.detach()
    best = scores.argmax(1)
    distances = (rows[best][:, None] - rows).norm(dim=2)
    exact = ((scores.amax(1, keepdim=True) - scores) / distances).nan_to_num(math.inf).amin(1)
    assert (certificate.radii.double() <= exact * (1 + 1e-9)).all()


def steps(layer, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        (layer(torch.randn(16, 6)) - 1).square().mean().backward()
        optimizer.step()


def test_training_by_another_optimiser_is_noticed():
    layer = make(lip.CayleyLinear)
    with pytest.warns(UserWarning, match=r"orthogonal_weight of CayleyLinear\(6, 6\): .*fastlip\.optim\.Manifold"):
        steps(layer, torch.optim.SGD(layer.parameters(), 0.1), 10)
    assert abs(layer.eval().lipschitz_bound((6,)) - 1) > 0.01
    assert fastlip.optim.retract_(layer) > 0.01
    assert layer.lipschitz_bound((6,)) == pytest.approx(1, abs=1e-6)


def test_no_warning_for_who_retracts_or_stays_near():
    layer = make(lip.CayleyLinear)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            steps(layer, optimizer, 1)
            fastlip.optim.retract_(layer)
        layer = make(lip.CayleyLinear)
        optimizer = fastlip.optim.ManifoldOptimizer(fastlip.optim.manifold_groups(layer, lr=0.1))
        steps(layer, optimizer, 20)
        frozen = make(lip.CayleyLinear).requires_grad_(False)
        frozen.orthogonal_weight.mul_(2)
        with torch.no_grad():
            frozen(torch.randn(1, 6))


def test_few_of_the_changes_are_looked_at(monkeypatch):
    layer, looked = make(lip.LOTLinear), []
    original = torch.linalg.matrix_norm
    monkeypatch.setattr(torch.linalg, "matrix_norm", lambda *a, **k: looked.append(None) or original(*a, **k))
    steps(layer, torch.optim.SGD(layer.parameters(), 1e-9), 130)
    assert 6 <= len(looked) <= 9


@every_layer
def test_what_makes_a_matrix_orthogonal_is_refused(cls):
    with pytest.raises(ValueError, match=r"quasi_residual=True: .*allowed is False"):
        make(cls, quasi_residual=True)
    with pytest.raises(ValueError, match="parametrization='free': allowed are 'unconstrained', 'manifold'"):
        cls(4, 4, parametrization="free")
    layer = make(cls)
    with pytest.raises(ValueError, match="parametrization='unconstrained': allowed is 'manifold'"):
        layer.parametrization = "unconstrained"
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "orthogonal_weight"'):
        layer.load_state_dict(cls(6, 6).state_dict())


def test_lot_refuses_its_iteration():
    with pytest.raises(ValueError, match=r"ridge=0\.0001: .*allowed is None"):
        make(lip.LOTLinear, ridge=1e-4, steps=10)


@every_layer
def test_state_copies_devices_and_dtypes(cls):
    layer, x = make(cls, (4, 6)), torch.randn(2, 4)
    other = make(cls, (4, 6))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    with torch.device("meta"):
        empty = make(cls, (4, 6))
    empty.to_empty(device="cpu")
    torch.manual_seed(1)
    empty.reset_parameters()
    torch.manual_seed(1)
    assert torch.equal(empty.weight, make(cls, (4, 6)).weight)
    half = make(cls, (4, 6), dtype=torch.bfloat16)
    assert half.weight.dtype == torch.bfloat16
    assert half.lipschitz_bound((4,)) == pytest.approx(1, abs=0.05)
    exact = torch.linalg.matrix_norm(half.weight.double(), 2).item()
    assert half.lipschitz_bound((4,)) == pytest.approx(exact, rel=1e-6)


@every_layer
def test_fused_exported_frozen_and_compiled(cls):
    layer, x = make(cls, (4, 6)), torch.randn(3, 4)
    model = torch.nn.Sequential(layer, lip.MaxMin()).eval()
    with torch.no_grad():
        y = model(x)
        exported = fastlip.export(model, (4,))
        assert type(exported[0]) is torch.nn.Linear
        torch.testing.assert_close(exported(x), y)
        torch.testing.assert_close(fastlip.unfuse(fastlip.fuse(model))(x), y)
        fastlip.freeze(model)
        assert torch.equal(model(x), y)
    torch._dynamo.reset()
    layer.train()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_gradients_reach_the_input_twice():
    layer = make(lip.BROLinear, (4, 4), dtype=torch.float64)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))

    def output(weight, x):
        return torch.func.functional_call(layer, {"orthogonal_weight": weight}, (x,)).square()

    weight = layer.orthogonal_weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(output, (weight, x))
    assert torch.autograd.gradgradcheck(output, (weight, x))


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.3, 10.0])
@every_size
def test_the_retraction_is_the_polar_factor(noise, sizes):
    matrix = make(lip.LOTLinear, sizes, dtype=torch.float64).weight.detach()
    matrix = matrix + noise * torch.randn_like(matrix)
    U, _, Vh = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(retracted(matrix), U @ Vh, rtol=1e-9, atol=1e-9)
    assert orthogonality_error(retracted(matrix)) < 1e-13
    assert orthogonality_error(retracted(matrix.float())) < 1e-6


def test_errors_of_singular_and_infinite_matrices():
    assert orthogonality_error(torch.zeros(3, 3)) == 1
    assert math.isnan(orthogonality_error(torch.full((3, 3), math.nan)))
    assert retracted(torch.full((2, 2), math.inf)).isinf().all()
    assert orthogonality_error(retracted(torch.zeros(3, 2))) < 1e-6
