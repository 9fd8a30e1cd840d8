"""BatchCentering and LayerCentering: their formulas, several processes, accumulation, export into biases."""

import copy

import pytest
import torch
from layer_catalog import perturb, singular_values
from torch import nn

import fastlip
from fastlip import nn as lip


def moved(layer):
    """Away from its initial values, buffers too."""
    with torch.no_grad():
        for name, buffer in layer.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
    return perturb(layer)


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (5, 3, 4, 2)])
def test_batch_centering_is_its_formula(shape):
    layer, x = lip.BatchCentering(3, momentum=0.3, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    norm = nn.BatchNorm1d(3, eps=1e-30, momentum=0.3, affine=False, dtype=torch.float64)
    with torch.no_grad():
        layer.bias.normal_()
    view = [-1] + [1] * (len(shape) - 2)
    for _ in range(2):
        mean = x.transpose(0, 1).flatten(1).mean(1)
        torch.testing.assert_close(layer(x), x - mean.view(view) + layer.bias.view(view))
        norm(x.flatten(2) if len(shape) > 2 else x)
    torch.testing.assert_close(layer.running_mean, norm.running_mean)
    before = copy.deepcopy(layer.state_dict())
    expected = x - layer.running_mean.view(view) + layer.bias.view(view)
    torch.testing.assert_close(layer.eval()(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert layer.train()(x[:0]).shape == x[:0].shape
    assert torch.equal(layer.running_mean, before["running_mean"])


def test_layer_centering_is_its_formula():
    x = torch.randn(2, 3, 4, 5)
    for dims in ((-2, -1), (-3, -2, -1), (-1,)):
        layer = perturb(lip.LayerCentering(3, dims))
        expected = x - x.mean(dims, keepdim=True) + layer.bias.view(-1, 1, 1)
        for training in (True, False):
            torch.testing.assert_close(layer.train(training)(x), expected)
    torch.testing.assert_close(lip.LayerCentering(3, -1)(x[:, :, 0, 0]).sum(1), torch.zeros(2), rtol=0, atol=1e-6)


def test_gradients():
    for layer, shape in ((lip.BatchCentering(3), (4, 3)), (lip.LayerCentering(3), (2, 3, 2, 2))):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        layer = perturb(layer.double())
        assert torch.autograd.gradcheck(layer, (x,))
        assert torch.autograd.gradgradcheck(lambda x, layer=layer: layer(x).square(), (x,))
        assert torch.autograd.gradcheck(
            lambda b, x=x, layer=layer: torch.func.functional_call(layer, {"bias": b}, (x,)), (layer.bias,)
        )


def test_singular_values():
    assert singular_values(moved(lip.BatchCentering(3)).double().eval(), (3, 2, 2)) == pytest.approx((1, 1))
    largest, smallest = singular_values(perturb(lip.LayerCentering(3)).double(), (3, 2, 2))
    assert (largest, smallest) == pytest.approx((1, 0), abs=1e-12)


@pytest.mark.parametrize("sizes", [(4, 4, 4), (5, 1, 2)])
def test_parts_of_a_batch_move_the_running_mean_as_the_batch_does(sizes):
    whole = lip.BatchCentering(3, momentum=0.25, dtype=torch.float64)
    parts = lip.BatchCentering(3, momentum=0.25, accumulate=len(sizes), dtype=torch.float64)
    for _ in range(3):
        x = torch.randn(sum(sizes), 3, 2, 2, dtype=torch.float64)
        whole(x)
        for index, part in enumerate(x.split(sizes)):
            parts(part)
            if index == 0:  # resumed within a step
                again = lip.BatchCentering(3, momentum=0.25, accumulate=len(sizes), dtype=torch.float64)
                again.load_state_dict(parts.state_dict())
                parts = again
        torch.testing.assert_close(parts.running_mean, whole.running_mean)
    assert not parts.pending.any()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: lip.BatchCentering(0), "num_features=0"),
        (lambda: lip.BatchCentering(3, momentum=0), "momentum=0"),
        (lambda: lip.BatchCentering(3, accumulate=0), "accumulate=0"),
        (lambda: lip.BatchCentering(3)(torch.zeros(2, 4)), "x: got shape"),
        (lambda: lip.BatchCentering(3)(torch.zeros(3)), "x: got shape"),
        (lambda: lip.LayerCentering(3, ()), "dim="),
        (lambda: lip.LayerCentering(3, (0, -1)), "dim="),
        (lambda: lip.LayerCentering(3)(torch.zeros(2, 3)), "expected dimensions of a sample"),
    ],
)
def test_what_is_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


CONVOLUTIONS = {
    "AOL": lambda: lip.AOLConv2d(4, 4, 3),
    "no bias": lambda: lip.AOLConv2d(4, 4, 3, bias=False),
    "Cayley": lambda: lip.CayleyConv2d(4, 4, 3),
    "Cayley, no bias": lambda: lip.CayleyConv2d(4, 4, 3, bias=False),
    "SOC": lambda: lip.SOCConv2d(4, 4, 3),
    "even": lambda: lip.AOLConv2d(4, 4, 2),
    "torch": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@torch.no_grad()
def test_export_adds_it_to_the_bias_before_it(name):
    block = lip.Chain(CONVOLUTIONS[name](), lip.BatchCentering(4), lip.MaxMin())
    dense = lip.CayleyLinear(4, 4), lip.BatchCentering(4)
    model = moved(nn.Sequential(block, lip.AdaptiveL2NormPool2d(1), nn.Flatten(), *dense)).eval()
    plain = fastlip.export(model, (4, 6, 6))
    assert len(plain[0]) == 2
    assert len(plain) == 4
    x = torch.randn(3, 4, 6, 6)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-5, atol=1e-5)
    before, after = (fastlip.audit(each, (4, 6, 6)).bound for each in (model, plain))
    assert after == pytest.approx(before, rel=1e-6)


@torch.no_grad()
def test_export_keeps_it_where_it_cannot_be_added():
    shared = lip.AOLConv2d(4, 4, 3)
    models = {
        "a layer at two places": nn.Sequential(shared, lip.BatchCentering(4), shared),
        "an activation": nn.Sequential(lip.MaxMin(), lip.BatchCentering(4)),
        "a residual layer": nn.Sequential(lip.SLLConv2d(4, 4, 3), lip.BatchCentering(4)),
        "first": nn.Sequential(lip.BatchCentering(4), lip.AOLConv2d(4, 4, 3)),
    }
    for model in models.values():
        model = moved(model).eval()
        plain, x = fastlip.export(model, (4, 6, 6)), torch.randn(2, 4, 6, 6)
        assert len(plain) == len(model)
        torch.testing.assert_close(plain(x), model(x), rtol=1e-5, atol=1e-5)
    words = moved(nn.Sequential(nn.Linear(5, 5), lip.BatchCentering(3))).eval()
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(fastlip.export(words, (3, 5))(x), words(x))


def test_a_network_with_centering_is_certified_and_fused():
    model = moved(
        nn.Sequential(
            *(lip.CayleyConv2d(4, 4, 3), lip.BatchCentering(4), lip.MaxMin(), lip.LayerCentering(4)),
            *(lip.AdaptiveL2NormPool2d(1), nn.Flatten()),
        )
    ).eval()
    x, labels = torch.randn(6, 4, 6, 6), torch.arange(6) % 4
    found = fastlip.certify(model, [(x, labels)])
    assert found.lipschitz <= 1 + 1e-5
    expected = model(x)
    torch.testing.assert_close(fastlip.fuse(model)(x), expected, rtol=1e-4, atol=1e-5)


def network():
    torch.manual_seed(0)
    layers = (lip.AOLConv2d(2, 4, 3), lip.BatchCentering(4), lip.MaxMin(), nn.Flatten(), lip.AOLLinear(64, 4))
    return nn.Sequential(*layers, lip.BatchCentering(4, accumulate=2)).double()


def batches():
    torch.manual_seed(1)
    return torch.randn(4, 8, 2, 4, 4, dtype=torch.float64)


def steps(model, parts, whole):
    """Twenty steps on a loss that is a mean over all samples."""
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    for index in range(20):
        x = parts(batches()[index % 4])
        optimizer.zero_grad()
        # DDP takes the mean over processes.
        (model(x).square().mul(torch.arange(4)).sum() * (whole / 8)).backward()
        optimizer.step()


def train_distributed(folder, sizes):
    import torch.distributed as dist

    from fastlip.training import distributed

    world = distributed.join("cpu")
    model = nn.parallel.DistributedDataParallel(network())
    steps(model, lambda x: x.split(sizes)[world.rank], world.size)
    torch.save(model.module.state_dict(), folder / f"{world.rank}.pt")
    dist.barrier()
    distributed.leave()


@pytest.mark.parametrize("sizes", [(4, 4), (5, 3)])
def test_two_processes_are_one(sizes, tmp_path):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
    from fresh_processes import outputs, run_ranks

    codes = run_ranks(train_distributed, tmp_path, sizes, folder=tmp_path)
    assert codes == [0, 0], outputs(tmp_path)
    alone = network()
    steps(alone, lambda x: x, 1)
    assert alone[1].running_mean.abs().amax() > 1e-3
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10, msg=name)
