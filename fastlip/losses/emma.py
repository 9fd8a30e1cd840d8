"""EMMA, a cross-entropy whose margin adapts to the sample and to each class, and the ramp of its radius."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.losses.base import Loss, Reduction
from fastlip.losses.labels import multiclass
from fastlip.losses.numbers import at_least_zero, fraction, positive

_RADIUS = 3 * 36 / 255


class EMMA(Loss):
    r"""Efficient Margin Maximization: cross-entropy after each other class has gained what it can within a radius.

    .. math:: t \log \Bigl(1 + \sum_{j \ne y} \exp \frac{f_j - f_y + r_j m_j}{t}\Bigr), \qquad
              r_j = \mathrm{clip}\Bigl(\frac{f_y - f_j}{m_j},\; s e,\; e\Bigr), \qquad m_j = L \, d_{yj}

    Source: Hu, Leino, Wang, Fredrikson, *A Recipe for Improved Certifiable Robustness*, ICLR 2024, arXiv 2310.02513.

    m_j bounds how fast f_j - f_y changes, so (f_y - f_j) / m_j is the certified radius against class j. Within it,
    class j gains r_j m_j, where r_j is that radius up to e: a class that a perturbation of size e could bring to the
    top is put level with the true class, a class beyond reach counts with its margin minus e m_j, and a class that
    wins already gains s e m_j only. The radii r_j are constants for the gradient; m_j is not, so that the rows of the
    head move apart. e = 0 gives cross-entropy at temperature t, and s = 1 OffsetCrossEntropy with the offset e m_j.

    As in the certificate, d is :math:`|w_y - w_j|` for a network that ends in unit rows w (``slopes``, see
    :func:`fastlip.losses.class_slopes`), and sqrt(2) for a network whose outputs are jointly Lipschitz. The radius is
    a buffer: it is part of the state dict, and changing it (``loss.radius.fill_(0.1)``, or
    :class:`fastlip.losses.RadiusRamp`) neither compiles again nor waits for a GPU.

    Args:
        radius: e, at least 0, in units of the input; default 108/255, three times the usual radius of certificates.
        temperature: t, above 0; default 1 as published. A lower one concentrates on the classes nearest to the top.
        lipschitz: L, above 0: bound of the layers before the head if ``slopes`` are those of a head, otherwise of the
            network; default 1. An audited bound may be given.
        least_share: s in [0, 1]; default 0.01 as published.
        reduction: ``"mean"`` (default, also ``"auto"``), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> loss = fastlip.losses.EMMA(radius=0.5, temperature=0.25)
        >>> logits, labels = torch.tensor([[2.0, 0.5], [0.1, 0.3]]), torch.tensor([0, 1])
        >>> loss(logits, labels)
        tensor(0.0918)
        >>> head = lip.NormalizedLinear(8, 2)
        >>> loss(logits, labels, fastlip.losses.class_slopes(head)) > loss(logits, labels, 0.1)
        tensor(True)
    """

    recipe_name = "emma"
    takes_slopes = True
    radius: Tensor

    def __init__(
        self,
        radius: float = _RADIUS,
        temperature: float = 1.0,
        lipschitz: float = 1.0,
        least_share: float = 0.01,
        reduction: Reduction = "mean",
    ):
        super().__init__(reduction)
        self.temperature = positive("temperature", temperature)
        self.lipschitz = positive("lipschitz", lipschitz)
        self.least_share = fraction("least_share", least_share)
        self.register_buffer("radius", torch.tensor(at_least_zero("radius", radius), dtype=torch.float32))

    @classmethod
    def from_recipe(cls, options: Mapping[str, Any], reduction: Reduction, multi_gpu: bool) -> EMMA:
        """The loss with the recipe's radius and temperature; training ramps the radius."""
        return cls(options["radius"], options["temperature"], reduction=reduction)

    def forward(self, logits: Tensor, labels: Any, slopes: Tensor | float | None = None) -> Tensor:
        """Computes the loss.

        Args:
            logits: (n, c) with c >= 2.
            labels: class numbers (n,) or one-hot rows (n, c).
            slopes: d: (c, c) for all pairs of classes, or one number for all; default None is sqrt(2).

        Returns:
            A scalar; (n,) with ``reduction="none"``.

        Raises:
            ValueError: the shape of labels or slopes does not fit the logits.
        """
        logits, true = multiclass(logits, labels)
        label = true.to(torch.uint8).argmax(1)
        behind = logits - logits.gather(1, label[:, None])
        gained = self._gained(behind, self._slopes(slopes, logits, label)).masked_fill(true, 0)
        losses = F.cross_entropy((behind + gained) / self.temperature, label, reduction="none")
        return self.reduce(self.temperature * losses)

    def _slopes(self, slopes: Tensor | float | None, logits: Tensor, label: Tensor) -> Tensor:
        """m, (n, c) or a shape that broadcasts to it."""
        if not isinstance(slopes, Tensor):
            value = math.sqrt(2) if slopes is None else at_least_zero("slopes", slopes)
            return logits.new_full((), self.lipschitz * value)
        count = logits.shape[1]
        if slopes.shape not in ((), (count, count)):
            raise ValueError(
                f"slopes: got shape {tuple(slopes.shape)}, expected () or {(count, count)} as the classes"
            )
        return self.lipschitz * slopes.to(logits)[label] if slopes.dim() else self.lipschitz * slopes.to(logits)

    def _gained(self, behind: Tensor, slopes: Tensor) -> Tensor:
        """r m, (n, c): what each class gains within its radius r, which is a constant for the gradient."""
        reach = self.radius.to(behind) * slopes
        with torch.no_grad():
            share = -behind / torch.where(reach > 0, reach, 1)
            share = share.clamp(self.least_share, 1)
        return share * reach


class RadiusRamp:
    r"""Raises the radius of a loss linearly over the first steps of training, as a schedule of a learning rate would.

    .. math:: e_k = a + (b - a) \min\bigl(1, \tfrac{k}{\rho K}\bigr)

    for step k of K, from the start a to the end b. Published for EMMA (Hu et al., ICLR 2024, by whole epochs):
    a = 0.1 and b = 3 times 36/255, rho = 1/2.

    Call :meth:`step` after each step of the optimiser. A checkpoint needs ``state_dict()`` only: a run that is
    continued has the radii of one that was not interrupted, bit for bit.

    Args:
        loss: a loss with a buffer ``radius``, which is set at once and in each step.
        steps: K, at least 1: the steps of training.
        start: a, at least 0; default 0.01411764705882353.
        end: b, at least 0; default 0.4235294117647059.
        ramp: rho in [0, 1]: share of the steps in which the radius changes; 0 gives b from the start; default 0.5.

    Raises:
        TypeError: the loss has no radius.
        ValueError: an argument is out of its range.

    Examples:
        >>> loss = fastlip.losses.EMMA()
        >>> ramp = fastlip.losses.RadiusRamp(loss, steps=4, start=0.1, end=0.5)
        >>> for _ in range(3):
        ...     print(f"{loss.radius:.1f}", end=" ")
        ...     ramp.step()
        0.1 0.3 0.5
        >>> ramp.state_dict()
        {'step': 3}
    """

    def __init__(
        self, loss: Loss, steps: int, start: float = 0.1 * 36 / 255, end: float = _RADIUS, ramp: float = 0.5
    ):
        if not isinstance(getattr(loss, "radius", None), Tensor):
            raise TypeError(f"loss: got {type(loss).__name__}, expected a loss with a buffer radius, such as EMMA")
        if steps < 1:
            raise ValueError(f"steps={steps}: expected at least 1")
        self.loss = loss
        self.steps = steps
        self.start = at_least_zero("start", start)
        self.end = at_least_zero("end", end)
        self.ramp = fraction("ramp", ramp)
        self._set(0)

    @property
    def radius(self) -> float:
        """The radius of the present step, a number that no device has to be asked for."""
        length = self.ramp * self.steps
        progress = min(1.0, self._step / length) if length else 1.0
        # A mean, not a + (b - a) p: it reaches b exactly.
        return (1 - progress) * self.start + progress * self.end

    def step(self) -> None:
        """Sets the radius of the next step."""
        self._set(self._step + 1)

    def state_dict(self) -> dict[str, Any]:
        """Returns what :meth:`load_state_dict` needs to continue: the number of steps taken."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where another ramp was, and sets the radius of that step.

        Args:
            state: what ``state_dict()`` returned.

        Raises:
            ValueError: the state has no number of steps.
        """
        step = state.get("step")
        if type(step) is not int or step < 0:
            raise ValueError(f"step={step!r}: expected the number of steps of a ramp, at least 0")
        self._set(step)

    def _set(self, step: int) -> None:
        self._step = step
        with torch.no_grad():
            self.loss.get_buffer("radius").fill_(self.radius)
