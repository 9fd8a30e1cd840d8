"""Values published with deel-torchlip's tests, limits, labels, reductions, precision, processes and errors."""

import math

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from fastlip import losses

SCORES6 = torch.tensor([0.5, 1.5, -0.5, -0.5, -1.5, 0.5]).view(-1, 1)
LABELS6 = torch.tensor([1, 1, 1, 0, 0, 0])
SCORES8 = torch.tensor([0.5, 1.1, -0.1, 0.7, -1.3, -0.4, 0.2, -0.9]).view(-1, 1)
LABELS8 = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
LOGITS6 = torch.tensor(
    [[2, 0.2, -0.5], [-1, -1.2, 0.3], [0.8, 2, 0], [0, 1, -0.5], [2.4, -0.4, -1.1], [-0.1, -1.7, 0.6]]
)
CLASSES6 = torch.tensor([0, 0, 0, 1, 1, 2])
LOGITS8 = torch.tensor(
    [
        [1.5, 0.2, -0.5],
        [1, -1.2, 0.3],
        [0.8, 2, -2],
        [0, 1, -0.5],
        [-0.8, 2, 0],
        [2.4, -0.4, -1.1],
        [-0.1, -1.7, 0.6],
        [1.2, 1.3, 2.5],
    ]
)
CLASSES8 = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])

# (loss, scores, labels, value): alpha' = alpha / (1 + alpha) where the published test has alpha > 1.
PUBLISHED = [
    (losses.KR(), SCORES6, LABELS6, 1.0),
    (losses.Hinge(2.0), SCORES6, LABELS6, 4 / 6),
    (losses.MulticlassKR(reduction="auto"), LOGITS6, CLASSES6, 761 / 1800),
    (losses.MulticlassHKR(5 / 6, 2.0), LOGITS6, CLASSES6, 1071 / 200 / 6),
    (losses.TemperatureCrossEntropy(2.0), SCORES6, LABELS6, 0.279185),
    (losses.KR(reduction="none"), SCORES8, LABELS8, [1.0, 2.2, -0.2, 1.4, 2.6, 0.8, -0.4, 1.8]),
    (losses.Hinge(1.4, "none"), SCORES8, LABELS8, [0.2, 0, 0.8, 0, 0, 0.3, 0.9, 0]),
    (
        losses.HKR(2.5 / 3.5, 2.0, reduction="none"),
        SCORES8,
        LABELS8,
        [value / 3.5 for value in (0.25, -2.2, 2.95, -0.65, -2.6, 0.7, 3.4, -1.55)],
    ),
    (
        losses.TemperatureCrossEntropy(0.5, "none"),
        SCORES8,
        LABELS8,
        [1.15188, 0.91098, 1.43692, 1.06676, 0.84011, 1.19628, 1.48879, 0.98650],
    ),
    (
        losses.MulticlassKR(reduction="none"),
        LOGITS8,
        CLASSES8,
        [value / 225 for value in (326, 314, 120, 250, 496, -258, 396, 450)],
    ),
    (
        losses.MulticlassHinge(2.0, "none"),
        LOGITS8,
        CLASSES8,
        [value / 30 for value in (17, 13, 34, 15, 12, 62, 17, 45)],
    ),
    (losses.MultiMargin(0.7, "none"), LOGITS8, CLASSES8, [0, 0, 19 / 30, 0, 0, 35 / 30, 0, 0]),
    (
        losses.MulticlassHKR(2.5 / 3.5, 1.0, reduction="none"),
        LOGITS8,
        CLASSES8,
        [value / 900 / 3.5 for value in (-779, -656, 1395, -625, -1609, 4557, -1284, 825)],
    ),
    (losses.CategoricalHinge(1.1, "none"), LOGITS8, CLASSES8, [0, 0.4, 2.3, 0.1, 0, 3.9, 0.4, 0]),
    (
        losses.TemperatureCrossEntropy(2.0, "none"),
        LOGITS8,
        CLASSES8,
        [0.044275, 0.115109, 1.243572, 0.084923, 0.010887, 2.802300, 0.114224, 0.076357],
    ),
    (
        losses.SoftHKR(5 / 6, 0.2, reduction="none"),
        LOGITS8,
        CLASSES8,
        [
            value / 1.2
            for value in (
                *(-0.10878129, 0.12582462, 2.2788424, -0.17646402),
                *(-0.38242298, 3.4523692, -0.19672059, 1.1028761),
            )
        ],
    ),
    (losses.KR(reduction="sum"), SCORES8, LABELS8, 9.2),
    (losses.TemperatureCrossEntropy(1.5, "sum"), SCORES8, LABELS8, 2.19262),
]


@pytest.mark.parametrize(("loss", "scores", "labels", "value"), PUBLISHED)
def test_values_published_with_deel_torchlip(loss, scores, labels, value):
    torch.testing.assert_close(loss(scores, labels), torch.tensor(value), rtol=2e-6, atol=5e-6)


def test_soft_hkr_keeps_a_running_mean_in_training_only():
    loss = losses.SoftHKR(5 / 6, 0.2)
    torch.testing.assert_close(loss(LOGITS6, CLASSES6), torch.tensor(1.0897621 / 1.2), rtol=1e-5, atol=0)
    torch.testing.assert_close(loss(LOGITS6, CLASSES6), torch.tensor(1.0834466 / 1.2), rtol=1e-5, atol=0)
    loss.eval()
    assert torch.equal(loss(LOGITS6, CLASSES6), loss(LOGITS6, CLASSES6))
    copy = losses.SoftHKR(5 / 6, 0.2).eval()
    copy.load_state_dict(loss.state_dict())
    assert torch.equal(copy(LOGITS6, CLASSES6), loss(LOGITS6, CLASSES6))


def test_lse_hkr_against_its_formula():
    # Two rivals: sharpness t = log(2) / (penalty * m / 2).
    score, rivals = LOGITS8[2, 0], LOGITS8[2, 1:]
    t = math.log(2) / (0.5 * 1.2 / 2)
    rival = torch.logsumexp(t * 3 * rivals, 0) / t
    hinge = F.relu(0.6 - 3 * score) + F.relu(0.6 + rival)
    expected = 0.3 * (rival - 3 * score) + 0.7 * hinge
    loss = losses.LseHKR(0.7, temperature=3, penalty=0.5, min_margin=1.2)
    torch.testing.assert_close(loss(LOGITS8[2:3], CLASSES8[2:3]), expected)
    assert (3 * rivals).amax() <= rival <= (3 * rivals).amax() + 0.3
    two = torch.tensor([[0.3, -0.1]])
    torch.testing.assert_close(losses.LseHKR(0.0)(two, torch.tensor([0])), torch.tensor(-0.4))


MULTICLASS = [
    losses.OffsetCrossEntropy(0.4, 0.25),
    losses.TemperatureCrossEntropy(3.0),
    losses.MulticlassHinge(),
    losses.MulticlassKR(),
    losses.MulticlassHKR(0.7),
    losses.SoftHKR(0.7).eval(),
    losses.LseHKR(0.7),
    losses.MultiMargin(),
    losses.CategoricalHinge(),
]
BINARY = [losses.OffsetCrossEntropy(0.4), losses.TemperatureCrossEntropy(3.0)]
BINARY += [losses.Hinge(), losses.KR(), losses.HKR(0.7)]


def name(loss):
    return type(loss).__name__


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


@pytest.mark.parametrize(
    ("hkr", "kr", "hinge", "scores", "labels"),
    [
        (losses.HKR, losses.KR(), losses.Hinge(0.8), SCORES8, LABELS8),
        (losses.MulticlassHKR, losses.MulticlassKR(), losses.MulticlassHinge(0.8), LOGITS8, CLASSES8),
    ],
)
def test_hkr_ends_at_kr_and_hinge(hkr, kr, hinge, scores, labels):
    assert torch.equal(hkr(0.0, 0.8)(scores, labels), -kr(scores, labels))
    assert torch.equal(hkr(1.0, 0.8)(scores, labels), hinge(scores, labels))


@pytest.mark.parametrize("constant", [-3.0, 100.0])
def test_kr_ignores_a_constant(constant):
    torch.testing.assert_close(
        losses.KR()(SCORES8 + constant, LABELS8), losses.KR()(SCORES8, LABELS8), atol=1e-4, rtol=0
    )
    loss = losses.MulticlassKR()
    torch.testing.assert_close(loss(LOGITS8 + constant, CLASSES8), loss(LOGITS8, CLASSES8), atol=1e-4, rtol=0)


def gradient(loss, logits, labels):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(logits, labels), logits)[0]


def test_offset_cross_entropy_without_offset_is_cross_entropy():
    expected = F.cross_entropy(LOGITS8, CLASSES8)
    torch.testing.assert_close(losses.OffsetCrossEntropy(0.0, 1.0)(LOGITS8, CLASSES8), expected)
    torch.testing.assert_close(losses.TemperatureCrossEntropy(1.0)(LOGITS8, CLASSES8), expected)


def test_offset_cross_entropy_is_the_comparison_papers_loss():
    u, t = 2 * math.sqrt(2) * 36 / 255, 0.25
    expected = t * F.cross_entropy((LOGITS8 - u * F.one_hot(CLASSES8, 3)) / t, CLASSES8)
    torch.testing.assert_close(losses.OffsetCrossEntropy(u, t)(LOGITS8, CLASSES8), expected)


def test_cold_offset_cross_entropy_is_the_hinge_on_the_margin():
    cold, hinge = losses.OffsetCrossEntropy(0.9, 1e-4), losses.CategoricalHinge(0.9)
    torch.testing.assert_close(cold(LOGITS8, CLASSES8), hinge(LOGITS8, CLASSES8), atol=2e-4, rtol=0)
    torch.testing.assert_close(gradient(cold, LOGITS8, CLASSES8), gradient(hinge, LOGITS8, CLASSES8))


def test_two_classes_are_one_score_against_zero():
    loss = losses.OffsetCrossEntropy(0.7, 0.3)
    two = torch.cat((torch.zeros_like(SCORES8), SCORES8), 1)
    torch.testing.assert_close(loss(SCORES8, LABELS8), loss(two, LABELS8))


def test_temperature_limits_of_the_gradient():
    one_hot = F.one_hot(CLASSES8, 3)
    small = gradient(losses.TemperatureCrossEntropy(1e-4, "sum"), LOGITS8, CLASSES8)
    torch.testing.assert_close(small, 1 / 3 - one_hot.float(), atol=2e-4, rtol=0)
    large = gradient(losses.TemperatureCrossEntropy(1e4, "sum"), LOGITS8, CLASSES8)
    torch.testing.assert_close(large, F.one_hot(LOGITS8.argmax(1), 3) - one_hot.float())


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


def _worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    part = slice(0, 3) if rank == 0 else slice(3, 8)
    values = [loss(LOGITS8[part], CLASSES8[part]) for loss in _distributed(True)]
    torch.save(torch.stack(values), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _distributed(multi_gpu):
    return [
        losses.MulticlassKR(multi_gpu),
        losses.MulticlassHKR(0.6, multi_gpu=multi_gpu),
        losses.SoftHKR(0.6, multi_gpu=multi_gpu),
    ]


def test_processes_average_to_the_whole_batch(tmp_path):
    mp.spawn(_worker, (str(tmp_path),), nprocs=2)
    mean = (torch.load(tmp_path / "0.pt") + torch.load(tmp_path / "1.pt")) / 2
    whole = torch.stack([loss(LOGITS8, CLASSES8) for loss in _distributed(False)])
    torch.testing.assert_close(mean, whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.OffsetCrossEntropy(-1.0), "offset=-1.0"),
        (lambda: losses.OffsetCrossEntropy(0.5, 0.0), "temperature=0.0"),
        (lambda: losses.TemperatureCrossEntropy(math.nan), "temperature=nan"),
        (lambda: losses.HKR(1.5), "alpha=1.5"),
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


def test_the_extremes_of_temperature_cross_entropy_are_kr_and_the_worst_rival():
    """tau -> 0: the gradient of KR where each class is as frequent; tau -> infinity: that of max_j f_j - f_y."""
    logits, labels = torch.randn(9, 3, generator=torch.Generator().manual_seed(4)), torch.arange(9) % 3
    small = gradient(losses.TemperatureCrossEntropy(1e-4), logits, labels)
    kr = gradient(lambda *both: -losses.MulticlassKR()(*both), logits, labels)
    # One against the rest in three classes of three: 3/2 (1/c - onehot), averaged over the three classes.
    torch.testing.assert_close(kr, 1.5 * small, atol=2e-4, rtol=0)
    large = gradient(losses.TemperatureCrossEntropy(1e5), logits, labels)
    worst = gradient(lambda f, y: (f.amax(1) - f.gather(1, y[:, None])[:, 0]).mean(), logits, labels)
    torch.testing.assert_close(large, worst)


# (ours, the name and arguments of deel-torchlip's, its factor): its alpha' = alpha / (1 + alpha).
THEIRS = [
    (losses.MulticlassKR(), "KRMulticlassLoss", {}, 1.0),
    (losses.MulticlassHinge(0.8), "HingeMulticlassLoss", {"min_margin": 0.8}, 1.0),
    (losses.MulticlassHKR(0.75, 0.8), "HKRMulticlassLoss", {"alpha": 0.75, "min_margin": 0.8}, 1.0),
    (losses.CategoricalHinge(0.8), "CategoricalHingeLoss", {"min_margin": 0.8}, 1.0),
    (losses.TemperatureCrossEntropy(3.0), "TauCrossEntropyLoss", {"tau": 3.0}, 1.0),
]


@pytest.mark.parametrize(("loss", "their_name", "options", "factor"), THEIRS, ids=lambda value: str(value)[:24])
def test_values_equal_those_of_deel_torchlip_where_it_is_installed(loss, their_name, options, factor):
    torchlip = pytest.importorskip("deel.torchlip")
    theirs = getattr(torchlip, their_name)(**options)
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        logits, labels = torch.randn(16, 5, generator=generator), torch.randint(5, (16,), generator=generator)
        one_hot = F.one_hot(labels, 5)
        labels_of_theirs = labels if their_name == "TauCrossEntropyLoss" else one_hot
        torch.testing.assert_close(loss(logits, labels), factor * theirs(logits, labels_of_theirs))


def soft_labels(share=0.7):
    return share * F.one_hot(CLASSES8, 3).float() + (1 - share) * F.one_hot(CLASSES8.roll(3), 3).float()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_soft_labels_as_in_torch(reduction):
    soft = soft_labels()
    found = losses.TemperatureCrossEntropy(4.0, reduction=reduction)(LOGITS8, soft)
    torch.testing.assert_close(found, F.cross_entropy(4 * LOGITS8, soft, reduction=reduction) / 4)


def test_the_offset_of_soft_labels_follows_the_probabilities():
    soft, offset, temperature = soft_labels(), 0.6, 0.25
    found = losses.OffsetCrossEntropy(offset, temperature)(LOGITS8, soft)
    shifted = (LOGITS8 - offset * soft) / temperature
    torch.testing.assert_close(found, -(temperature * soft * shifted.log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 1.0]), [1, 0, 3]])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_smoothing_and_class_weights_as_in_torch(weight, soft, reduction):
    labels = soft_labels() if soft else CLASSES8
    loss = losses.OffsetCrossEntropy(0.0, reduction=reduction, label_smoothing=0.1, weight=weight)
    weight = None if weight is None else torch.as_tensor(weight, dtype=torch.float32)
    expected = F.cross_entropy(LOGITS8, labels, weight, reduction=reduction, label_smoothing=0.1)
    torch.testing.assert_close(loss(LOGITS8, labels), expected)


def test_smoothing_is_a_soft_label():
    loss, smoothed = losses.OffsetCrossEntropy(0.5, 0.25), losses.OffsetCrossEntropy(0.5, 0.25, label_smoothing=0.3)
    soft = 0.7 * F.one_hot(CLASSES8, 3) + 0.1
    torch.testing.assert_close(smoothed(LOGITS8, CLASSES8), loss(LOGITS8, soft))


def test_one_score_takes_a_probability():
    scores, soft = SCORES8[:, 0], torch.linspace(0.1, 0.9, 8)
    found = losses.OffsetCrossEntropy(0.0)(scores, soft)
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(scores, soft))
    torch.testing.assert_close(losses.OffsetCrossEntropy(0.0)(SCORES8, soft[:, None]), found)


def test_class_weights_are_a_buffer_that_moves_with_the_loss():
    loss = losses.TemperatureCrossEntropy(2.0, weight=[1.0, 2.0, 3.0])
    assert set(loss.state_dict()) == {"weight"}
    assert loss.to("meta").weight.device.type == "meta"
    assert not losses.TemperatureCrossEntropy(2.0).state_dict()


def test_soft_labels_compile():
    loss = losses.OffsetCrossEntropy(0.5, 0.25)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    for labels in (soft_labels(), F.one_hot(CLASSES8, 3).float(), 2 * F.one_hot(CLASSES8, 3).float() - 1):
        torch.testing.assert_close(compiled(LOGITS8, labels), loss(LOGITS8, labels))


@pytest.mark.parametrize("labels", [CLASSES8.numpy(), CLASSES8.tolist(), soft_labels().numpy()], ids=type)
def test_labels_need_not_be_tensors(labels):
    loss = losses.OffsetCrossEntropy(0.5)
    torch.testing.assert_close(loss(LOGITS8, labels), loss(LOGITS8, torch.as_tensor(labels)))


@pytest.mark.parametrize(
    ("options", "labels", "message"),
    [
        ({"label_smoothing": 1.5}, CLASSES8, r"label_smoothing=1\.5"),
        ({"weight": [1.0, -1.0, 1.0]}, CLASSES8, "weight="),
        ({"weight": [1.0, float("nan"), 1.0]}, CLASSES8, "weight="),
        ({"weight": [1.0, 2.0]}, CLASSES8, "weight: got 2 class weights, expected 3"),
        ({}, 2 * soft_labels(), "labels: soft labels are probabilities"),
        ({}, soft_labels() - 0.4, "labels: soft labels are probabilities"),
    ],
)
def test_errors_of_soft_labels_and_class_options(options, labels, message):
    with pytest.raises(ValueError, match=message):
        losses.OffsetCrossEntropy(0.5, **options)(LOGITS8, labels)


def test_labels_that_are_no_numbers():
    with pytest.raises(TypeError, match="labels: got list"):
        losses.OffsetCrossEntropy(0.5)(LOGITS8, ["cat"] * 8)
