"""Labels in every encoding, reductions, precision, gradients and errors of all losses."""

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from loss_inputs import BINARY, CLASSES8, LABELS8, LOGITS8, MULTICLASS, SCORES8, gradient, name, soft_labels
from torch import func

from fastlip import losses
from fastlip.training.losses import loss_of
from fastlip.training.recipe import Recipe


@pytest.mark.parametrize("loss", MULTICLASS, ids=name)
def test_multiclass_labels_in_every_encoding(loss):
    value = loss(LOGITS8, CLASSES8)
    one_hot = F.one_hot(CLASSES8, 3)
    for labels in (
        CLASSES8.int(),
        CLASSES8.to(torch.uint8),
        one_hot,
        one_hot.double(),
        one_hot.bool(),
        2 * one_hot - 1,
    ):
        assert torch.equal(loss(LOGITS8, labels), value)


@pytest.mark.parametrize("loss", BINARY, ids=name)
def test_binary_labels_in_every_encoding(loss):
    value = loss(SCORES8, LABELS8)
    for labels in (
        LABELS8.view(-1, 1),
        LABELS8.double(),
        LABELS8.bool(),
        LABELS8.to(torch.uint8),
        2 * LABELS8 - 1,
    ):
        assert torch.equal(loss(SCORES8, labels), value)
        assert torch.equal(loss(SCORES8.flatten(), labels), value)


@pytest.mark.parametrize("loss", [losses.Hinge(), losses.KR(), losses.HKR(0.7)], ids=name)
def test_several_binary_problems_are_averaged(loss):
    scores = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.rand(9, 3, generator=torch.Generator().manual_seed(1)) > 0.5
    single = [loss(scores[:, i], labels[:, i]) for i in range(3)]
    torch.testing.assert_close(loss(scores, labels), torch.stack(single).mean())


@pytest.mark.parametrize("loss", [losses.Hinge(), losses.KR(), losses.HKR(0.7)], ids=name)
def test_class_numbers_are_one_binary_problem_per_class(loss):
    assert torch.equal(loss(LOGITS8, CLASSES8), loss(LOGITS8, F.one_hot(CLASSES8, 3)))


@pytest.mark.parametrize("loss", MULTICLASS, ids=name)
def test_reductions(loss):
    values = {}
    for reduction in ("none", "mean", "auto", "sum"):
        loss.reduction = reduction
        values[reduction] = loss(LOGITS8, CLASSES8)
    loss.reduction = "mean"
    assert values["none"].shape == (8,)
    torch.testing.assert_close(values["mean"], values["none"].mean())
    assert torch.equal(values["auto"], values["mean"])
    torch.testing.assert_close(values["sum"], values["none"].sum())


@pytest.mark.parametrize("loss", MULTICLASS, ids=name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_logits_are_computed_in_float32(loss, dtype):
    logits = (LOGITS8 * 1000).to(dtype)
    value = loss(logits, CLASSES8)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert torch.equal(value, loss(logits.float(), CLASSES8))
    assert gradient(loss, logits, CLASSES8).isfinite().all()


@pytest.mark.parametrize("loss", MULTICLASS, ids=name)
def test_gradients(loss):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(5, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 1])
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (logits,))


@pytest.mark.parametrize("loss", [*MULTICLASS, *BINARY], ids=name)
def test_second_derivatives(loss):
    generator, binary = torch.Generator().manual_seed(3), loss in BINARY
    logits = torch.randn(5, 1 if binary else 4, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 1, 1, 0, 1]) if binary else torch.tensor([0, 1, 2, 3, 1])
    assert torch.autograd.gradgradcheck(lambda x: loss(x, labels) + x.square().sum(), (logits,))

    def value(x):
        return loss(x, labels)

    x = logits.detach()
    slope = func.grad(value)(x)
    torch.testing.assert_close(slope, torch.autograd.grad(value(logits), logits)[0])
    torch.testing.assert_close(func.jacfwd(value)(x), slope)
    curvature = func.hessian(value)(x).reshape(x.numel(), x.numel())
    torch.testing.assert_close(curvature, curvature.mT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.OffsetCrossEntropy(-1.0), "offset=-1.0"),
        (lambda: losses.OffsetCrossEntropy(0.5, 0.0), "temperature=0.0"),
        (lambda: losses.TemperatureCrossEntropy(math.nan), "temperature=nan"),
        (lambda: losses.HKR(1.5), "alpha=1.5"),
        (lambda: losses.EMMA(-0.1), "radius=-0.1"),
        (lambda: losses.EMMA(lipschitz=0.0), "lipschitz=0.0"),
        (lambda: losses.EMMA(least_share=1.5), "least_share=1.5"),
        (lambda: losses.EMMA()(LOGITS8, CLASSES8, torch.ones(2, 2)), r"slopes: got shape \(2, 2\)"),
        (lambda: losses.EMMA()(LOGITS8, CLASSES8, -1.0), "slopes=-1.0"),
        (lambda: losses.LogitAnnealing(exponent=-1.0), "exponent=-1.0"),
        (lambda: losses.RadiusRamp(losses.EMMA(), 0), "steps=0"),
        (lambda: losses.RadiusRamp(losses.EMMA(), 5, ramp=2.0), "ramp=2.0"),
        (lambda: losses.RadiusRamp(losses.EMMA(), 5).load_state_dict({}), "step=None"),
        (lambda: losses.SoftHKR(min_margin=0.0), "min_margin=0.0"),
        (lambda: losses.Hinge(reduction="avg"), "reduction='avg'"),
        (lambda: losses.KR(multi_gpu=True)(SCORES8, LABELS8), "multi_gpu=True"),
        (lambda: losses.MultiMargin()(LOGITS8, CLASSES8 + 1), "labels: got values from 1 to 3, expected 0 to 2"),
        (lambda: losses.MultiMargin()(LOGITS8, CLASSES8 - 1), "labels: got values"),
        (lambda: losses.MultiMargin()(LOGITS8, CLASSES8[:4]), "labels: got shape"),
        (lambda: losses.MultiMargin()(SCORES8, LABELS8), "logits: got shape"),
        (lambda: losses.MultiMargin()(LOGITS8, torch.zeros(8, 3)), "exactly one positive"),
        (lambda: losses.MultiMargin()(LOGITS8[:0], CLASSES8[:0]), "at least one sample"),
        (lambda: losses.Hinge()(SCORES8, LABELS8 + 1), "labels: got values from 1 to 2"),
        (lambda: losses.Hinge()(SCORES8, LABELS8 * 0.5), "labels: allowed are 0 and 1, or -1 and 1"),
        (lambda: losses.Hinge()(SCORES8, torch.tensor([-1, 0, 1, 1, 1, 1, 1, 1])), "labels: allowed are"),
        (lambda: losses.Hinge()(SCORES8, LABELS8[:7]), "labels: got shape"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_types_are_checked():
    with pytest.raises(TypeError, match="labels"):
        losses.MultiMargin()(LOGITS8, CLASSES8.float())
    with pytest.raises(TypeError, match="logits"):
        losses.MultiMargin()(LOGITS8.int(), CLASSES8)


@pytest.mark.parametrize("labels", [CLASSES8.numpy(), CLASSES8.tolist(), soft_labels().numpy()], ids=type)
def test_labels_need_not_be_tensors(labels):
    loss = losses.OffsetCrossEntropy(0.5)
    torch.testing.assert_close(loss(LOGITS8, labels), loss(LOGITS8, torch.as_tensor(labels)))


def test_labels_that_are_no_numbers():
    with pytest.raises(TypeError, match="labels: got list"):
        losses.OffsetCrossEntropy(0.5)(LOGITS8, ["cat"] * 8)


def test_recipes_know_losses_by_the_names_that_type_checkers_know():
    assert tuple(losses.RECIPE_LOSSES) == get_args(losses.LossName)
    for recipe_name, kind in losses.RECIPE_LOSSES.items():
        loss = loss_of(Recipe(loss=recipe_name), "sum")
        assert type(loss) is kind
        assert loss.reduction == "sum"
    with pytest.raises(NotImplementedError, match="LseHKR"):
        losses.LseHKR.from_recipe({}, "sum", multi_gpu=False)


@pytest.mark.parametrize("loss", [loss for loss in MULTICLASS if not isinstance(loss, losses.SoftHKR)], ids=name)
def test_gradients_of_each_sample_by_vmap(loss):
    for labels in (CLASSES8, F.one_hot(CLASSES8, 3)):
        gradient_of = torch.func.grad(lambda scores, label: loss(scores[None], label[None]))
        one_by_one = [gradient_of(*sample) for sample in zip(LOGITS8, labels, strict=True)]
        torch.testing.assert_close(torch.vmap(gradient_of)(LOGITS8, labels), torch.stack(one_by_one))


@pytest.mark.parametrize("loss", BINARY, ids=name)
def test_binary_gradients_of_each_sample_by_vmap(loss):
    gradient_of = torch.func.grad(lambda score, label: loss(score[None], label[None]))
    scores, labels = SCORES8.reshape(len(LABELS8), -1)[:, :1], LABELS8.reshape(-1, 1)
    one_by_one = [gradient_of(*sample) for sample in zip(scores, labels, strict=True)]
    torch.testing.assert_close(torch.vmap(gradient_of)(scores, labels), torch.stack(one_by_one))


def test_a_running_mean_names_the_remedy_in_transforms():
    loss = losses.SoftHKR()
    gradient_of = torch.func.grad(lambda scores, label: loss(scores[None], label[None]))
    for transformed, sample in (
        (gradient_of, (LOGITS8[0], CLASSES8[0])),
        (torch.vmap(gradient_of), (LOGITS8, CLASSES8)),
    ):
        with pytest.raises(ValueError, match=r"which torch.func.grad and vmap cannot; use SoftHKR.eval\(\)"):
            loss.train() and transformed(*sample)
        loss.eval()
        one_by_one = [gradient_of(*one) for one in zip(LOGITS8, CLASSES8, strict=True)]
        found = transformed(*sample)
        torch.testing.assert_close(found, torch.stack(one_by_one) if found.dim() > 1 else one_by_one[0])


@pytest.mark.parametrize("loss", [*MULTICLASS, losses.HKR(0.9)], ids=name)
def test_labels_of_other_shapes_and_types_name_the_remedy(loss):
    with pytest.raises(
        ValueError, match=r"labels: got shape \(8, 1\), expected .*integers.*; use labels.squeeze\(1\)"
    ):
        loss(LOGITS8, CLASSES8[:, None])
    with pytest.raises(TypeError, match=r"labels: got torch.float32 .*expected integers; use labels.long\(\)"):
        loss(LOGITS8, CLASSES8.float())
    for classes in (CLASSES8 + 1, CLASSES8 - 1):
        with pytest.raises(ValueError, match=r"labels: got values from .* expected 0 to 2"):
            loss(LOGITS8, classes)
    assert loss(LOGITS8[:1], CLASSES8[:1]).isfinite().all()
