"""The base of all losses: reduction over samples, and the name under which recipes know a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch.distributed as dist
from torch import Tensor, nn

from fastlip._names import constructor_lists_keywords, lists_keywords

Reduction = Literal["mean", "auto", "sum", "none"]


class Loss(nn.Module):
    """Base class of the losses: a subclass computes one value per sample in ``forward`` and calls :meth:`reduce`.

    A loss with a ``recipe_name`` is a choice of ``fastlip train --loss``; it then implements :meth:`from_recipe`.

    Attributes:
        recipe_name: name of the loss in recipes, such as ``"offset-ce"``; empty for losses that no recipe uses.
        whole_batch: whether a sample's loss depends on the other samples. Training then neither splits a batch into
            parts nor accepts a process without samples.
        takes_slopes: whether ``forward`` takes the slopes of :func:`fastlip.losses.class_slopes` as a third argument,
            which training then passes.

    Args:
        reduction: ``"mean"`` (default) or ``"auto"`` averages over samples, ``"sum"`` adds, ``"none"`` returns one
            value per sample.

    Raises:
        ValueError: the reduction is none of these.

    Examples:
        >>> class Distance(fastlip.losses.Loss):
        ...     def forward(self, scores, targets):
        ...         return self.reduce((scores - targets).abs())
        >>> Distance("sum")(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]))
        tensor(3.)
    """

    recipe_name: ClassVar[str] = ""
    whole_batch: ClassVar[bool] = False
    takes_slopes: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any):
        """The error for an argument that a loss does not have lists those that it has."""
        super().__init_subclass__(**options)
        constructor_lists_keywords(cls)

    @lists_keywords
    def __init__(self, reduction: Reduction = "mean"):
        super().__init__()
        if reduction not in get_args(Reduction):
            raise ValueError(f"reduction={reduction!r}: allowed are {', '.join(map(repr, get_args(Reduction)))}")
        self.reduction = reduction

    @classmethod
    def from_recipe(cls, options: Mapping[str, Any], reduction: Reduction, multi_gpu: bool) -> Loss:
        """Returns the loss that a recipe describes. Losses with a ``recipe_name`` implement it.

        Args:
            options: the keys of the recipe's table ``[loss]`` and their values, such as ``options["temperature"]``.
            reduction: as in the constructor.
            multi_gpu: whether a loss that depends on the whole batch uses the batch of all processes.

        Raises:
            NotImplementedError: no recipe describes this loss.
        """
        raise NotImplementedError(f"{cls.__name__}: no recipe describes this loss")

    def reduce(self, losses: Tensor, multi_gpu: bool = False) -> Tensor:
        """Reduces the losses of samples as ``reduction`` says.

        Args:
            losses: one value per sample, (n,).
            multi_gpu: whether a mean counts the samples of all processes: the average of the processes' results is
                then the mean over all samples; default False.

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        if self.reduction == "none":
            return losses
        if self.reduction == "sum":
            return losses.sum()
        if not multi_gpu:
            return losses.mean()
        count = sum_over_processes(losses.new_full((), len(losses)), multi_gpu)
        return losses.sum() * (dist.get_world_size() / count)

    def reduce_weighted(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Reduces weighted losses: a mean divides by the sum of the weights, not by the number of samples.

        Args:
            losses: one value per sample, (n,), which the weight has multiplied already.
            weights: weight of each sample, (n,).

        Returns:
            A scalar; (n,) with ``reduction="none"``.
        """
        if self.reduction in ("none", "sum"):
            return self.reduce(losses)
        return losses.sum() / weights.sum()


def sum_over_processes(value: Tensor, multi_gpu: bool) -> Tensor:
    """The sum of value over all processes, in place; value itself unless multi_gpu. ValueError without a group."""
    if multi_gpu:
        if not dist.is_initialized():
            raise ValueError("multi_gpu=True: torch.distributed is not initialised")
        dist.all_reduce(value)
    return value
