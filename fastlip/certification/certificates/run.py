"""``fastlip.certify``: every batch through the audited layers, and through the model itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from fastlip.certification.auditing import Audit
from fastlip.certification.certificates.evaluated import Evaluated, certifying, evaluated
from fastlip.certification.certificates.margins import Slopes, above, measure
from fastlip.certification.certificates.result import Certificate
from fastlip.certification.rounding import RoundingModel
from fastlip.inspection.evaluation import bar, radii_of
from fastlip.inspection.loading import Loader, batches_of
from fastlip.kernels.common.checks import boolean

DEFAULT_EPS = (36 / 255, 72 / 255, 108 / 255, 1.0)


def certify(
    model: nn.Module,
    loader: Loader,
    eps: float | Sequence[float] = DEFAULT_EPS,
    *,
    input_shape: tuple[int, ...] | None = None,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    per_class: bool = False,
    progress: bool = False,
    rounding: RoundingModel = "worst-case",
    bounds: tuple[float | Tensor, float | Tensor] | None = None,
    threshold: float = 0.0,
) -> Certificate:
    r"""Returns the certified robust accuracy (CRA) of a classifier on the batches (images, labels) of a loader.

    .. math:: r_j(x) = \frac{\max(0,\; f_y - f_j - 2 \sqrt 2\, e)}
                            {\min(\sqrt 2\, L,\; L_{body} \|w_y - w_j\|) + \sqrt 2\, g},
              \qquad r(x) = \min_{j \ne y} r_j(x)

    L is the audited bound of the model (:func:`fastlip.audit`), never an assumed 1. The second slope applies if the
    model ends in a linear layer with rows w_j, perhaps followed by a selection of its first outputs: L_body is the
    bound of what comes before. r_j is the radius within which class j cannot overtake the label y.

    The certificate holds for the network as it runs, in floating-point numbers, for the image and for every
    perturbed one. e bounds the L2 error of the computed outputs for the image, and e + g r for those at a distance
    of r; g is of the size of a few thousand roundings. Both come from a worst-case bound of each layer's own error
    (whatever the order in which it sums, with or without fused multiply-adds, with numbers below the normal range
    flushed to zero or not), from the size of its inputs and hidden values, times the bounds of the layers after it.
    ``rounding="probabilistic"`` takes u sqrt(n) L_l |x_l| for a layer's error, with u the unit roundoff, n the
    number of roundings that lead to an output and x_l the layer's input, and the root of the sum of squares. It holds
    for independent roundings with high probability (Higham and Mary 2019), and can fail by far where they are not,
    where hidden values are large, or below the normal range. With ``dtype=torch.float64`` the worst case is
    negligible. If the answer at one of ``eps`` may depend on it, the image is evaluated in float64 as well, with the
    same effective weights, and e counts once, for the perturbed image. TF32 and autocast are off meanwhile.

    A model with one output, (n,) or (n, 1), has two classes: label 1 if its score f is above the threshold t, else
    label 0 (or -1). Then r = max(0, |f - t| - 2 e) / (L + g) where the prediction is right.

    The layers are evaluated one after the other. The model's own outputs for each batch must agree with theirs up to
    2 e, which costs another forward, and so must the outputs for the first image alone, or next to one other.

    Radii and eps are in L2 norm, or in the weighted norm of a network that begins with
    :class:`fastlip.nn.InputWeights`: the certificate's ``norm`` says which. ``lp_radii(2, weighted=False)`` then are
    those in L2 norm.

    :func:`fastlip.certify_outputs` and :func:`fastlip.certify_segmentation` begin the certificates of other tasks:
    regression, top-k and targeted ones, anomaly detection, conformal sets, segmentation.

    Args:
        model: in eval mode. Parameters in 16 bits are raised to float32 in a copy, which is what is certified.
        loader: batches of images (n, \*input_shape) and integer or one-hot labels: pairs, longer tuples, or dicts
            with usual keys such as ``"image"`` and ``"label"``, of tensors or NumPy arrays. A whole set is divided
            into batches: a pair of tensors or arrays, a ``torch.utils.data.Dataset``, or a Hugging Face data set.
        eps: the radii at which CRA is reported, one or several, at least 0; default 36/255, 72/255, 108/255, 1.
        input_shape: the shape of one image; default None takes that of the first batch.
        device: where to run; default None is where the model is. The model itself is not moved.
        dtype: ``torch.float32`` or ``torch.float64`` certifies a copy of the model in that type; default None
            certifies the model as it is.
        per_class: keeps r_j for every sample and class, (n, c) float64, as ``class_radii``; default False.
        progress: shows a progress bar; default False.
        rounding: ``"worst-case"`` (default) or ``"probabilistic"``: which bound of rounding errors is subtracted from
            the margins.
        bounds: the least and largest value that images may have, numbers or tensors that broadcast to an image.
            Images outside are refused, since radii are in their units. Default None allows any, and warns of 8-bit
            images that are standardised or not divided by 255. Radii that exceed half the diagonal of the images'
            box, as 36 in place of 36/255 does, bring a warning.
        threshold: the score above which a model with one output predicts label 1, rounded to the dtype of the
            outputs; default 0. With several outputs it must be 0.

    Returns:
        A :class:`Certificate`.

    Raises:
        TypeError: modules that the audit does not understand, all named.
        ValueError: a model in training mode, or with parameters that change meanwhile; NaN or Inf in parameters,
            images or outputs (naming batch and layer); outputs that are not those of the audited layers, or depend
            on the number of images in a batch; images outside of the bounds or of another shape than the model was
            built for; labels out of range; an empty loader; a negative eps; another dtype or name of rounding; a
            threshold for several outputs.

    Example:
        >>> model = fastlip.models.lip_conv_net("aol", width=8, image_size=8, in_channels=1).eval()
        >>> images = torch.rand(4, 1, 8, 8)
        >>> certificate = fastlip.certify(model, [(images, model(images).argmax(1))], eps=[0.001])
        >>> certificate.accuracy, bool(certificate.lipschitz <= 1.001)
        (1.0, True)
    """
    eps = radii_of(eps)
    if per_class:
        boolean("per_class", per_class)
    with certifying(model, device, dtype, rounding) as (model, parameter):
        batches = bar(batches_of(loader), "certify", progress)
        each = evaluated(model, parameter, batches, input_shape, rounding, bounds, eps=eps)
        outcome, found = _run(each, eps, per_class, threshold)
    correct = outcome["margin"] > 0
    radii = torch.where(correct, outcome["radius"], 0.0)
    joint = torch.where(correct, outcome["joint"], 0.0)
    return Certificate(
        accuracy=correct.double().mean().item(),
        cra={float(value): (radii > value).double().mean().item() for value in eps},
        joint_cra={float(value): (joint > value).double().mean().item() for value in eps},
        radii=radii,
        margins=outcome["margin"],
        labels=outcome["label"],
        predictions=outcome["prediction"],
        lipschitz=found.bound,
        rounding=outcome["error"].amax().item(),
        n=len(radii),
        audit=found,
        rounding_model=rounding,
        class_radii=outcome.get("class_radii"),
        threshold=float(threshold),
    )


def _run(
    batches: Iterable[Evaluated], eps: Sequence[float], per_class: bool, threshold: float
) -> tuple[dict[str, Tensor], Audit]:
    """The measurements of all batches by name, and the audit."""
    parts: dict[str, list[Tensor]] = {}
    audits: list[Audit] = []
    for x, outputs, labels, error, prepared in batches:
        audits = [prepared.audit]
        slopes = Slopes(prepared.audit.bound, prepared.slopes)
        scores, exact = above(threshold, outputs, partial(prepared.exact, x))
        measured = measure(scores, cast(Tensor, labels), error, slopes, eps, exact)
        if not per_class:
            del measured["class_radii"]
        for name, value in measured.items():
            parts.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(values) for name, values in parts.items()}, audits[0]
