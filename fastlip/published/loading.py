"""Published checkpoints of LiResNet and BRONet as fastlip models that compute the same function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastlip.models.quasi_residual import QuasiResidualNet
from fastlip.published.building import build
from fastlip.published.entries import opened


def load_published(checkpoint: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> QuasiResidualNet:
    """Returns the model of a checkpoint of LiResNet or BRONet, which computes the same function, in evaluation mode.

    The checkpoints are those that the training scripts of ``hukkai/liresnet`` (Hu, Leino, Wang, Fredrikson, *A Recipe
    for Improved Certifiable Robustness*, ICLR 2024) and ``ntuaislab/BRONet`` (Lai, Huang, Kung, Chien, *Enhancing
    Certified Robustness via Block Reflector Orthogonal Layers and Logit Annealing Loss*, ICML 2025) write. Sizes and
    kinds of layers are read from the entries. The model has their dtype, or float32 where that has sixteen bits.

    The model keeps the published function and its parameters:

    - It takes images in [0, 1], from which it subtracts 1/2.
    - The stem and LiResNet's convolutions are not 1-Lipschitz, in training neither. The audit bounds them.
    - Cholesky factors and block reflectors have the published ridges, with which their norms are at most 1.
    - Stored copies of dense layers (``eval_weight``) are left out: the published evaluation computes them again.
    - In training, LiResNet's blocks are centred as a whole; the published code centres what is added to the identity.

    :func:`fastlip.audit_published` compares the published constant with the audited one.

    Args:
        checkpoint: what ``torch.load`` gives: the dict with the weights under ``backbone``, a state dict, or a dict
            with one state dict; names may have the prefixes ``module.`` and ``_orig_mod.``.
        config: the section ``model`` of the authors' configuration file, for what weights do not show; default
            None: that of the checkpoint's ``configs``, or the published defaults.

    Returns:
        A ``fastlip.models.QuasiResidualNet``: (n, 3, side, side) -> (n, classes).

    Raises:
        TypeError: checkpoint has no mapping of names to tensors, or config is none.
        ValueError: entries that are missing, left over, of another shape or dtype, or not finite, by name; several
            state dicts, such as that of a moving average; a field of the configuration that this reader does not
            support.

    Example:
        >>> fastlip.load_published({"backbone": {}})
        Traceback (most recent call last):
        ...
        ValueError: checkpoint: has no entry 'stem.0.weight', which LiResNet and BRONet have
    """
    return build(*opened(checkpoint, config))
