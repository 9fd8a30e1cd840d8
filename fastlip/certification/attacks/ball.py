"""The set that an attack may search: for each image a ball in L2 norm, cut by the bounds of pixel values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Bounds = tuple[float | Tensor, float | Tensor] | None


def distances(x: Tensor, y: Tensor) -> Tensor:
    """(b,): the L2 distance of each pair of images, computed in float64."""
    return torch.linalg.vector_norm((x.double() - y.double()).flatten(1), dim=1)


def per_image(values: Tensor, x: Tensor) -> Tensor:
    """(b,) values, shaped so that they broadcast against the images x (b, ...)."""
    return values.view(-1, *(1,) * (x.dim() - 1))


def normalized(x: Tensor) -> Tensor:
    """Each image divided by its L2 norm; zeros stay zeros."""
    norms = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return x / per_image(norms.clamp_min(torch.finfo(x.dtype).tiny), x)


@dataclass(frozen=True)
class Ball:
    """Images within ``radius`` (b,) of ``center`` (b, ...), each entry between ``low`` and ``high`` (b, ...)."""

    center: Tensor
    radius: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, x: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> Ball:
        r"""The ball of float64 radius, minus what rounding could add to a distance.

        An image is rounded by at most u |entry| in each of its d entries, that is u sqrt(d) (|x|_inf + radius)
        in norm; the norm of a difference is off by a factor of at most 1 + u d in the worst case, and
        1 + u sqrt(d) as independent roundings add up.
        """
        unit = torch.finfo(x.dtype).eps
        radius = radius.clamp_max(torch.finfo(x.dtype).max ** 0.25)  # constant functions are certified everywhere
        root = x[0].numel() ** 0.5
        largest = x.double().flatten(1).abs().amax(1) + radius
        inside = radius * (1 - 2 * unit * root) - unit * root * largest
        return cls(x, inside.clamp_min(0).to(x.dtype), low, high)

    def project(self, x: Tensor) -> Tensor:
        """Pulls x into the ball, then its entries into the bounds, which the centre keeps: still in the ball."""
        moved = x - self.center
        norms = torch.linalg.vector_norm(moved.flatten(1), dim=1).clamp_min(torch.finfo(x.dtype).tiny)
        shrink = (self.radius / norms).clamp_max(1)
        return self.clip(self.center + moved * per_image(shrink, x))

    def clip(self, x: Tensor) -> Tensor:
        """Entries of x pulled into the bounds."""
        return torch.clamp(x, self.low, self.high)

    def step(self, x: Tensor, gradient: Tensor, length: Tensor) -> Tensor:
        """The projection of x moved along the gradient by ``length`` (b,)."""
        return self.project(x + per_image(length, x) * normalized(gradient))

    def random(self, generator: torch.Generator) -> Tensor:
        """A uniformly random point of each sphere, clipped to the bounds."""
        noise = torch.randn(self.center.shape, generator=generator, dtype=self.center.dtype, device=generator.device)
        return self.step(self.center, noise.to(self.center.device), self.radius)
