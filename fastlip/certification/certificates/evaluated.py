"""The first part of every certificate: checks a model, and follows each batch through it with bounds of rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastlip.certification.batches import check_batch, check_bounds, check_declared, check_inputs
from fastlip.certification.certificates.prepared import Prepared
from fastlip.certification.rounding import Rounded, RoundingModel, check_model_name
from fastlip.inspection.evaluation import (
    Unchanged,
    certified_precision,
    check_model,
    check_shape,
    from_parameters,
    prepare,
)
from fastlip.inspection.sameness import check_batch_outputs
from fastlip.inspection.standardised import warn_of_large_eps, warn_of_units

# The least and largest value that images may have, numbers or tensors that broadcast to an image; None: any.
ImageBounds = tuple[float | Tensor, float | Tensor] | None


class Evaluated(NamedTuple):
    """A batch that has passed through a model.

    Attributes:
        x: the images, as the model took them.
        outputs: the model's, finite.
        labels: the labels or targets of the batch; None if it has none.
        error: bounds of the errors of the outputs.
        prepared: the audited model, the same for all batches.
    """

    x: Tensor
    outputs: Tensor
    labels: Tensor | None
    error: Rounded
    prepared: Prepared


@contextmanager
def certifying(
    model: nn.Module, device: Any, dtype: torch.dtype | None, rounding: RoundingModel
) -> Iterator[tuple[nn.Module, Tensor]]:
    """Checks a model, and yields it or a copy on the device and in the dtype, with a tensor like its inputs."""
    check_model(model, dtype)
    check_model_name(rounding)
    model, parameter = prepare(model, device, dtype)
    with certified_precision(parameter.device.type), torch.no_grad(), from_parameters(model):
        yield model, parameter


def evaluated(
    model: nn.Module,
    parameter: Tensor,
    loader: Iterable[Any],
    input_shape: tuple[int, ...] | None,
    rounding: RoundingModel,
    bounds: ImageBounds,
    *,
    labelled: bool = True,
    eps: Sequence[float] = (),
) -> Iterator[Evaluated]:
    """Yields every batch with the outputs of the audited layers, which are those of the model.

    Args:
        model: see :func:`certifying`, as ``parameter``.
        parameter: a tensor of the dtype and device of the model's inputs.
        loader: batches of images with labels, or of images alone unless ``labelled``.
        input_shape: the shape of one image; None takes that of the first batch.
        rounding: the name of a model of rounding.
        bounds: see :data:`ImageBounds`.
        labelled: whether each batch must have labels.
        eps: the radii that a user gave; a warning says where they are out of all proportion.

    Raises:
        ValueError: an empty loader, or one of empty batches, which count for nothing; images of another shape.
    """
    if input_shape is not None:
        check_shape(input_shape)
    prepared, unchanged = None, Unchanged(model)
    for index, batch in enumerate(loader):
        images, labels = check_batch(index, batch) if labelled else check_inputs(index, batch)
        check_bounds(index, images, bounds)
        if not len(images):
            continue
        if prepared is None and bounds is None:
            warn_of_units(images)
        if input_shape is None:
            check_declared(model, index, images)
        shape = tuple(images.shape[1:])
        input_shape = shape if input_shape is None else tuple(input_shape)
        if shape != input_shape:
            raise ValueError(f"input_shape={input_shape}: batch {index} has images of {shape}")
        x, known = images.to(parameter), None
        if prepared is None:
            prepared = Prepared(model, input_shape, rounding, parameter.device, x[:1])
            known = prepared.first
            if max(eps, default=0.0) > 1 and prepared.audit.norm.weights is None:
                warn_of_large_eps(eps, images, bounds)
        outputs, error = prepared.forward(index, x.clone())
        check_batch_outputs(index, model, x, outputs, error.error, known)
        unchanged.check(index)
        yield Evaluated(x, outputs, labels, error, prepared)
    if prepared is None:
        raise ValueError("loader: it has no batches, or only empty ones")
