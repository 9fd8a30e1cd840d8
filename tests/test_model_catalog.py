"""Networks by name: BRONet, LiResNet, and the twins of torch's layers."""

import inspect
import math
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

import fastlip
from fastlip import models
from fastlip import nn as lip
from fastlip.models import literals
from fastlip.models.catalog import MODELS
from fastlip.nn.base import LipschitzLayer
from fastlip.training.literals import Network

TINY = {"width": 8, "depth": 2, "features": 16, "dense_layers": 2}
NETWORKS = [("bro_net", {}), ("bro_net", {"quasi_residual": False, "centering": False, "rank": 2})]
NETWORKS += [("lip_res_net", {"method": method}) for method in ("aoc", "aol", "bcop", "bro", "cayley", "lot", "soc")]
NETWORKS += [("lip_res_net", {"method": "sll", "quasi_residual": False})]
every_network = pytest.mark.parametrize(("name", "options"), NETWORKS, ids=str)


def build(name, options, image_size=9):
    torch.manual_seed(0)
    return models.create_model(
        name, size="XS", num_classes=5, image_size=image_size, in_channels=2, **TINY, **options
    )


def bound_of_body(model):
    return math.prod(row.bound for row in fastlip.audit(model, model.input_shape).layers[:-1])


def trained(model, steps=2):
    """The network after some steps, in evaluation, and its images."""
    images, labels = torch.rand(10, *model.input_shape), torch.arange(10) % 5
    optimizer = torch.optim.NAdam(model.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        scores = model.train()(images)
        fastlip.losses.EMMA(0.3)(scores, labels, fastlip.losses.class_slopes(model)).backward()
        missing = [name for name, value in model.named_parameters() if value.grad is None]
        assert not missing
        optimizer.step()
    return model.eval(), images


def test_names_are_those_of_the_functions():
    assert models.list_models() == sorted(models.list_models())
    assert models.list_models("*bro*") == ["bro_net", "plain_bro_net"]
    assert models.list_models("sll*") == ["sll_net"]
    assert models.list_models("none") == []
    assert tuple(models.list_models()) == get_args(literals.ModelName)
    assert (*models.list_models(), "published_conv_net") == get_args(Network)
    for name, model in MODELS.items():
        assert getattr(models, name) is model.build
        arguments = inspect.signature(model.build).parameters
        assert {"size", "num_classes", "image_size", "in_channels", "width", "backend", *model.fields} <= {*arguments}


def test_every_module_with_a_model_is_found():
    sources = [path.read_text() for path in Path(models.__file__).parent.glob("*.py")]
    assert sum(len(re.findall(r"^MODEL = ", text, re.M)) for text in sources) == len(MODELS)


@every_network
def test_networks_are_bounded_certified_and_exported(name, options):
    model, images = trained(build(name, options))
    assert bound_of_body(model) <= 1 + 1e-5
    with torch.no_grad():
        scores = model(images)
        exported = fastlip.export(model, model.input_shape)
        assert not any(isinstance(module, (LipschitzLayer, lip.BatchCentering)) for module in exported.modules())
        torch.testing.assert_close(exported(images), scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fastlip.unfuse(model)(images), scores, rtol=1e-4, atol=1e-5)
    certificate = fastlip.certify(fastlip.fuse(model), [(images, scores.argmax(1))], dtype=torch.float64)
    rows = model.head.weight.double()
    gaps = scores.double().amax(1, keepdim=True) - scores.double()
    distances = (rows[scores.argmax(1)][:, None] - rows).norm(dim=2)
    exact = (gaps / distances).nan_to_num(math.inf).amin(1) / bound_of_body(model)
    torch.testing.assert_close(certificate.radii, exact, rtol=1e-3, atol=1e-5)
    assert model.margin_slope >= distances.max()


@every_network
def test_the_body_keeps_distances_in_check(name, options):
    """Pairs of images, near and far: no difference of features exceeds that of the images."""
    body = trained(build(name, options))[0].double()[:-1]
    images = torch.rand(2, 40, 2, 9, 9).double()
    for scale in (1e-3, 1.0, 30.0):
        one, other = images[0], images[0] + scale * (images[1] - images[0])
        with torch.no_grad():
            moved = (body(one) - body(other)).flatten(1).norm(dim=1)
        assert (moved <= (one - other).flatten(1).norm(dim=1) * (1 + 1e-9)).all()


@pytest.mark.parametrize("image_size", [1, 7, 8, 28, 33])
def test_any_image_size(image_size):
    model = build("bro_net", {}, image_size).eval()
    assert model(torch.rand(2, *model.input_shape)).shape == (2, 5)
    assert bound_of_body(model) <= 1 + 1e-5


def test_quasi_residual_networks_have_the_published_factors():
    model = models.bro_net("XS", width=8, depth=4, features=16, dense_layers=9, image_size=8)
    assert [layer.quasi_residual for layer in model.blocks[::3]] == [0.5] * 4
    assert [round(layer.quasi_residual, 6) for layer in model.dense[::2]] == [round(1 / 3, 6)] * 9
    assert [type(layer).__name__ for layer in model.blocks[:3]] == ["BROConv2d", "BatchCentering", "MaxMin"]
    assert model.blocks[0].bias is None
    assert model.blocks[0].raw_weight.shape == (8, 4, 3, 3)
    plain = models.bro_net("XS", image_size=8, quasi_residual=False, centering=False, **TINY)
    assert not plain.blocks[0].quasi_residual
    assert not hasattr(plain.blocks[0], "gamma")
    assert plain.blocks[0].bias is not None


@pytest.mark.parametrize(("name", "millions"), [("bro_net", 53.15), ("lip_res_net", 82.94)])
def test_sizes_are_the_published_ones(name, millions):
    """LiResNet has 83 M parameters in the literature; BRONet 68 M with square factors in its dense layers."""
    with torch.device("meta"):
        model = models.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert (model.blocks[0].in_channels, len(model.blocks), len(model.dense)) == (512, 36, 16)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bro_net", {}),
        ("lip_res_net", {"padding_mode": "circular"}),
        ("lip_conv_net", {"method": "cayley"}),
        ("lip_conv_net", {"method": "sll"}),
    ],
    ids=str,
)
def test_twins_have_the_same_shapes_and_no_constraint(name, options):
    sizes = TINY if name != "lip_conv_net" else {"width": 8}
    arguments = {"num_classes": 5, "image_size": 9, "in_channels": 2, **sizes, **options}
    model = models.create_model(name, **arguments)
    twin = models.create_model(f"plain_{name}", **arguments)
    assert not any(isinstance(module, LipschitzLayer) for module in twin.modules())
    assert len([m for m in twin.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]) == len(
        [m for m in model.modules() if isinstance(m, LipschitzLayer)]
    )
    x = torch.rand(3, 2, 9, 9)
    shapes = []
    for network in (model.eval(), twin.eval()):
        y, found = x, []
        for part in network:
            y = part(y)
            found.append(y.shape)
        shapes.append(found)
    assert shapes[0] == shapes[1]
    twin.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert twin.margin_slope == math.inf
    assert twin.input_shape == (2, 9, 9)
    audit = fastlip.audit(twin.eval(), (2, 9, 9))
    certificate = fastlip.certify(twin, [(x, twin(x).argmax(1))])
    assert certificate.lipschitz == pytest.approx(audit.bound, rel=1e-3)


def test_a_twin_of_one_layer():
    layer = lip.CayleyConv2d(4, 6, 3, stride=2, dilation=1, groups=2, bias=False, dtype=torch.float64)
    twin = models.plain_twin(layer)
    assert (type(twin), twin.groups, twin.stride, twin.bias, twin.weight.dtype) == (
        nn.Conv2d,
        2,
        (2, 2),
        None,
        torch.float64,
    )
    assert models.plain_twin(lip.BROConv2d(4, 4, 4, stride=4))(torch.rand(1, 4, 9, 5)).shape == (1, 4, 3, 2)
    circular = models.plain_twin(lip.BROConv2d(4, 4, 2))
    assert circular(torch.rand(1, 4, 5, 5)).shape == (1, 4, 5, 5)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        (
            "resnet",
            {},
            "name='resnet': allowed are 'bro_net', 'lip_conv_net', 'lip_next', 'lip_res_net', 'plain_bro_net'",
        ),
        ("plain_sll_net", {}, "name='plain_sll_net': allowed are"),
        ("bro_net", {"size": "XXL"}, "size='XXL': allowed are 'XS', 'S', 'M', 'L'"),
        ("bro_net", {"num_classes": 1}, "num_classes=1: expected at least 2"),
        ("bro_net", {"width": 0}, "width=0: expected at least 1"),
        ("bro_net", {"rank": 0.0}, r"rank=0\.0: expected"),
        ("bro_net", {"backend": "cuda"}, "backend='cuda': allowed are"),
        ("bro_net", {"padding_mode": "reflect"}, "padding_mode='reflect': allowed are"),
        ("lip_res_net", {"method": "sll"}, "method='sll': allowed with quasi_residual=True are 'aoc', 'aol'"),
        ("lip_res_net", {"method": "eco"}, "method='eco': allowed are"),
        ("lip_res_net", {"image_size": 0}, "image_size=0: expected at least 1"),
    ],
)
def test_wrong_arguments_are_named(name, options, text):
    with pytest.raises(ValueError, match=text):
        models.create_model(name, **options)
