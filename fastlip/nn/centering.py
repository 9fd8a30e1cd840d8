"""Centering: normalisation without scaling, which keeps a Lipschitz constant of 1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastlip.kernels.common.checks import boolean
from fastlip.kernels.common.literals import Device
from fastlip.nn._recorded import WholeModule
from fastlip.nn._running import move
from fastlip.nn._sigma import is_recomputed
from fastlip.nn.arguments import make_bias, positive_int, require_floating
from fastlip.nn.base import at_least_float32
from fastlip.nn.initial import zero_

_UNIT = 2.0**16  # entries are counted in units that no dtype overflows with


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(c,) in the dtype and shape in which it is added to x (n, c, ...)."""
    return values.to(x.dtype).view(-1, *[1] * (x.dim() - 2))


def _check_channels(num_features: int, x: Tensor) -> None:
    if x.dim() < 2 or x.shape[1] != num_features:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (n, {num_features}, ...)")
    require_floating(x)


class BatchCentering(WholeModule):
    r"""Subtracts the mean of each channel over the batch, then adds a bias: batch normalisation without the scaling.

    .. math:: y = x - \mu + b, \qquad \mu = \frac{1}{N} \sum_{\text{samples, pixels}} x \;\text{ in training,}
              \qquad \mu = m \;\text{ in evaluation,} \quad m \leftarrow (1 - \gamma) m + \gamma \mu

    In evaluation a translation: an isometry, 1-Lipschitz. BRONet and LiResNet put it before the activation
    (Lai et al., *Enhancing Certified Robustness via Block Reflector Orthogonal Layers and Logit Annealing Loss*,
    ICML 2025). ``fastlip.export`` adds b - m to the bias of the layer before it.

    In training by several processes mu is the mean over the batches of all of them, whatever their sizes, and so is
    its gradient: the step is that of one process with the whole batch. With gradient accumulation each part of a
    batch is centred by its own mean, as every layer with batch statistics; ``accumulate`` parts update m once, by
    the mean over all of them, as one batch does. Evaluation changes no buffer, and activation checkpointing updates
    m once.

    Args:
        num_features: number of channels c.
        momentum: gamma, from 0 (exclusive) to 1; default 0.1.
        bias: whether b is learnt; without it b = 0; default True.
        accumulate: number of training forwards that update m together; default 1.
        sync: whether processes of ``torch.distributed`` share their means; default True.
        device: of the parameter and buffers; default None: torch's default device.
        dtype: of the parameter and buffers; default None: torch's default dtype.

    Shapes: (n, c, ...) to the same. Parameter: ``bias`` (c). Buffers: ``running_mean`` (c), and with ``accumulate``
    above 1 ``pending`` (c + 2): mean, number of entries / 2^16 and number of forwards since the last update.

    Raises:
        ValueError: an argument out of range, another number of channels, or training mode inside ``torch.func.grad``
            or ``vmap``, which cannot update the running mean.
        TypeError: num_features or accumulate is no int; x is no floating-point tensor.

    >>> layer = lip.BatchCentering(2)
    >>> layer(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    tensor([[-1.,  0.],
            [ 1.,  0.]], grad_fn=<AddBackward0>)
    >>> layer.running_mean
    tensor([0.2000, 0.5000])
    """

    bias: nn.Parameter | None
    running_mean: Tensor
    pending: Tensor | None
    # Set by BatchInParts: where to note means in place of an update, and whether the samples count.
    _noted: list[tuple[Tensor, Tensor]] | None = None
    _counted: bool = True

    def __init__(
        self,
        num_features: int,
        momentum: float = 0.1,
        bias: bool = True,
        accumulate: int = 1,
        sync: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum={momentum!r}: expected a number above 0 and at most 1")
        self.num_features = positive_int("num_features", num_features)
        self.momentum, self.sync = momentum, boolean("sync", sync)
        self.accumulate = positive_int("accumulate", accumulate)
        self.bias = make_bias(num_features, bias, device, dtype)
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype))
        pending = torch.zeros(num_features + 2, device=device, dtype=dtype)
        self.register_buffer("pending", pending if accumulate > 1 else None)

    def reset_parameters(self) -> None:
        """Bias and running mean 0."""
        zero_(self.bias)
        self.running_mean.zero_()
        if self.pending is not None:
            self.pending.zero_()

    def shift(self) -> Tensor:
        """(c,): b - m, what evaluation adds, in at least float32."""
        mean = at_least_float32(self.running_mean)
        return -mean if self.bias is None else at_least_float32(self.bias) - mean

    def forward(self, x: Tensor) -> Tensor:
        """x, centred."""
        _check_channels(self.num_features, x)
        if not self.training:
            return x + per_channel(self.shift(), x)
        total, count = self._sum(x)
        mean = total / count.clamp_min(1)
        if not is_recomputed():
            if self._noted is None:
                self._update(mean.detach(), count)
            else:
                self._noted.append((mean.detach(), count))
        return x + per_channel(-mean if self.bias is None else at_least_float32(self.bias) - mean, x)

    def _sum(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(c,) and (1,): the sums over samples and pixels, and the number of summands, over all processes."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        total = x.sum((0, *range(2, x.dim())), dtype=dtype)
        count = total.new_full((1,), x.numel() // self.num_features)
        if not self._counted:
            total, count = 0 * total, 0 * count
        if self.sync and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            both = _SumOfProcesses.apply(torch.cat((total, count)))
            total, count = both[:-1], both[-1:].detach()
        return total, count

    @torch.no_grad()
    def _update(self, mean: Tensor, count: Tensor) -> None:
        """Moves the running mean towards the mean of ``count`` entries; an empty batch moves nothing."""
        complete = torch.ones_like(count, dtype=torch.bool)
        if self.pending is not None:
            before = self.pending.to(mean.dtype)
            seen, forwards = before[-2:-1] + count / _UNIT, before[-1:] + 1
            share = count / _UNIT / torch.where(seen > 0, seen, 1)
            mean, count = before[:-2] + share * (mean - before[:-2]), seen
            complete = forwards >= self.accumulate
            move(self, self.pending, torch.where(complete, 0, torch.cat((mean, seen, forwards))))
        before = self.running_mean.to(mean.dtype)
        weight = self.momentum * (complete & (count > 0))
        move(self, self.running_mean, before + weight * (mean - before))

    def extra_repr(self) -> str:
        """The arguments."""
        options = f"momentum={self.momentum}, bias={self.bias is not None}, accumulate={self.accumulate}"
        return f"{self.num_features}, {options}, sync={self.sync}"


class BatchInParts:
    """A batch that a model in training takes in several forwards: running means of centering move once.

    Args:
        model: the network; its :class:`BatchCentering` layers note their means in :meth:`part`.
    """

    def __init__(self, model: nn.Module):
        self.layers = [layer for layer in model.modules() if isinstance(layer, BatchCentering)]
        self.parts: list[list[list[tuple[Tensor, Tensor]]]] = [[] for _ in self.layers]

    @contextmanager
    def part(self, counted: bool = True) -> Iterator[None]:
        """In this context one forward takes the next part of the batch.

        Args:
            counted: whether the samples of the part belong to the batch; if not, no mean has them.
        """
        for layer in self.layers:
            layer._noted, layer._counted = [], counted
        try:
            yield
            for layer, parts in zip(self.layers, self.parts, strict=True):
                parts.append(layer._noted or [])
        finally:
            for layer in self.layers:
                layer._noted, layer._counted = None, True

    def close(self) -> None:
        """Moves the running means by those of the whole batch, in the order of the calls of a layer in a forward."""
        for layer, parts in zip(self.layers, self.parts, strict=True):
            for calls in zip(*parts, strict=True):
                means, counts = (torch.stack(values) for values in zip(*calls, strict=True))
                count = counts.sum(0)
                layer._update((means * counts).sum(0) / count.clamp_min(1), count)


class _SumOfProcesses(torch.autograd.Function):
    """The sum of every process's tensor; its adjoint is the same."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        result = values.clone()
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _SumOfProcesses.apply(gradient.contiguous())


class LayerCentering(WholeModule):
    r"""Subtracts from each sample its own means, then adds a bias: layer normalisation without the scaling.

    .. math:: y = x - \frac{1}{N} \sum_{\text{dim}} x + b

    The same in training and evaluation. An orthogonal projection and a translation: 1-Lipschitz, which is attained
    where the means are over at least two entries.

    Args:
        num_features: number of channels c, the size of dimension 1.
        dim: dimensions over which the means go, counted from the end: (-2, -1) takes one mean for each channel of
            an image (default), (-3, -2, -1) one for the image, -1 one for a vector.
        bias: whether b, a number for each channel, is learnt; without it b = 0; default True.
        device: of the parameter; default None: torch's default device.
        dtype: of the parameter; default None: torch's default dtype.

    Shapes: (n, c, ...) to the same. Parameter: ``bias`` (c).

    Raises:
        ValueError: no dim, one that is not counted from the end or is that of the samples, or, with a bias, another
            number of channels.
        TypeError: num_features is no int; x is no floating-point tensor.

    >>> lip.LayerCentering(1, bias=False)(torch.tensor([[[[1.0, 3.0]]], [[[5.0, 5.0]]]])).flatten(1)
    tensor([[-1.,  1.],
            [ 0.,  0.]])
    """

    bias: nn.Parameter | None
    dim: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        dim: int | tuple[int, ...] = (-2, -1),
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.num_features = positive_int("num_features", num_features)
        self.dim = (dim,) if isinstance(dim, int) else tuple(dim)
        if not self.dim or max(self.dim) >= 0:
            raise ValueError(f"dim={dim!r}: expected dimensions that are counted from the end, such as (-2, -1)")
        self.bias = make_bias(num_features, bias, device, dtype)

    def reset_parameters(self) -> None:
        """Bias 0."""
        zero_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x, centred."""
        if self.bias is not None:
            _check_channels(self.num_features, x)
        require_floating(x)
        if min(self.dim) <= -x.dim():
            raise ValueError(f"dim={self.dim}: expected dimensions of a sample, x has shape {tuple(x.shape)}")
        wide = torch.promote_types(x.dtype, torch.float32)
        y = x - x.mean(self.dim, keepdim=True, dtype=wide).to(x.dtype)
        return y if self.bias is None else y + per_channel(self.bias, x)

    def count(self, input_shape: tuple[int, ...]) -> int:
        """The number of entries in a mean, for samples of this shape.

        Args:
            input_shape: that of one sample, without the batch.
        """
        return math.prod(input_shape[dim] for dim in self.dim)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, dim={self.dim}, bias={self.bias is not None}"
