"""``fastlip.attack``: every batch, every radius, every restart; only what was verified counts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastlip.certification.attacks.ball import Bounds
from fastlip.certification.attacks.batch import Batch, attack_batch, result_of
from fastlip.certification.attacks.objective import AttackLoss
from fastlip.certification.attacks.options import KINDS, AttackKind, Plan, Radii, check_bounds, make_generator
from fastlip.certification.attacks.result import AttackResult, BrokenCertificateWarning, broken_text
from fastlip.certification.batches import check_batch, check_declared
from fastlip.certification.certificates import DEFAULT_EPS, Certificate
from fastlip.certification.input_norms import InputNorm, NormName, check_norm, norm_of_model
from fastlip.inspection.evaluation import (
    bar,
    certified_precision,
    check_model,
    from_parameters,
    prepare,
    radii_of,
)
from fastlip.inspection.loading import Loader, batches_of

__all__ = ["KINDS", "attack", "attack_certified"]


def attack(
    model: nn.Module,
    loader: Loader,
    eps: float | Sequence[float] | Tensor = DEFAULT_EPS,
    kind: AttackKind = "pgd",
    *,
    losses: Sequence[AttackLoss] | None = None,
    steps: int = 40,
    restarts: int = 3,
    step_size: float | None = None,
    bounds: Bounds = (0.0, 1.0),
    certificate: Certificate | None = None,
    norm: NormName = "auto",
    seed: int | torch.Generator = 0,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> AttackResult:
    r"""Looks for misclassified images within distance eps of those of a loader: robust accuracy from above.

    Distances are L2 norms, or weighted ones for a model that begins with :class:`fastlip.nn.InputWeights`.

    ``"pgd"`` is projected gradient ascent (Madry et al., ICLR 2018) on max_{j != y} f_j - f_y, which unlike
    cross-entropy points the right way however small the logits are. ``"apgd"`` is Auto-PGD (Croce and Hein, ICML
    2020), which halves its steps where it stalls and continues from the best point: first on cross-entropy, then on
    the targeted difference of logits ratio, which for fewer than four classes is f_t - f_y.

    The first restart of a loss starts at the image, the others at random points of the sphere. The r-th restart of
    "dlr" aims at the r-th most likely wrong class, and so does the (r + 1)-th of "margin", whose first aims at
    whichever is ahead; the first class follows the last. Samples that are broken leave the batch.

    A success counts if the image as stored, evaluated again, is misclassified (a tie is), and its distance,
    computed in float64, is strictly below the radius. It is then shortened towards the original by bisection, so
    ``distances`` are mostly below the radii. TF32 and autocast are off meanwhile, as in :func:`fastlip.certify`.
    The model, its parameters' gradients and the global random generators are left as they were. It must be a fixed
    function of each image: the last and the first image of every batch, evaluated alone, must give the same outputs.

    Args:
        model: any module with logits (n, c), or with one score (n,) or (n, 1) that is above 0 for label 1, in eval
            mode. Parameters in 16 bits are raised to float32 in a copy, which is what is attacked.
        loader: batches of images and integer or one-hot labels, or a whole set, as of :func:`fastlip.certify`.
        eps: a radius or radii for all samples, or a tensor (n,) or (n, k) of radii for each; default 36/255, 72/255,
            108/255 and 1. Radii of 0 are not attacked.
        kind: ``"pgd"`` (default) or ``"apgd"``.
        losses: ``"margin"``, ``"ce"`` or ``"dlr"``, to climb one after the other; default None is ("margin",) for
            pgd and ("ce", "dlr") for apgd.
        steps: the number of gradients per restart, default 40.
        restarts: their number for each loss and radius, default 3.
        step_size: the step of pgd as a share of the radius; default None is 2.5 / steps.
        bounds: the least and largest pixel value, numbers or tensors that broadcast to an image, default (0, 1);
            None sets no bounds.
        certificate: one of the same model and loader, unshuffled: every sample is attacked at its certified radius as
            well (instead of at the smaller eps). Those broken there are reported in ``broken``, and by a
            :class:`BrokenCertificateWarning`. Default None.
        norm: that of perturbations: ``"auto"`` (default) is the weighted one of a first layer
            :class:`fastlip.nn.InputWeights`, else L2; ``"l2"`` is L2 for every model. A certificate must be in it.
        seed: the seed of the random starts, or a generator, default 0. The same seed and batches give the same result
            on a CPU.
        device: where to run; default None is where the model is. The model itself is not moved.
        dtype: ``torch.float32`` or ``torch.float64`` attacks a copy of the model in that type; default None attacks
            the model as it is.
        progress: shows a progress bar; default False.

    Returns:
        An :class:`AttackResult`.

    Raises:
        ValueError: a model in training mode; NaN or Inf in parameters, images, outputs or gradients (naming the
            batch); labels out of range; images outside of the bounds; an option that is not allowed; radii or a
            certificate that do not belong to the loader or the norm; an empty loader; a model that is random or mixes
            images.
        TypeError: an argument of the wrong type.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
        >>> images = torch.rand(8, 1, 2, 2)
        >>> found = fastlip.attack(model, [(images, model(images).argmax(1))], eps=[0.1, 10.0], steps=5)
        >>> found.accuracy, found.robust_accuracy[10.0] <= found.robust_accuracy[0.1]
        (1.0, True)
    """
    check_model(model, dtype)
    check_bounds(bounds)
    plan = Plan.checked(kind, losses, steps, restarts, step_size)
    radii = Radii(eps if isinstance(eps, Tensor) and eps.dim() else radii_of(eps), certificate)
    check_norm(norm)
    generator = make_generator(seed)
    model, parameter = prepare(model, device, dtype)
    rows: list[dict[str, Tensor]] = []
    norms: dict[torch.Size, InputNorm] = {}
    n = 0
    with certified_precision(parameter.device.type), torch.inference_mode(False), torch.no_grad(), _frozen(model):
        for index, batch in enumerate(bar(batches_of(loader), kind, progress)):
            images, labels = check_batch(index, batch)
            if not len(images):
                continue
            check_declared(model, index, images)
            x = images.detach().to(parameter).clone()
            if x.shape[1:] not in norms:
                norms[x.shape[1:]] = norm_of_model(model, x, norm)
                radii.check_norm(norms[x.shape[1:]])
            target = Batch(model, x, labels, bounds, f"batch {index}", norms[x.shape[1:]])
            rows.append(attack_batch(target, n, radii, plan, generator))
            n += len(images)
    if not rows:
        raise ValueError("loader: it has no batches, or only empty ones")
    radii.check_count(n)
    found = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    result = result_of(found, radii, plan, next(iter(norms.values())))
    if len(result.broken):
        warnings.warn(broken_text(result.broken), BrokenCertificateWarning, stacklevel=2)
    return result


def attack_certified(
    model: nn.Module,
    loader: Loader,
    certificate: Certificate,
    factors: Sequence[float] = (1.0, 3.0),
    *,
    kind: AttackKind = "pgd",
    losses: Sequence[AttackLoss] | None = None,
    steps: int = 40,
    restarts: int = 3,
    step_size: float | None = None,
    bounds: Bounds = (0.0, 1.0),
    seed: int | torch.Generator = 0,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> AttackResult:
    """Attacks each sample at multiples of its own certified radius.

    Nothing may succeed at factor 1; many attacks should at a few times the radius, or the attack is weak or the
    certificate loose. Columns of ``radii``, ``success`` and ``success_rate`` are the factors.

    Args:
        model: see :func:`attack`.
        loader: that of the certificate, unshuffled.
        certificate: what :func:`fastlip.certify` returned for them.
        factors: the multiples, default (1, 3).
        kind: see :func:`attack`, as all further arguments; default ``"pgd"``.
        losses: see :func:`attack`.
        steps: see :func:`attack`; default 40.
        restarts: see :func:`attack`; default 3.
        step_size: see :func:`attack`.
        bounds: see :func:`attack`.
        seed: see :func:`attack`; default 0.
        device: see :func:`attack`.
        dtype: see :func:`attack`.
        progress: see :func:`attack`; default False.

    Returns:
        An :class:`AttackResult`.

    Raises:
        TypeError: a certificate of another type.
        ValueError: see :func:`attack`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), lip.CayleyLinear(4, 2)).eval()
        >>> images = torch.rand(8, 1, 2, 2)
        >>> batches = [(images, model(images).argmax(1))]
        >>> certificate = fastlip.certify(model, batches)
        >>> fastlip.certification.attack_certified(model, batches, certificate, steps=5, bounds=None).success_rate[0]
        0.0
    """
    if not isinstance(certificate, Certificate):
        raise TypeError(f"certificate: got {type(certificate).__name__}, expected a fastlip Certificate")
    return attack(
        model,
        loader,
        certificate.radii[:, None] * torch.as_tensor(factors, dtype=torch.float64),
        kind,
        losses=losses,
        steps=steps,
        restarts=restarts,
        step_size=step_size,
        bounds=bounds,
        certificate=certificate,
        seed=seed,
        device=device,
        dtype=dtype,
        progress=progress,
    )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients of parameters meanwhile: layers then keep their evaluation weights between steps."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with from_parameters(model):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
