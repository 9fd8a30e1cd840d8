"""The identity that is added before a weight is made orthogonal: what it computes, and which layers refuse it."""

import inspect

import pytest
import torch
from layer_catalog import perturb, singular_values

import fastlip
from fastlip import nn as lip
from fastlip import ops
from fastlip.nn.base import LipschitzLayer
from fastlip.nn.sequences import one_dimensional

S = 0.3
CONVOLUTIONS = (
    lip.AOCConv2d,
    lip.AOLConv2d,
    lip.BCOPConv2d,
    lip.BROConv2d,
    lip.CayleyConv2d,
    lip.LOTConv2d,
    lip.SOCConv2d,
)
SEQUENCES = tuple(one_dimensional(cls) for cls in CONVOLUTIONS)
VOLUMES = (lip.AOLConv3d, lip.BROConv3d, lip.CayleyConv3d, lip.LOTConv3d)
DENSE = (lip.AOLLinear, lip.BROLinear, lip.BjorckLinear, lip.CayleyLinear, lip.LOTLinear, lip.SOCLinear)
LAYERS = [*((cls, (4, 4, 3), (4, 6, 5)) for cls in CONVOLUTIONS), *((cls, (4, 4), (4,)) for cls in DENSE)]
LAYERS += [(cls, (4, 4, 3), (4, 7)) for cls in SEQUENCES]
LAYERS += [(cls, (4, 4, 3), (4, 2, 3, 4)) for cls in VOLUMES]
every_layer = pytest.mark.parametrize(("cls", "sizes", "shape"), LAYERS, ids=[cls.__name__ for cls, *_ in LAYERS])
ORTHOGONALISED = ("raw_weight", "raw_matrix", "raw_matrices")


def weight_of(layer):
    return next(value for name, value in layer.named_parameters() if name in ORTHOGONALISED)


def make(cls):
    """A square layer."""
    return cls(4, 4) if cls.__name__.endswith("Linear") else cls(4, 4, 3)


def test_which_layers_have_the_option():
    found = [value for value in vars(lip).values() if isinstance(value, type) and issubclass(value, LipschitzLayer)]
    with_option = {cls for cls in found if "quasi_residual" in inspect.signature(cls).parameters}
    assert with_option == {*CONVOLUTIONS, *SEQUENCES, *VOLUMES, *DENSE}
    assert {cls for cls in found if "quasi_residual" in cls._fixed} == with_option
    orthogonal = [cls for cls in found if getattr(make(cls)._application, "orthogonal", False)]
    assert {*orthogonal} <= {*with_option, lip.AOCConvTranspose2d}


# Methods whose kernels at weight 0 are the identity for even sizes too.
AT_EACH_SIZE = (lip.AOLConv2d, lip.BROConv2d, lip.CayleyConv2d, lip.LOTConv2d)
WITH_TAPS = [(cls, (4, 4, taps), (4, 6, 5)) for cls in CONVOLUTIONS for taps in (1, 3)]
WITH_TAPS += [(cls, (4, 4, taps), (4, 6, 5)) for cls in AT_EACH_SIZE for taps in (2, (2, 5))]


@pytest.mark.parametrize(("cls", "sizes", "shape"), [*WITH_TAPS, *((cls, (4, 4), (4,)) for cls in DENSE)])
def test_zero_weights_give_the_identity_or_a_reflection_of_axes(cls, sizes, shape):
    options = {"dtype": torch.float64, "quasi_residual": S, **({"rank": 2} if "BRO" in cls.__name__ else {})}
    layer = cls(*sizes, **options)
    with torch.no_grad():
        weight_of(layer).zero_()
        if hasattr(layer, "raw_bases") and layer.raw_bases is not None:
            layer.raw_bases.zero_()
    x = torch.randn(2, *shape, dtype=torch.float64)
    signs = torch.ones(4, dtype=torch.float64)
    if "BRO" in cls.__name__:
        signs[:2] = -1
    torch.testing.assert_close(layer(x), x * signs.view(-1, *[1] * (x.dim() - 2)))


def test_the_matrices_are_those_of_the_sum_at_each_frequency():
    """BRONet's V = Id + gamma W / sqrt(depth), with an identity of n columns at the centre tap."""
    layer = perturb(lip.BROConv2d(4, 4, 3, rank=0.5, quasi_residual=S, dtype=torch.float64))
    V = S * layer.gamma[:, None, None, None] * layer.raw_weight
    V[0, 0, 1, 1] += 1
    V[1, 1, 1, 1] += 1
    V = ops.kernel_spectrum(V, (5, 6))
    (Q,) = layer._effective(5, 6)
    expected = torch.eye(4) - 2 * V @ torch.linalg.inv(V.mH @ V) @ V.mH
    torch.testing.assert_close(Q, expected, rtol=1e-11, atol=1e-11)
    polar = perturb(lip.LOTConv2d(4, 4, 3, groups=2, quasi_residual=S, dtype=torch.float64))
    V = S * polar.gamma[:, None, None, None] * polar.raw_weight
    V[:, :, 1, 1] += torch.eye(2).repeat(2, 1)
    (Q,) = polar._effective(5, 6)
    U, _, Vh = torch.linalg.svd(ops.kernel_spectrum(V, (5, 6)).unflatten(1, (2, 2)), full_matrices=False)
    torch.testing.assert_close(Q, (U @ Vh).flatten(1, 2), rtol=1e-10, atol=1e-10)


@every_layer
def test_layers_stay_orthogonal_after_steps(cls, sizes, shape):
    layer = cls(*sizes, quasi_residual=True, dtype=torch.float64, **exactly(cls))
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(torch.randn(3, *shape, dtype=torch.float64)) * torch.randn(1)).square().sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())
        optimizer.step()
    largest, smallest = singular_values(layer.eval(), shape)
    bound = layer.lipschitz_bound(shape)
    assert largest <= bound * (1 + 1e-12)
    assert bound < 1 + 1e-9
    if "AOL" not in cls.__name__:  # almost orthogonal
        assert smallest > 1 - 1e-9


def exactly(cls):
    return {"exponential": "spectral"} if cls in (lip.SOCConv2d, lip.SOCConv1d) else {}


@pytest.mark.parametrize("cls", CONVOLUTIONS)
def test_each_group_has_an_identity(cls):
    layer = perturb(cls(4, 4, 3, groups=2, quasi_residual=S, **exactly(cls)), 0.1).eval()
    x = torch.randn(1, 4, 6, 5)
    other = x.clone()
    other[:, :2] += 1
    assert torch.equal(layer(x)[:, 2:], layer(other)[:, 2:])
    assert not torch.equal(layer(x)[:, :2], layer(other)[:, :2])


@every_layer
def test_gamma_moves_the_function_and_has_its_gradient(cls, sizes, shape):
    layer = perturb(cls(*sizes, quasi_residual=S, dtype=torch.float64, **exactly(cls)), 0.3)
    x = torch.randn(1, *shape, dtype=torch.float64)
    gamma = layer.gamma.detach().clone()

    def output(gamma):
        return torch.func.functional_call(layer, {"gamma": gamma}, (x,))

    assert torch.autograd.gradcheck(output, (gamma.requires_grad_(),), atol=1e-6)


@every_layer
def test_the_option_is_kept_by_evaluation_state_and_export(cls, sizes, shape):
    layer = perturb(cls(*sizes, quasi_residual=S, **exactly(cls)), 0.3).eval()
    x = torch.randn(2, *shape)
    with torch.no_grad():
        y = layer(x)
        exported = fastlip.export(layer, shape)
        torch.testing.assert_close(exported(x), y, rtol=1e-4, atol=1e-5)
        layer.gamma.mul_(-3)
        assert not torch.allclose(layer(x), y)  # the cache saw the change
    other = cls(*sizes, quasi_residual=S, **exactly(cls)).eval()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert fastlip.audit(layer, shape).bound <= 1 + 1e-5
    assert "quasi_residual=0.3" in repr(layer)


@every_layer
def test_without_the_option_nothing_changes(cls, sizes, shape):
    torch.manual_seed(3)
    layer = cls(*sizes, quasi_residual=False)
    torch.manual_seed(3)
    plain = cls(*sizes)
    assert not hasattr(layer, "gamma")
    assert layer.quasi_residual == 0
    assert layer.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(one, other) for one, other in zip(layer.parameters(), plain.parameters(), strict=True))
    assert "quasi_residual" not in repr(layer)


@pytest.mark.parametrize("cls", CONVOLUTIONS)
def test_layers_without_an_identity_refuse(cls):
    with pytest.raises(ValueError, match=r"quasi_residual=True: expected as many outputs as inputs.*4 inputs, 6"):
        cls(4, 6, 3, quasi_residual=True)
    with pytest.raises(ValueError, match=r"quasi_residual=0\.5: .*stride=\(2, 2\)"):
        cls(4, 4, 3, stride=2, quasi_residual=0.5)
    for wrong in (0, 0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"quasi_residual=.*: expected False, True or a positive finite number"):
            cls(4, 4, 3, quasi_residual=wrong)
    with pytest.raises(TypeError, match="quasi_residual='yes': expected False, True or a number"):
        cls(4, 4, 3, quasi_residual="yes")


@pytest.mark.parametrize("cls", DENSE)
def test_dense_layers_without_an_identity_refuse(cls):
    with pytest.raises(ValueError, match="quasi_residual=True: expected as many outputs as inputs"):
        cls(4, 6, quasi_residual=True)
