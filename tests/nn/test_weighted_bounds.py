"""Lipschitz constants in a weighted norm of the inputs: the theorem, the audit, and where weights set the norm."""

import pytest
import torch
from layer_catalog import automatic, jacobians, layers, name_of, perturb
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.certification import InputNorm

WIDE = torch.logspace(-3, 3, 6)
DENSE, CONVOLUTIONS = automatic(layers("Linear")), automatic(layers("Conv2d"))


def largest(matrices):
    return torch.linalg.svdvals(matrices).max().item()


def check_theorem(layer, shape, weights):
    torch.manual_seed(0)
    model = perturb(nn.Sequential(lip.InputWeights(weights), layer)).double().eval()
    found = fastlip.audit(model, shape)
    assert found.norm.name == "weighted l2"
    assert found.bound <= 1 + 1e-5
    points = torch.randn(2, *shape, dtype=torch.float64) / weights
    matrices = jacobians(model, points)
    assert largest(matrices / found.norm.weights.expand(shape).reshape(-1)) <= found.bound * (1 + 1e-9)
    # In L2 norm the same network has a far larger constant, and the bound for it holds as well.
    assert found.bound < largest(matrices) <= found.l2_bound * (1 + 1e-9)
    x, z = (torch.randn(200, *shape, dtype=torch.float64) / weights for _ in range(2))
    moved = (model(x) - model(z)).flatten(1).norm(dim=1)
    assert (moved <= found.bound * found.norm.length(x - z) * (1 + 1e-9)).all()


@pytest.mark.parametrize("item", DENSE, ids=name_of)
def test_the_theorem_for_dense_layers(item):
    check_theorem(item[0](6, 5, **item[1]), (6,), WIDE)


@pytest.mark.parametrize("item", CONVOLUTIONS, ids=name_of)
def test_the_theorem_for_convolutions_with_weights_of_channels(item):
    check_theorem(item[0](3, 4, 3, **item[1]), (3, 4, 4), torch.tensor([0.01, 1.0, 50.0])[:, None, None])


def test_the_audit_is_the_norm_of_the_jacobian_over_the_weights():
    torch.manual_seed(0)
    model = nn.Sequential(lip.InputWeights(WIDE), nn.Linear(6, 5)).double().eval()
    jacobian = model[1].weight * model[0].weights
    found = fastlip.audit(model, (6,))
    assert found.bound == pytest.approx(largest(jacobian / model[0].weights), rel=1e-12)
    alone = fastlip.audit(nn.Sequential(model[0]), (6,))
    assert alone.bound == pytest.approx(1, rel=1e-12)
    assert alone.l2_bound == pytest.approx(largest(model[0].weights.diag()), rel=1e-12)
    plain = fastlip.audit(model, (6,), norm="l2")
    assert (plain.norm.name, plain.layers[0].how) == ("l2", "largest weight")
    assert plain.bound == pytest.approx(found.bound * 1000, rel=1e-6)
    assert plain.l2_bound == plain.bound
    with pytest.raises(ValueError, match="norm='linf': allowed are 'auto', 'l2'"):
        fastlip.audit(model, (6,), norm="linf")


def test_weights_that_are_not_first_are_a_diagonal_matrix():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), lip.InputWeights(WIDE)).double().eval()
    found = fastlip.audit(model, (6,))
    assert found.norm.name == "l2"
    assert found.bound == pytest.approx(largest(model[0].weight) * 1000, rel=1e-6)
    assert largest(jacobians(model, torch.zeros(1, 6).double())) <= found.bound
    twice = fastlip.audit(nn.Sequential(lip.InputWeights(WIDE), lip.InputWeights(2.0)), (6,))
    assert twice.bound == pytest.approx(2, rel=1e-12)
    assert torch.equal(twice.norm.weights, WIDE.double())


class Forward(nn.Module):
    """A forward of its own around weighted layers."""

    def __init__(self, forward):
        super().__init__()
        self.weights, self.own = lip.InputWeights(torch.logspace(-1, 1, 12)), forward
        self.g, self.h = lip.CayleyLinear(12, 4), lip.CayleyLinear(12, 4)

    def forward(self, x):
        return self.own(self, x)


def sequence(*before):
    return nn.Sequential(*before, lip.InputWeights(torch.logspace(-1, 1, 12)), lip.CayleyLinear(12, 4))


def compiled():
    torch.compiler.reset()  # with nothing left of other tests: the whole model is one graph
    return torch.compile(sequence(nn.Flatten()), backend="eager")


FIRST = {
    "nested": lambda: nn.Sequential(nn.Sequential(sequence(nn.Flatten()))),
    "after flatten": lambda: sequence(nn.Flatten()),
    "after several": lambda: sequence(nn.Identity(), nn.Flatten(2), nn.Dropout(0.5), nn.Flatten()),
    "compiled": compiled,
    "parallel": lambda: nn.DataParallel(sequence(nn.Flatten())),
    "fused": lambda: fastlip.fuse(sequence(nn.Flatten())),
    "exported": lambda: fastlip.export(sequence(nn.Flatten()), (3, 2, 2)),
    "a forward": lambda: Forward(lambda m, x: m.g(m.weights(x.flatten(1)))),
    "a view": lambda: Forward(lambda m, x: m.g(m.weights(x.view(x.size(0), -1)))),
    "a branch after it": lambda: Forward(lambda m, x: (lambda y: m.g(y) + m.h(y))(m.weights(torch.flatten(x, 1)))),
}
ELSEWHERE = {
    "after a layer": lambda: sequence(nn.Flatten(), lip.CayleyLinear(12, 12)),
    "after an activation": lambda: sequence(nn.Flatten(), nn.ReLU()),
    "after a channel shuffle": lambda: sequence(lip.PixelUnshuffle(2), nn.Flatten()),
    "after a transpose": lambda: Forward(lambda m, x: m.g(m.weights(x.transpose(1, 2).flatten(1)))),
    "after a scale": lambda: Forward(lambda m, x: m.g(m.weights(0.5 * x.flatten(1)))),
    "in one branch": lambda: Forward(lambda m, x: m.g(m.weights(x.flatten(1))) + m.h(x.flatten(1))),
    "in no place": lambda: Forward(lambda m, x: m.g(x.flatten(1))),
}


@pytest.mark.parametrize("name", [*FIRST, *ELSEWHERE])
def test_where_weights_set_the_norm(name):
    torch.manual_seed(0)
    model = (FIRST | ELSEWHERE)[name]().double().eval()
    found = fastlip.audit(model, (3, 2, 2))
    x = torch.randn(20, 3, 2, 2, dtype=torch.float64)
    batch = x, torch.zeros(20, dtype=torch.long)
    attacked = fastlip.attack(model, [batch], [0.1], steps=1, restarts=1, bounds=None)
    assert (found.norm.name == "weighted l2") == (name in FIRST)
    assert fastlip.certify(model, [batch]).norm == attacked.norm == found.norm
    matrices = jacobians(model, x[:3])
    if name in FIRST:
        assert found.norm.weights.numel() == 12
        matrices = matrices / found.norm.weights.reshape(-1)
        assert found.bound <= 1.5 or "branch" in name
    assert largest(matrices) <= found.bound * (1 + 1e-9)


def test_weights_are_broadcast_to_the_shape_of_the_inputs():
    """One weight for each row, or for all: a sample is flattened before they are applied."""
    for given, expected in ((torch.tensor([[2.0], [3.0]]), [[2.0], [3.0]]), (4.0, 4.0)):
        model = nn.Sequential(lip.InputWeights(given), nn.Flatten(), nn.Linear(6, 2)).eval()
        assert fastlip.audit(model, (2, 3)).norm.weights.tolist() == expected
    model = nn.Sequential(nn.Flatten(), lip.InputWeights([2.0]), nn.Linear(6, 2)).eval()
    assert fastlip.audit(model, (2, 3)).norm == InputNorm((2, 3), torch.tensor(2.0).double())


def test_touched_weights_are_not_understood():
    model = sequence().eval()
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match="does not understand 0 "):
        fastlip.audit(model, (12,))
    with pytest.raises(ValueError, match=r"norm='auto': the model has InputWeights, and 0 \(InputWeights\) hides"):
        fastlip.attack(model, [(torch.zeros(1, 12), torch.zeros(1, dtype=torch.long))], bounds=None)


def test_an_inverse_needs_the_constant_in_l2_norm():
    """A map into its own space contracts only if both sides are measured alike."""
    f = nn.Sequential(lip.InputWeights([3.0, 1.0]), lip.CayleyLinear(2, 2), lip.Scale(0.9)).eval()
    assert fastlip.audit(f, (2,)).bound < 1
    with pytest.raises(ValueError, match=r"lipschitz=2\.(69999|7)"):
        fastlip.invert_residual(f, torch.ones(1, 2))
