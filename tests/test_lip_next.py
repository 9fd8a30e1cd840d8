"""LipNeXt: its formula, exact norms, bounds, export, twins, sizes and refusals."""

import math

import pytest
import torch
from torch import nn

import fastlip
from fastlip import models
from fastlip import nn as lip
from fastlip.models.registry import owners_of
from fastlip.nn.base import LipschitzLayer
from fastlip.optim import ManifoldOptimizer, manifold_groups, orthogonality_errors

OPTIONS = {"num_classes": 5, "image_size": 9, "in_channels": 2, "width": 8, "depth": 3}
FORMS = [{}, {"patch": 2}, {"patch": 3, "shift": 0.25}, {"width": 9, "patch": 4}]
FORMS += [
    {"method": method, "parametrization": "unconstrained"} for method in ("bcop", "bro", "cayley", "lot", "soc")
]
every_form = pytest.mark.parametrize("form", FORMS, ids=str)


def build(form=None, dtype=torch.float64):
    torch.manual_seed(0)
    return models.lip_next("XS", **{**OPTIONS, **(form or {})}).to(dtype)


def moved(form=None, dtype=torch.float64, steps=3):
    """The network after some steps, in evaluation, and images."""
    model, x = build(form, dtype), torch.rand(10, 2, 9, 9, dtype=dtype)
    on_manifold = (form or {}).get("parametrization") != "unconstrained"
    adam = torch.optim.Adam
    optimizer = ManifoldOptimizer(manifold_groups(model, lr=0.05)) if on_manifold else adam(model.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(10) % 5).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    if on_manifold:
        optimizer.retract()
    return model.eval(), x


@pytest.mark.parametrize("tied", [False, True])
def test_a_block_is_the_formula(tied):
    """z = act(M Rᵀ S(R (x + p)) + b), with the shifts by indices."""
    model, _ = moved()
    block = model.blocks[1]
    position, R, _, Q, _ = block
    bias, R, Q = Q.module.bias, R.module.weight, Q.module.weight
    if tied:  # the paper's M and R
        M = Q @ R
        assert (M.T @ M - torch.eye(8)).abs().max() < 1e-12
        Q = M @ R.T
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    y = torch.einsum("oc,nchw->nohw", R, x + position.bias)
    k = 1  # an eighth of 8 channels
    rolls = [(-1, 2), (1, 2), (-1, 3), (1, 3)]
    parts = [y[:, i * k : (i + 1) * k].roll(step, dim) for i, (step, dim) in enumerate(rolls)]
    y = torch.cat((*parts, y[:, 4 * k :]), 1)
    z = torch.einsum("oc,nchw->nohw", Q, y) + bias[:, None, None]
    torch.testing.assert_close(block(x), torch.cat((z[:, :4].abs(), z[:, 4:]), 1))


@every_form
def test_norms_are_kept_exactly(form):
    """Without biases a block keeps the norm of every image, also after training; with them its Jacobian does."""
    model, _ = moved(form)
    block = model.blocks[0]
    width = block[1].module.in_features
    points = torch.randn(3, width, 4, 4, dtype=torch.float64)
    block[0] = nn.Identity()  # for another size of images
    jacobian = torch.autograd.functional.jacobian(lambda one: block(one[None])[0], points[0]).flatten(3).flatten(0, 2)
    values = torch.linalg.svdvals(jacobian)
    assert values.min() > 1 - 1e-9
    assert values.max() < 1 + 1e-9
    with torch.no_grad():
        block[3].module.bias.zero_()
        torch.testing.assert_close(block(points).flatten(1).norm(dim=1), points.flatten(1).norm(dim=1))


def test_a_fresh_body_keeps_the_norms_of_images():
    model, x = build(), torch.rand(4, 2, 9, 9, dtype=torch.float64)
    norms = x.flatten(1).norm(dim=1)
    moved = model.blocks(model.stem(x))
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), norms)
    torch.testing.assert_close(model.pool(moved).norm(dim=1), norms)


@every_form
def test_bounded_certified_exported_and_fused(form):
    model, x = moved(form, torch.float32)
    audit = fastlip.audit(model, model.input_shape)
    body = math.prod(row.bound for row in audit.layers[:-1])
    assert body <= 1 + 1e-5
    with torch.no_grad():
        scores = model(x)
        exported = fastlip.export(model, model.input_shape)
        assert not any(isinstance(module, LipschitzLayer) for module in exported.modules())
        torch.testing.assert_close(exported(x), scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fastlip.fuse(model)(x), scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fastlip.unfuse(model)(x), scores, rtol=1e-4, atol=1e-5)
    certificate = fastlip.certify(model, [(x, scores.argmax(1))], dtype=torch.float64)
    rows = model.head.weight.double()
    gaps = scores.double().amax(1, keepdim=True) - scores.double()
    distances = (rows[scores.argmax(1)][:, None] - rows).norm(dim=2)
    exact = (gaps / distances).nan_to_num(math.inf).amin(1) / body
    torch.testing.assert_close(certificate.radii, exact, rtol=1e-3, atol=1e-5)
    assert model.margin_slope >= distances.max()


def test_attacks_do_not_beat_certificates():
    model, x = moved(None, torch.float32, steps=10)
    labels = model(x).argmax(1)
    certificate = fastlip.certify(model, [(x, labels)])
    eps = float(certificate.radii.median())
    found = fastlip.attack(model, [(x, labels)], [eps], steps=20)
    assert found.robust_accuracy[eps] >= (certificate.radii > eps).float().mean()


def test_a_matrix_off_the_manifold_is_in_the_audit():
    model, _ = moved()
    with torch.no_grad():
        model.blocks[1][1].module.orthogonal_weight.mul_(1.3)
    body = math.prod(row.bound for row in fastlip.audit(model, model.input_shape).layers[:-1])
    assert body == pytest.approx(1.3, rel=1e-6)
    assert max(orthogonality_errors(model).values()) == pytest.approx(0.69)


def test_activations_keep_channels_last():
    model, x = build(), torch.rand(2, 2, 9, 9, dtype=torch.float64)
    y = model.stem(x)
    for module in (module for block in model.blocks for module in block):
        y = module(y)
        assert y.is_contiguous(memory_format=torch.channels_last), module


def test_autocast_and_meta_devices():
    model, x = moved(None, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x).float(), model(x.clone()).float())
        assert fastlip.audit(model, model.input_shape).bound < 1.5
    with torch.device("meta"):
        assert models.lip_next("XS")(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("size", "depth", "millions"), [("M", None, 67), ("L", None, 269), ("XL", None, 1074), ("XL", 64, 2148)]
)
def test_sizes_are_the_published_ones(size, depth, millions):
    """64 M, 256 M, 1 B and 2 B in the paper's tables."""
    with torch.device("meta"):
        model = models.lip_next(size, depth=depth)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=1)


def test_the_twin_has_the_same_shapes_and_no_constraint():
    model = models.create_model("lip_next", **OPTIONS)
    twin = models.create_model("plain_lip_next", **OPTIONS)
    assert not any(isinstance(module, LipschitzLayer) for module in twin.modules())
    x = torch.rand(3, 2, 9, 9)
    for one, other in zip(model, twin, strict=True):
        shapes = one(x).shape, other(x).shape
        x = other(x)
        assert shapes[0] == shapes[1]
    assert twin.margin_slope == math.inf
    twin(torch.rand(2, 2, 9, 9)).sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())


def test_patches_follow_the_size_of_images():
    found = [
        models.lip_next("XS", image_size=side)(torch.rand(1, 3, side, side)).shape for side in (1, 8, 16, 17, 64)
    ]
    assert found == [(1, 10)] * 5
    sides = {side: models.lip_next("XS", image_size=side).blocks[0][0].bias.shape[-1] for side in (8, 16, 17, 64)}
    assert sides == {8: 8, 16: 16, 17: 9, 64: 16}


def test_methods_are_those_with_orthogonal_dense_layers():
    assert owners_of("lip_next") == ("bcop", "bro", "cayley", "lot", "soc")
    for name in owners_of("lip_next"):
        assert build({"method": name}).blocks[0][1].module.parametrization == "manifold"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": "XXXL"}, "size='XXXL': allowed are 'XS', 'S', 'M', 'L', 'XL'"),
        ({"width": 3}, "width=3: expected at least 4"),
        ({"depth": 0}, "depth=0: expected at least 1"),
        ({"patch": 0}, "patch=0: expected at least 1"),
        ({"shift": 0.3}, r"shift=0\.3: expected a fraction above 0 and at most 1/4"),
        ({"shift": 0.0}, r"shift=0\.0: expected a fraction"),
        ({"num_classes": 1}, "num_classes=1: expected at least 2"),
        ({"image_size": 0}, "image_size=0: expected at least 1"),
        ({"method": "aol"}, "method='aol': allowed are 'bcop', 'bro', 'cayley', 'lot', 'soc'"),
        ({"parametrization": "free"}, "parametrization='free': allowed are"),
        ({"backend": "gpu"}, "backend='gpu': allowed are"),
    ],
)
def test_wrong_arguments_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        models.lip_next(**options)


def test_per_pixel_takes_a_module():
    with pytest.raises(TypeError, match="module: got int, expected"):
        lip.PerPixel(3)
    one = lip.PerPixel(lip.CayleyLinear(2, 3))
    x = torch.rand(2, 5, 4)
    torch.testing.assert_close(one(x), one(x[None])[0])
    with pytest.raises(ValueError, match=r"expected \(\*, 2\)"):
        one(torch.rand(3, 5, 4))
