"""Exported radii of networks that branch: those of certify, of whatever certify can certify."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from converted_networks import ResNet, UNet, convert, mlp
from torch import nn

import fastlip
from fastlip import nn as lip

IMAGE = (1, 8, 8)


class Headed(nn.Module):
    """A network of images with a dense head."""

    def __init__(self, body, features, outputs=5):
        super().__init__()
        self.body = body
        self.head = lip.AOLLinear(features, outputs)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


class Functions(nn.Module):
    """Functions between layers: joins, choices, constants, and what depends on the number of samples."""

    def __init__(self, inplace=False):
        super().__init__()
        self.layer, self.again = lip.CayleyLinear(16, 16), lip.AOLLinear(16, 16)
        self.act = nn.ReLU(inplace)
        self.offset = nn.Parameter(torch.randn(16))
        self.position = nn.Embedding(4, 4)
        self.head = lip.AOLLinear(16, 4)

    def forward(self, x):
        first = self.act(self.layer(x) + self.offset)
        second = torch.maximum(self.again(first), -0.5 * x)
        rows = torch.cat([first * 0.6, 0.8 * second], 1).view(x.shape[0], 8, 4)
        rows = rows + 0.1 * self.position(torch.arange(4)).mean(0) + torch.zeros(1, device=x.device)
        left, right = rows.reshape(x.size(0), -1).chunk(2, dim=1)
        y = torch.where(left > 0, left, 0.3 * left) - right.clamp(-1, 1) / 3
        return self.head(F.relu(self.again(self.again(y)), inplace=True))


def disturbed(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def network(name):
    torch.manual_seed(0)
    small = {"image_size": 8, "in_channels": 1}
    if name == "resnet":
        return convert(ResNet(), IMAGE, "cayley", weights="fresh")[0], IMAGE
    if name == "unet":
        return Headed(convert(UNet(), IMAGE, weights="fresh")[0], 128), IMAGE
    if name == "lip_res_net":
        return fastlip.models.lip_res_net(width=4, depth=2, features=16, dense_layers=1, **small), IMAGE
    if name == "bro_net":
        return fastlip.models.bro_net(width=8, depth=2, features=16, dense_layers=1, **small), IMAGE
    if name == "lip_next":
        return fastlip.models.lip_next(width=16, depth=2, patch=2, **small), IMAGE
    if name == "layer norms":
        return mlp(), IMAGE
    if name == "one score":
        return Headed(convert(ResNet(), IMAGE, weights="fresh")[0], 10, 1), IMAGE
    return Functions(name == "in place"), (16,)


QUICK = "unet", "layer norms", "functions", "in place"
LONG = "resnet", "lip_res_net", "bro_net", "lip_next", "one score"


def certified(model, x):
    with torch.no_grad():
        labels = fastlip.losses.labels.as_logits(model(x)).argmax(1)
    return fastlip.certify(model, [(x, labels)], eps=[])


@pytest.mark.parametrize("name", [*QUICK, *[pytest.param(name, marks=pytest.mark.slow) for name in LONG]])
def test_the_radii_are_those_of_certify(name, tmp_path):
    model, shape = network(name)
    model = disturbed(model)
    fastlip.export(model, tmp_path / "net.pt", shape, radius=True)
    net = torch.load(tmp_path / "net.pt", weights_only=False)
    for scale in (1.0, 1e4):  # where rounding takes much of a margin
        x = scale * torch.rand(17, *shape)
        found, expected = net(x.clone()), certified(model, x)
        assert (expected.radii > 0).any() or (name, scale) == ("layer norms", 1e4)
        torch.testing.assert_close(found[0], model(x.clone()), rtol=1e-5, atol=1e-5 * scale)
        torch.testing.assert_close(found[1].double(), expected.radii, rtol=2e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("name", [*QUICK, *LONG])
def test_the_errors_are_those_that_certify_follows(name, tmp_path):
    from fastlip.certification.certificates.prepared import Prepared
    from fastlip.deployment.recording import Recorder

    model, shape = network(name)
    model = disturbed(model).requires_grad_(False)
    prepared = Prepared(model, shape, "worst-case", torch.device("cpu"))
    x = 3 * torch.rand(5, *shape)
    recorder = Recorder(prepared.links, x, lambda module: module)
    logits, state = prepared.follow(x, recorder)
    steps, errors = recorder.finished(state, logits)
    root = nn.Module()
    root.layers = recorder.layers
    for tensor, value in recorder.tensors.items():
        root.register_buffer(tensor, value)
    x = 7 * torch.rand(4, *shape)
    scores, *norms = torch.fx.GraphModule(root, recorder.graph)(x.clone())
    expected, rounded = prepared.forward(0, x.clone())
    torch.testing.assert_close(scores, expected, rtol=0, atol=0)
    variables = torch.stack(norms, 1)
    for step in steps:
        variables = torch.cat((variables, step(variables)), 1)
    found = errors(variables)
    limits = found[:, 2:].unflatten(1, (-1, 2))
    largest = torch.tensor([limit for limit, *_ in recorder.limits], dtype=torch.float64)
    reach = ((largest - limits[..., 0]) / limits[..., 1]).amin(1).clamp_min(0)
    torch.testing.assert_close(found[:, 0], rounded.error + rounded.near, rtol=1e-9, atol=0)
    torch.testing.assert_close(found[:, 1], rounded.growth, rtol=1e-9, atol=0)
    torch.testing.assert_close(reach, rounded.reach, rtol=1e-9, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_files_for_other_programs_have_the_radii_too(suffix, tmp_path):
    model, path = disturbed(network("resnet")[0]), tmp_path / f"net.{suffix}"
    x = torch.rand(5, *IMAGE)
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
    fastlip.export(model, path, IMAGE, radius=True)
    for rows in (x, x[:1]):
        if suffix == "onnx":
            radius = torch.from_numpy(runtime.InferenceSession(path).run(["radius"], {"images": rows.numpy()})[0])
        else:
            radius = torch.export.load(path).module()(rows)[1]
        torch.testing.assert_close(radius.double(), certified(model, x).radii[: len(rows)], rtol=0, atol=1e-5)
        assert (radius > 0).any()


def test_no_smaller_change_changes_the_class(tmp_path):
    model = disturbed(network("functions")[0])
    fastlip.export(model, tmp_path / "net.pt", (16,), radius=True)
    net = torch.load(tmp_path / "net.pt", weights_only=False)
    x = torch.randn(32, 16, requires_grad=True)
    logits, radius = net(x)
    top = logits.topk(2).values
    (direction,) = torch.autograd.grad((top[:, 0] - top[:, 1]).sum(), x)
    step = radius.detach()[:, None] * direction / direction.norm(dim=1, keepdim=True)
    assert torch.equal(net(x - 0.999 * step)[0].argmax(1), logits.argmax(1))


def test_a_file_of_a_class_of_ones_own_needs_neither_it_nor_fastlip(tmp_path):
    fastlip.export(disturbed(network("functions")[0]), tmp_path / "net.pt", (16,), radius=True)
    script = (
        "import sys, torch; net = torch.load('net.pt', weights_only=False); net(torch.rand(3, 16));"
        "sys.exit(any(name.partition('.')[0] in ('fastlip', 'test_radius_of_branches') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 0


def test_values_that_are_not_finite_have_no_radius(tmp_path):
    fastlip.export(disturbed(network("unet")[0]), tmp_path / "net.pt", IMAGE, radius=True)
    net = torch.load(tmp_path / "net.pt", weights_only=False)
    x = torch.rand(4, *IMAGE)
    x[0, 0, 3, 3], x[1, 0, 0, 0], x[2] = torch.nan, torch.inf, 1e38
    assert net(x)[1][:3].tolist() == [0, 0, 0]
    assert net(x)[1][3] > 0
