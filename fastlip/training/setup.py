"""Builds what a recipe names: model, batches, device and threads."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from fastlip.data import Batches, Data, DatasetName, ImageOperations, Images, Share, load
from fastlip.data.batches import Augmentation, Operations
from fastlip.data.mixing import MixedBatches, extra_images
from fastlip.data.operations import AugmentName
from fastlip.data.own import from_function, is_place
from fastlip.data.own_operations import OwnOperations
from fastlip.models import create_model
from fastlip.models.catalog import model_named
from fastlip.official import published_conv_net
from fastlip.training.recipe import Recipe
from fastlip.training.sharing import buffers_kept


def prepare_process(recipe: Recipe) -> None:
    """Seeds every generator, and sets threads and determinism for this process."""
    random.seed(recipe.seed)
    np.random.seed(recipe.seed % 2**32)
    torch.manual_seed(recipe.seed)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    if recipe.deterministic:
        # cuBLAS reads this when it starts; without it torch refuses to promise determinism on a GPU.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def data_of(recipe: Recipe) -> Data:
    """The recipe's data set; for ``module:function`` that function runs."""
    if is_place(recipe.data):
        return from_function(recipe.data)
    return load(cast(DatasetName, recipe.data), recipe.path, recipe.image_size)


def device_of(recipe: Recipe) -> torch.device:
    """The device that the recipe names; ValueError if it cannot be used."""
    if recipe.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if recipe.device.startswith("meta"):
        raise ValueError(f"device={recipe.device!r}: cannot be used here, because it computes nothing")
    try:
        device = torch.device(recipe.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device={recipe.device!r}: cannot be used here: {reason}") from None
    return device


def model_of(recipe: Recipe, data: Data) -> nn.Module:
    """The recipe's network for the data's images and classes, on the recipe's device."""
    return network_of(recipe, data.shape, len(data.classes))


def network_of(recipe: Recipe, shape: Sequence[int], classes: int) -> nn.Module:
    """The recipe's network for images of this shape (c, h, w) and this number of classes, on the recipe's device.

    Raises:
        ValueError: a device that cannot be used, or a network that does not fit into its memory.
    """
    device = device_of(recipe)
    try:
        model = _network(recipe, shape, classes).to(device)
    except (MemoryError, RuntimeError) as error:
        # The CPU's allocator has no error type of its own.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        sizes = f"size={recipe.size!r}, width={recipe.width}, layers_per_block={recipe.layers_per_block}"
        raise ValueError(f"{sizes}: the network does not fit into memory") from error
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model


def count_weights(recipe: Recipe, shape: Sequence[int], classes: int) -> int:
    """The number of values in the state dict of the recipe's network, counted without taking memory for them."""
    with torch.device("meta"):
        return sum(value.numel() for value in _network(recipe, shape, classes).state_dict().values())


def _network(recipe: Recipe, shape: Sequence[int], classes: int) -> nn.Module:
    channels, side, _ = shape
    options: dict[str, Any] = {
        "size": recipe.size,
        "num_classes": classes,
        "image_size": side,
        "in_channels": channels,
        "width": recipe.width or None,
        "backend": recipe.backend,
    }
    if recipe.model == "published_conv_net":
        options |= {"method": recipe.method, "layers_per_block": recipe.layers_per_block}
        return published_conv_net(**options)
    for name in model_named(recipe.model).fields:
        value = getattr(recipe, name)
        if isinstance(value, bool) or value:
            options[name] = value
    return create_model(recipe.model, **options)


def compiled(model: nn.Module, shape: Sequence[int]) -> nn.Module:
    """The model under ``torch.compile``, for training on images of this shape (c, h, w)."""
    # Kernels are looked up when they are first called, which a compiler cannot follow.
    with torch.no_grad(), buffers_kept(model):
        model.train()(torch.zeros(2, *shape, device=next(model.parameters()).device))
    return cast(nn.Module, torch.compile(model))


def batches_of(
    recipe: Recipe, data: Data, images: Images, *, augment: bool = False, share: Share | None = None
) -> Batches:
    """Batches of these images as the recipe trains or evaluates on them.

    Args:
        recipe: batch size, scale, augmentation and device.
        data: the data set of the images.
        images: its training or test images.
        augment: whether to change the images and to mix them with the extra ones, as in training.
        share: this process's part of each batch; None: all of it.

    Raises:
        ValueError: shifts that could move a whole image out of sight, operations that images of this number of
            channels do not have, or extra images that cannot be read or do not fit.
    """
    if recipe.shift >= min(data.shape[1:]):
        raise ValueError(f"shift={recipe.shift}: must be below the {min(data.shape[1:])} pixels of an image's side")
    options: dict[str, Any] = {
        "mean": data.mean if recipe.center else (),
        "seed": recipe.seed,
        "device": device_of(recipe),
        "channels_last": recipe.channels_last,
        "share": share,
        "workers": recipe.workers,
    }
    if not augment:
        return Batches(images, data.divisor, recipe.batch_size, **options)
    options["augmentation"] = Augmentation(recipe.shift, recipe.flip)
    options["operations"] = _operations_of(recipe, data)
    if not recipe.extra_data:
        return Batches(images, data.divisor, recipe.batch_size, **options)
    extra = extra_images(recipe.extra_data, data)
    return MixedBatches(images, extra, recipe.extra_ratio, data.divisor, recipe.batch_size, **options)


def _operations_of(recipe: Recipe, data: Data) -> Operations | None:
    if recipe.augment == "none":
        return None
    if is_place(recipe.augment):
        return OwnOperations(recipe.augment, recipe.augment_probability)
    if data.shape[0] not in (1, 3):
        raise ValueError(
            f"augment={recipe.augment!r}: needs images of 1 or 3 channels, {data.name} has {data.shape[0]}"
        )
    settings = recipe.augment_operations, recipe.augment_magnitude, recipe.augment_probability, recipe.augment_by
    return ImageOperations(cast(AugmentName, recipe.augment), *settings)
