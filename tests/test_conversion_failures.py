"""What ``fastlip.convert`` cannot convert, and mistakes in its arguments, are named."""

import pytest
import torch
from converted_networks import Function, Transformer, convert, squeezing
from torch import nn

import fastlip


class Gate(nn.Module):
    def forward(self, x):
        return x * x.sigmoid()


class Decides(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("module", "shape", "path", "kind", "why"),
    [
        (Gate(), (4,), "1.mul", "mul", "product of values"),
        (Decides(), (4,), "1", "Decides", "cannot be traced"),
        (nn.ConvTranspose3d(1, 2, 3), (1, 4, 4, 4), "1", "ConvTranspose3d", "there is no 1-Lipschitz layer"),
        (nn.LSTM(4, 4), (4,), "1", "LSTM", "no single tensor"),
        (Function(lambda self, x: torch.max(x, 1)), (4,), "1.max_1", "max", "no single tensor"),
        (nn.ConvTranspose2d(2, 4, 1, stride=2), (2, 4, 4), "1", "ConvTranspose2d", "AOCConvTranspose2d"),
        (
            Function(lambda self, x: torch.matmul(x, x.transpose(1, 2))),
            (4, 4),
            "1.matmul",
            "matmul",
            "no 1-Lipschitz form",
        ),
        (Function(lambda self, x: x * x), (4,), "1.mul", "mul", "product of values"),
        (Function(lambda self, x: torch.div(x, 2, rounding_mode="floor")), (4,), "1.div", "div", "rounding_mode"),
        (Function(lambda self, x: 1 / x), (4,), "1.truediv", "truediv", "quotient"),
    ],
)
def test_what_cannot_be_converted_is_named(module, shape, path, kind, why):
    converted, report = convert(nn.Sequential(nn.Identity(), module), shape)
    (failure,) = report.failures
    assert (failure.path, failure.before, failure.after) == (path, kind, "")
    assert why in failure.note
    assert not report.complete
    assert "not converted:" in str(report)
    assert "not proved" in str(report)
    x = torch.rand(2, *shape)
    if "tensor" not in why:
        assert torch.equal(converted(x), module(x))


@pytest.mark.parametrize(
    "parts",
    [(nn.Hardswish, nn.ReLU, nn.Hardsigmoid), (nn.SiLU, nn.SiLU, nn.Sigmoid)],
    ids=["MobileNetV3", "EfficientNet"],
)
def test_squeeze_and_excitation_is_named_with_its_remedy_and_the_rest_is_converted(parts):
    model = squeezing(*parts)
    _, report = convert(model, (3, 8, 8))
    (failure,) = report.failures
    assert (failure.path, failure.before) == ("3.3.mul", "mul")
    assert failure.note == (
        "a product of values has no Lipschitz constant: leave it out, for example by torch.nn.Identity() in the "
        "place of 3.3 (SqueezeExcitation)"
    )
    assert {step.path for step in report.steps} >= {
        "0",
        "1",
        "2",
        "3.0",
        "3.1",
        "3.2",
        "3.3.fc1",
        "3.3.fc2",
        "3.4",
        "6",
    }
    model[3][3] = nn.Identity()  # the remedy
    assert convert(model, (3, 8, 8))[1].complete


def test_attention_is_named_with_its_remedy_and_the_rest_is_converted():
    _, report = convert(Transformer(), (3, 16, 16))
    (failure,) = report.failures
    assert (failure.path, failure.before) == ("attention", "MultiheadAttention")
    assert failure.note == (
        "dot-product attention has no Lipschitz constant: mix the tokens by torch.nn.Linear along them, "
        "as MLP-Mixer does"
    )
    assert {step.path for step in report.steps} >= {
        "patches",
        "norm",
        "add",
        "mlp.0",
        "mlp.1",
        "mlp.2",
        "mean",
        "head",
    }
    (layer,) = convert(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16)), (4, 8))[1].failures
    assert (layer.path, "attention" in layer.note) == ("0", True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": 3}, TypeError, "model: got int"),
        ({"model": nn.Bilinear(4, 4, 2)}, TypeError, "example: the model does not run on .*input2"),
        ({"example": torch.rand(2, 5)}, ValueError, r"example: .* shape \(2, 5\) and dtype torch.float32; expected"),
        ({"example": torch.ones(2, 4).long()}, ValueError, "example: the model does not run on .* torch.int64"),
        ({"model": nn.Embedding(4, 4)}, ValueError, "example: the model does not run on"),
        (
            {"model": nn.LazyLinear(4)},
            ValueError,
            r"layer '\w+' \(LazyLinear\): weight has no shape yet; call the model",
        ),
        ({"model": nn.Linear(4, 2, device="meta")}, ValueError, "weight is on the meta device.*to_empty"),
        ({"model": Decides()}, TypeError, r"model \(Decides\): its forward cannot be traced"),
        ({"example": (3, 8, 8)}, TypeError, "example: got tuple"),
        ({"example": torch.rand(4)}, ValueError, r"example: got shape \(4,\)"),
        ({"method": "aoll"}, ValueError, "method='aoll'"),
        ({"weights": "old"}, ValueError, "weights='old': allowed are 'keep', 'fresh'"),
        ({"head": "last"}, ValueError, "head='last'"),
    ],
)
def test_mistakes_are_named(options, error, message):
    arguments = {"model": nn.Linear(4, 2), "example": torch.rand(2, 4), **options}
    with pytest.raises(error, match=message):
        fastlip.convert(arguments.pop("model"), **arguments)


def test_a_nan_is_named():
    model = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer '0'"):
        convert(model, (4,))


def test_hooks_that_are_removed_are_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[0].register_forward_hook(lambda module, arguments, output: 2 * output)
    _, report = convert(model, (4,))
    assert [step.note for step in report.steps] == ["weights kept; its hooks are removed", ""]


def test_compiled_models_are_converted():
    model = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), backend="eager"), nn.Linear(4, 2))
    for whole in (model, torch.compile(model, backend="eager")):
        converted, report = convert(whole, (4,))
        assert [step.path for step in report.steps] == ["0.0", "0.1", "1"]
        assert converted(torch.rand(3, 4)).shape == (3, 2)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_weights_that_hooks_recompute_are_taken_over():
    """torch refuses to copy them, since autograd computed them."""
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.utils.spectral_norm(nn.Linear(4, 2)))
    converted, report = convert(model, (4,))
    assert report.complete
    assert not report.before > 10
    x = torch.rand(3, 4)
    assert torch.allclose(fastlip.export(model.eval())(x), model(x), atol=1e-6)
    loader = [(x, model(x).argmax(1))]
    assert fastlip.certify(model, loader, dtype=torch.float64).accuracy == 1
    assert fastlip.audit(converted.eval(), (4,)).bound <= 1 + 1e-5
