"""The set that an attack may search: for each image a ball in the norm of the inputs, cut by bounds of values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Bounds = tuple[float | Tensor, float | Tensor] | None


def per_image(values: Tensor, x: Tensor) -> Tensor:
    """(b,) values, shaped so that they broadcast against the images x (b, ...)."""
    return values.view(-1, *(1,) * (x.dim() - 1))


def normalized(x: Tensor) -> Tensor:
    """Each image divided by its L2 norm; zeros stay zeros."""
    norms = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return x / per_image(norms.clamp_min(torch.finfo(x.dtype).tiny), x)


@dataclass(frozen=True)
class Ball:
    """Images within ``radius`` (b,) of ``center`` (b, ...), each entry between ``low`` and ``high`` (b, ...).

    Distances are L2 norms of differences times ``weights``, which broadcast to an image; None: of differences.
    """

    center: Tensor
    radius: Tensor
    low: Tensor
    high: Tensor
    weights: Tensor | None = None

    @classmethod
    def around(cls, x: Tensor, radius: Tensor, low: Tensor, high: Tensor, weights: Tensor | None = None) -> Ball:
        r"""The ball of float64 radius, minus what rounding could add to a distance.

        An image is rounded by at most u |entry| in each of its d entries, that is u sqrt(d) (|x|_inf + radius)
        in norm; the norm of a difference is off by a factor of at most 1 + u d in the worst case, and
        1 + u sqrt(d) as independent roundings add up. With weights, x stands for w x here.
        """
        unit = torch.finfo(x.dtype).eps
        radius = radius.clamp_max(torch.finfo(x.dtype).max ** 0.25)  # constant functions are certified everywhere
        root = x[0].numel() ** 0.5
        weighted = x.double() if weights is None else x.double() * weights
        largest = weighted.flatten(1).abs().amax(1) + radius
        inside = radius * (1 - 2 * unit * root) - unit * root * largest
        return cls(x, inside.clamp_min(0).to(x.dtype), low, high, None if weights is None else weights.to(x.dtype))

    def project(self, x: Tensor) -> Tensor:
        """Pulls x into the ball, then its entries into the bounds, which the centre keeps: still in the ball."""
        moved = x - self.center
        weighted = moved if self.weights is None else moved * self.weights
        norms = torch.linalg.vector_norm(weighted.flatten(1), dim=1).clamp_min(torch.finfo(x.dtype).tiny)
        shrink = (self.radius / norms).clamp_max(1)
        return self.clip(self.center + moved * per_image(shrink, x))

    def clip(self, x: Tensor) -> Tensor:
        """Entries of x pulled into the bounds."""
        return torch.clamp(x, self.low, self.high)

    def step(self, x: Tensor, gradient: Tensor, length: Tensor) -> Tensor:
        """The projection of x moved by ``length`` (b,) where it climbs most: along the gradient, or that over w^2."""
        if self.weights is None:
            return self.project(x + per_image(length, x) * normalized(gradient))
        return self.project(x + per_image(length, x) * normalized(gradient / self.weights) / self.weights)

    def random(self, generator: torch.Generator) -> Tensor:
        """A uniformly random point of each sphere, clipped to the bounds."""
        noise = torch.randn(self.center.shape, generator=generator, dtype=self.center.dtype, device=generator.device)
        noise = noise.to(self.center.device)
        return self.step(self.center, noise if self.weights is None else noise * self.weights, self.radius)
