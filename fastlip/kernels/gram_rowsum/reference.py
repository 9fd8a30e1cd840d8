"""Weighted absolute row sums of a convolution's Gram operator (Prach & Lampert 2022; Araujo et al. 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gram_rowsum(weight: Tensor, psi: Tensor | None, groups: int) -> Tensor:
    """r_i = Σ_{j,δ} |v[i,j,δ]| exp(ψ_j − ψ_i), with j in the group of i."""
    absolute = gram(weight, groups).abs().sum(-1)
    if psi is None:
        return absolute.sum(2).flatten()
    psi = psi.view(groups, -1)
    # A pair with v = 0 counts as 0 although exp may overflow: 0 · inf would be NaN, in the gradient too.
    difference = torch.where(absolute > 0, psi[:, None, :] - psi[:, :, None], 0)
    return (absolute * difference.exp()).sum(2).flatten()


def gram(weight: Tensor, groups: int) -> Tensor:
    """v[g,i,j,δ] = Σ_{o,τ} W[o,i,τ] W[o,j,τ+δ] over the group's output channels; δ is flattened."""
    per_group = weight.unflatten(0, (groups, weight.shape[0] // groups))
    if weight.dim() == 2 or weight.numel() == 0:
        per_group = per_group.flatten(3) if weight.dim() > 2 else per_group[..., None]
        return torch.einsum("goit,gojt->gij", per_group, per_group)[..., None]
    correlate = (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3]
    images = weight.transpose(0, 1)  # [j, (g o), τ+δ]
    kernels = per_group.transpose(1, 2).flatten(0, 1)  # [(g i), o, τ]
    v = correlate(images, kernels, padding=[k - 1 for k in weight.shape[2:]], groups=groups)
    return v.flatten(2).unflatten(1, (groups, -1)).permute(1, 2, 0, 3)
