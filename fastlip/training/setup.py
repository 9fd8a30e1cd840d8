"""What a recipe stands for: model, loss, optimiser, schedule, batches, device and threads."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from fastlip import losses
from fastlip.data import Batches, Data, Images
from fastlip.data.batches import Augmentation
from fastlip.models import lip_conv_net, sll_net
from fastlip.training.recipe import Recipe


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


def device_of(recipe: Recipe) -> torch.device:
    """The device that the recipe names; ValueError if it is not there."""
    if recipe.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(recipe.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device={recipe.device!r}: cannot be used here: {reason}") from None
    return device


def model_of(recipe: Recipe, data: Data) -> nn.Module:
    """The recipe's network for the data's images and classes, on the recipe's device."""
    c, h, _ = data.shape
    sizes: dict[str, Any] = {
        "size": recipe.size,
        "num_classes": len(data.classes),
        "image_size": h,
        "in_channels": c,
        "width": recipe.width or None,
        "backend": recipe.backend,
    }
    if recipe.model == "sll_net":
        model = sll_net(**sizes)
    else:
        model = lip_conv_net(recipe.method, **sizes, layers_per_block=recipe.layers_per_block)
    model = model.to(device_of(recipe))
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model


def loss_of(recipe: Recipe) -> nn.Module:
    """The recipe's loss."""
    if recipe.loss == "offset-ce":
        return losses.OffsetCrossEntropy(offset=recipe.offset, temperature=recipe.temperature)
    if recipe.loss == "temperature-ce":
        return losses.TemperatureCrossEntropy(temperature=1 / recipe.temperature)
    return losses.MulticlassHKR(alpha=recipe.alpha, min_margin=recipe.min_margin)


def optimizer_of(recipe: Recipe, model: nn.Module) -> SGD:
    """SGD over all parameters."""
    return SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def scheduler_of(recipe: Recipe, optimizer: SGD, steps_per_epoch: int) -> OneCycleLR:
    """OneCycle over the whole run: the learning rate rises, then falls to nothing."""
    return OneCycleLR(
        optimizer,
        max_lr=recipe.lr,
        total_steps=recipe.epochs * steps_per_epoch,
        pct_start=recipe.warmup,
        cycle_momentum=False,
    )


def batches_of(recipe: Recipe, data: Data, images: Images, *, augment: bool = False) -> Batches:
    """Batches of these images as the recipe trains (augmented) or evaluates on them."""
    return Batches(
        images,
        data.divisor,
        recipe.batch_size,
        mean=data.mean if recipe.center else (),
        seed=recipe.seed,
        augmentation=Augmentation(recipe.shift, recipe.flip) if augment else None,
        device=device_of(recipe),
        channels_last=recipe.channels_last,
    )
