"""``fastlip.convert``: networks of well-known shapes become 1-Lipschitz, and the report says how."""

import copy

import pytest
import torch
import torch.nn.functional as F
from converted_networks import IMAGES, NETWORKS, Function, ResNet, convert, disturb
from torch import nn

import fastlip

ALLOWED = 1 + 1e-5


@pytest.mark.parametrize("weights", ["keep", "fresh"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_becomes_1_lipschitz(name, weights):
    make, shape = NETWORKS[name]
    model = make()
    state = copy.deepcopy(model.state_dict())
    converted, report = convert(model, shape, weights=weights)
    assert report.complete, str(report)
    assert report.failures == ()
    assert report.after <= ALLOWED
    assert fastlip.audit(disturb(converted), shape).bound <= ALLOWED
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    x = torch.rand(5, *shape)
    assert converted(x).shape == model(x).shape


@pytest.mark.parametrize("name", NETWORKS)
def test_the_jacobian_has_norm_at_most_1(name):
    make, shape = NETWORKS[name]
    example = torch.rand(2, *shape, dtype=torch.float64)
    converted, _ = fastlip.convert(make().double(), example=example, quiet=True)
    disturb(converted).eval()
    x = torch.rand(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(converted, x)
    assert torch.linalg.matrix_norm(jacobian.reshape(-1, x.numel()), 2) <= ALLOWED


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_learns(name):
    make, shape = NETWORKS[name]
    converted, _ = convert(make(), shape)
    assert converted.training
    converted(torch.rand(4, *shape)).square().sum().backward()
    assert [name for name, parameter in converted.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("method", fastlip.models.METHODS)
def test_every_method_converts(method):
    converted, report = convert(ResNet(width=4), IMAGES, method)
    assert report.complete, str(report)
    assert fastlip.audit(disturb(converted), IMAGES).bound <= ALLOWED


def test_the_resnet_in_detail():
    _, report = convert(ResNet(), IMAGES)
    found = {step.path: step for step in report.steps}
    assert found["maxpool"].note == "disjoint windows of 2 instead of 3"
    assert found["layers.1.downsample.0"].after == "AOLConv2d"
    assert found["layers.1.add_1"].after == "convex mix"
    assert found["avgpool"].note == "times 2"
    assert found["fc"].after == "LOTLinear"
    text = str(report)
    assert text.splitlines()[-1].endswith("after")
    assert max(map(len, text.splitlines())) <= 100


def test_weights_are_kept():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    converted, report = convert(model, (2, 4, 4))
    assert torch.equal(converted.get_parameter("0.raw_weight"), model[0].weight)
    assert torch.equal(converted.get_parameter("0.bias"), model[0].bias)
    assert torch.equal(converted.get_parameter("3.raw_weight"), model[3].weight)
    assert [step.note for step in report.steps] == ["weights kept", "", "weights kept"]
    _, report = convert(model, (2, 4, 4), weights="fresh")
    assert [step.note for step in report.steps] == ["fresh weights", "", "fresh weights"]


@pytest.mark.parametrize(
    ("old", "shape"),
    [
        (nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 8, 8)),
        (nn.Conv2d(2, 4, 4, stride=2, padding=1), (2, 8, 8)),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2), (4, 8, 8)),
        (nn.Conv2d(2, 4, (1, 3), padding="same", padding_mode="circular"), (2, 8, 8)),
        (nn.Conv2d(2, 4, 3, padding="valid"), (2, 8, 8)),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (2, 8, 8)),
        (nn.Conv2d(2, 4, 1, stride=2, bias=False), (2, 7, 7)),
        (nn.ConvTranspose2d(4, 2, 2, stride=2), (4, 4, 4)),
        (nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1), (4, 4, 4)),
        (nn.Conv1d(2, 4, 3, stride=2, padding=1), (2, 8)),
        (nn.ConvTranspose1d(2, 4, 2, stride=2), (2, 8)),
        (nn.Conv3d(2, 4, 3, stride=(1, 2, 2), padding=1), (2, 3, 6, 5)),
        (nn.Conv3d(4, 4, (1, 2, 3), padding="same", dilation=2, groups=2, padding_mode="circular"), (4, 2, 4, 5)),
    ],
)
@pytest.mark.parametrize("method", ["aol", "cayley"])
def test_geometries(old, shape, method):
    converted, report = convert(nn.Sequential(old), shape, method)
    assert report.complete, str(report)
    x = torch.rand(3, *shape)
    assert converted(x).shape == old(x).shape


@pytest.mark.parametrize("method", fastlip.models.METHODS)
def test_convolutions_of_sequences_become_those_of_the_method(method):
    old = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(4, 4, 1))
    converted, report = convert(old, (4, 8), method)
    assert report.complete, str(report)
    name = fastlip.models.registry.TITLES[method]
    assert [step.after for step in report.steps] == [f"{name}Conv1d", "MaxMin", "ScaledAvgPool1d", f"{name}Conv1d"]
    assert report.steps[0].note.startswith("weights kept" if method in ("aol", "cayley", "lot") else "fresh")
    assert converted(torch.rand(3, 4, 8)).shape == (3, 4, 4)


@pytest.mark.parametrize(("method", "name"), [("sll", "SLL"), ("lot", "LOT"), ("soc", "AOL")])
def test_convolutions_of_volumes_become_those_of_the_method(method, name):
    pool, head = nn.AdaptiveAvgPool3d(1), nn.Linear(4, 2)
    old = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.AvgPool3d(2), pool)
    converted, report = convert(nn.Sequential(*old, nn.Flatten(), head), (1, 4, 6, 6), method)
    assert report.complete, str(report)
    after = [step.after for step in report.steps]
    assert after[:4] == [f"{name}Conv3d", "BatchCentering", "MaxMin", "ScaledAvgPool3d"]
    assert ("not SOCConv3d: it has no form for volumes" in report.steps[0].note) == (method == "soc")
    assert converted(torch.rand(3, 1, 4, 6, 6)).shape == (3, 2)


def test_the_effective_convolution_is_that_of_the_kept_weights():
    old = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    converted, _ = convert(nn.Sequential(old), (3, 9, 9))
    x = torch.rand(2, 3, 9, 9)
    weight = converted.get_submodule("0").weight
    assert torch.allclose(converted(x), F.conv2d(x, weight, old.bias, 2, 1), atol=1e-6)
    ratio = weight / old.weight
    assert torch.allclose(ratio, ratio.amax((0, 2, 3), keepdim=True).expand_as(ratio), atol=1e-5)


@pytest.mark.parametrize(
    ("old", "shape", "note"),
    [
        (nn.MaxPool2d(3, 2, 1), (2, 8, 8), "disjoint windows of 2 instead of 3"),
        (nn.MaxPool2d(3, 1, 1), (2, 8, 8), "times 0.333333"),
        (nn.AvgPool2d(3, 2, 1), (2, 8, 8), "times"),
        (nn.AvgPool1d(3, 2, 1), (2, 8), "times"),
        (nn.AdaptiveAvgPool2d(1), (2, 8, 8), "times 8"),
        (nn.AdaptiveMaxPool2d(3), (2, 8, 8), "times 0.5"),
        (nn.Upsample(scale_factor=2), (2, 4, 4), "times 0.5"),
        (nn.ReflectionPad2d(1), (2, 4, 4), "times 0.5"),
    ],
)
def test_pools_have_norm_1(old, shape, note):
    converted, report = convert(nn.Sequential(old), shape)
    (step,) = report.steps
    assert step.note.startswith(note)
    assert report.after == pytest.approx(1)
    x = torch.rand(3, *shape)
    assert converted(x).shape == old(x).shape


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: x + self.layer(x) + x,
        lambda self, x: x - self.layer(x),
        lambda self, x: torch.add(self.layer(x), x),
        lambda self, x: self.layer(x).add(x),
        lambda self, x: torch.cat([x, self.layer(x), x], 1),
        lambda self, x: torch.stack((x, self.layer(x)), dim=1).flatten(1),
        lambda self, x: 3 * self.layer(x) / 0.1 + 1,
        lambda self, x: F.dropout(F.gelu(self.layer(x)), 0.5, self.training),
        lambda self, x: self.layer(x).view(x.size(0), 2, 4).mean(dim=-1),
        lambda self, x: self.layer(x).reshape(-1, 2, 4).sum(-1),
        lambda self, x: self.layer(x).tanh().chunk(2, dim=1)[0],
        lambda self, x: self.layer(x) if x.shape[1] == 8 else x,
        lambda self, x: F.softmax(self.layer(x), dim=-1),
    ],
)
def test_functions(function):
    model = Function(function)
    converted, report = convert(model, (8,))
    assert report.complete, str(report)
    assert fastlip.audit(disturb(converted), (8,)).bound <= ALLOWED
    x = torch.rand(3, 8)
    assert converted.eval()(x).shape == model.eval()(x).shape


def test_a_mixture_is_learnt_and_starts_at_one_half():
    converted, _ = convert(Function(lambda self, x: x + self.layer(x)), (8,))
    x = torch.rand(3, 8)
    layer, logit = converted.get_submodule("layer"), converted.get_parameter("add_share")
    assert torch.allclose(converted(x), (x + layer(x)) / 2)
    with torch.no_grad():
        logit.fill_(1.5)
    share = logit.sigmoid()
    assert torch.allclose(converted(x), share * x + (1 - share) * layer(x))


def test_activations_after_dense_layers_act_on_the_last_dimension():
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
    converted, report = convert(model, (5, 4))
    assert report.complete
    assert converted.get_submodule("1").dim == -1


@pytest.mark.parametrize(
    ("head", "kind"), [("orthogonal", "LOTLinear"), ("unit_rows", "NormalizedLinear"), ("method", "AOLLinear")]
)
def test_heads(head, kind):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
    converted, report = convert(model, (6,), head=head)
    assert [step.after for step in report.steps] == ["AOLLinear", "MaxMin", kind]
    assert (report.after <= ALLOWED) == (head != "unit_rows") or report.after <= 2
    converted(torch.rand(2, 6))


def test_a_converted_model_converts_to_itself():
    once, _ = convert(ResNet(), IMAGES)
    twice, report = convert(once, IMAGES)
    assert report.complete
    x = torch.rand(2, *IMAGES)
    assert [type(module).__name__ for module in once.modules()][1:4] == [
        type(module).__name__ for module in twice.modules()
    ][1:4]
    assert twice.eval()(x).shape == (2, 10)


def test_a_bare_layer_and_one_sample():
    converted, report = fastlip.convert(nn.Linear(4, 2), example=torch.rand(1, 4), quiet=True)
    assert report.complete, str(report)
    assert converted(torch.rand(1, 4)).shape == (1, 2)


def test_the_report_is_printed(capsys):
    _, report = fastlip.convert(nn.Sequential(nn.Linear(4, 2)), example=torch.rand(2, 4))
    assert capsys.readouterr().out == f"{report}\n"
    assert report.to_dict()["steps"][0]["before"] == "Linear"


def test_a_converted_model_is_saved_copied_and_compiled(tmp_path):
    converted, _ = convert(ResNet(), IMAGES)
    other, _ = convert(ResNet(), IMAGES)
    disturb(converted).eval()
    x = torch.rand(3, *IMAGES)
    other.load_state_dict(converted.state_dict())
    assert torch.allclose(other.eval()(x), converted(x))
    assert torch.equal(copy.deepcopy(converted)(x), converted(x))
    torch.save(converted, tmp_path / "model.pt")
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(x), converted(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_converted_networks_are_exported(name):
    make, shape = NETWORKS[name]
    model, _ = convert(make(), shape)
    x = torch.rand(3, *shape)
    model(x)
    exported = fastlip.export(model.eval(), shape)
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


def test_batch_centering_is_a_translation_and_follows_the_mean():
    converted, _ = convert(nn.Sequential(nn.BatchNorm2d(3)), (3, 4, 4))
    x = torch.rand(64, 3, 4, 4) + 5
    for _ in range(200):
        y = converted(x)
    assert y.mean((0, 2, 3)).abs().max() < 1e-5
    assert torch.allclose(converted.eval()(x), y, atol=1e-4)


def test_weights_that_would_lose_the_signal_are_not_kept():
    # AOL's rescaling shrinks random kernels: six of them would keep 0.25^6 of a random input.
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(6)))
    converted, report = convert(model, (16, 6, 6))
    assert report.complete
    assert {step.note for step in report.steps} == {"fresh weights: the model's would keep 25% of the norm"}
    assert report.after == pytest.approx(1, abs=1e-4)
    x = torch.rand(4, 16, 6, 6)
    assert (converted(x) - converted(0 * x)).norm() > 0.9 * x.norm()
    _, report = convert(model, (16, 6, 6), "lot")
    assert {step.note for step in report.steps} == {"weights kept"}


def test_a_normalised_model_has_no_bound_that_depends_on_the_batch():
    converted, _ = convert(ResNet(), IMAGES)
    disturb(converted).eval()
    x = torch.rand(4, *IMAGES)
    assert torch.allclose(converted(x)[:1], converted(x[:1]), atol=1e-5)


class Named(nn.Module):
    """Its attributes have the names that a graph gives to calls."""

    def __init__(self):
        super().__init__()
        self.layer, self.relu_1 = nn.Linear(4, 4), nn.Linear(4, 4)

    def relu(self, x):
        return F.relu(x)

    def forward(self, x):
        return self.relu(self.relu_1(self.relu(self.layer(x))))


def test_names_that_a_module_has_are_not_taken():
    model = nn.Sequential(Named(), Named())
    converted, report = convert(model, (4,))
    assert report.complete, str(report)
    assert sum(type(module).__name__ == "MaxMin" for module in converted.modules()) == 4
    assert converted(torch.rand(2, 4)).shape == (2, 4)


def test_frozen_parameters_stay_frozen():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    net[0].weight.requires_grad_(False)
    net[3].bias.requires_grad_(False)
    for method in ("aol", "cayley", "lot"):
        model, _ = convert(net, (1, 8, 8), method)
        convolution, head = model.get_submodule("0"), model.get_submodule("3")
        assert not convolution.raw_weight.requires_grad
        assert convolution.bias.requires_grad
        assert head.raw_weight.requires_grad
        assert not head.bias.requires_grad
        fresh, _ = convert(net, (1, 8, 8), method, weights="fresh")
        assert all(parameter.requires_grad for parameter in fresh.parameters())
