"""An optimiser of the manifold of orthogonal matrices, made of any optimiser of a flat space."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from fastlip.kernels.common.capture import is_capturing
from fastlip.nn._manifold import NOTICED, note_moved, orthogonality_error, retracted
from fastlip.optim._lookahead import SLOW, average_, is_due, new_slow_weights, pairs_of
from fastlip.optim._on_device import is_on_device, move_all_, retract_all_, tangent_gradients
from fastlip.optim._rows import gathered, is_sharded, own_rows, put_rows
from fastlip.optim._steps import Workspace, move_, tangent_gradient

# Entries of a group that the base optimiser does not have.
_OWN = ("manifold", "retract_every", "tolerance", "since", "lookahead", "lookahead_alpha", "ahead")
_NOT_SHARED = ("params", "param_names", *_OWN)


class ManifoldOptimizer(Optimizer):
    r"""Trains orthogonal matrices by any optimiser, which runs in the tangent space, and other parameters as usual.

    .. math:: \Omega = (W^T G - G^T W) / 2, \qquad A = \mathrm{base}(\Omega), \qquad W \leftarrow W \exp(A)

    for a square W with gradient G. The base optimiser sees a parameter of zeros with the gradient Omega, and what it
    makes of the zeros is the skew matrix A. Its moments belong to the columns of W, and turn with them. The
    exponential is truncated: a polynomial of degree 2, 4 or 6, or a power of one, whichever is the cheapest that is
    orthogonal up to ``tolerance``. Among those that agree with the exponential up to A^2 it has the coefficients of
    Butterworth's, which are the flattest: |P^T P - I| = (|A| sin(pi / 2d))^{2d} for degree d. Every ``retract_every``
    steps W is replaced by its polar factor, computed in float64 and rounded. A matrix of other sides has orthonormal
    columns, if it is tall: W <- (W + U)(I + U^T U)^{-1/2} with the part U of the base optimiser's step in the tangent
    space; a wide one is the transpose. (*LipNeXt*, arXiv 2601.18513, takes such steps for square matrices.)

    Cost: three products of n x n matrices for each n x n matrix and step for a small A, four for |A|_F^2 up to
    about 0.4, where a Cayley transform takes an inverse and two products.
    On a GPU the host waits for nothing: all matrices of one shape take a step together, whose polynomial is of degree
    6, squared three times, so that a matrix takes seven products; steps of more than 10 radians (at the default
    ``tolerance``) are shortened to that. A step that a CUDA graph captures ends in a retraction, since replays do not
    count steps.
    Guarantee: |WᵀW - I|₂ is at most ``retract_every * tolerance`` plus the rounding of as many steps, and after
    :meth:`retract` only the rounding of W. Bounds and certificates use W as it is.

    Every process computes the same step under ``DistributedDataParallel``. Under ``fully_shard`` (FSDP2) each process
    has some of the rows of W, of the gradient and of the moments, and computes these; A and W^T G are gathered, for
    one matrix at a time. Learning rate schedules, gradient scalers and closures work as with other optimisers.

    Args:
        params: groups of parameters. All parameters of a group with ``"manifold": True`` are orthogonal matrices in
            float32 or float64; :func:`manifold_groups` makes such groups. A group may have the other arguments too.
        base: makes an optimiser of a list of groups: a class such as ``torch.optim.Adam`` (default), or a function
            such as ``functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)``. Its state must not depend on where a
            parameter is, as that of Lookahead, schedule-free optimisers and ``LBFGS`` does.
        retract_every: number of steps after which W is replaced by its polar factor; default 100.
        tolerance: the largest error |PᵀP - I|₂ of the polynomial P that takes the place of the exponential; default
            1e-05.
        lookahead: number of steps after which Lookahead moves slow weights, and all weights continue from there
            (Zhang et al., NeurIPS 2019, arXiv 1907.08610); 0: without Lookahead; default 0. The slow weights of
            matrices are orthogonal: the polar factor of S + alpha (W - S), which is the middle of the way for alpha =
            1/2.
        lookahead_alpha: alpha, the fraction of the way that the slow weights go, at most 1; default 0.5.

    ``base`` is the base optimiser. State dicts hold its state: loaded, it continues bit by bit.

    Raises:
        ValueError: no group has ``"manifold": True``, a matrix in such a group is not orthogonal, not of two
            dimensions or of a sixteen-bit type, or an argument is out of range.
        TypeError: ``base`` makes no optimiser.

    Example:
        >>> layer = lip.CayleyLinear(8, 8, parametrization="manifold")
        >>> optimizer = fastlip.optim.ManifoldOptimizer(fastlip.optim.manifold_groups(layer, lr=0.01))
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     layer(torch.ones(1, 8))[:, 0].sum().backward()
        ...     optimizer.step()
        >>> optimizer.orthogonality_error() < 1e-3
        True
    """

    base: Optimizer

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        base: Callable[[list[dict[str, Any]]], Optimizer] = torch.optim.Adam,
        *,
        retract_every: int = 100,
        tolerance: float = 1e-5,
        lookahead: int = 0,
        lookahead_alpha: float = 0.5,
    ):
        own = {"manifold": False, "retract_every": retract_every, "tolerance": tolerance, "since": 0}
        own |= {"lookahead": lookahead, "lookahead_alpha": lookahead_alpha, "ahead": 0}
        super().__init__(params, own)
        if not any(group["manifold"] for group in self.param_groups):
            raise ValueError(
                "params: expected groups, at least one with 'manifold': True, "
                "as fastlip.optim.manifold_groups(model) makes them"
            )
        made = base([self._flat(group) for group in self.param_groups])
        if not isinstance(made, Optimizer):
            raise TypeError(f"base: expected a function that makes a torch.optim.Optimizer, it made {type(made)}")
        _require_no_place(made)
        self.base = made
        self._memory = Workspace()
        self.defaults = {**made.defaults, **own}
        self._take_settings()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as ``torch.optim.Optimizer``.

        Args:
            param_group: parameters and settings; ``"manifold": True`` where they are orthogonal matrices.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check(group)
        except ValueError:
            del self.param_groups[-1]
            raise
        if "base" in self.__dict__:
            self.base.add_param_group(self._flat(group))
            self._take_settings()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Takes one step; matrices without a gradient stay.

        Args:
            closure: computes the loss and the gradients, once; None: they are there.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, flat in zip(self.param_groups, self.base.param_groups, strict=True):
            flat.update({name: value for name, value in group.items() if name not in _NOT_SHARED})
            if group["manifold"]:
                self._differentiate(group["params"], flat["params"])
        started = [new_slow_weights(group, self.state) for group in self.param_groups]
        self.base.step()
        for group, flat, slow in zip(self.param_groups, self.base.param_groups, started, strict=True):
            for p, tangent in zip(group["params"], flat["params"], strict=True):
                if p in slow:  # after its first step, before which some optimisers expect an empty state
                    self.base.state[tangent][SLOW] = slow[p]
        self._take_settings()
        for group, flat in zip(self.param_groups, self.base.param_groups, strict=True):
            if group["manifold"]:
                self._move(group, flat["params"])
            if is_due(group):
                self._look_ahead(group)
        return loss

    @torch.no_grad()
    def retract(self) -> None:
        """Replaces every matrix by its polar factor, before an evaluation or an export."""
        for group in self.param_groups:
            if group["manifold"]:
                for W in group["params"]:
                    put_rows(retracted(gathered(W.detach())), W)
                group["since"] = 0

    def orthogonality_error(self) -> float:
        """The largest |WᵀW - I|₂ (|WWᵀ - I|₂ of wide matrices) of all matrices, measured in float64."""
        matrices = [W for group in self.param_groups if group["manifold"] for W in group["params"]]
        return max(orthogonality_error(gathered(W.detach())) for W in matrices)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned.

        Args:
            state_dict: that of a ManifoldOptimizer with the same groups and base optimiser.
        """
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for name in _OWN:  # a state dict of an earlier version lacks some
                group.setdefault(name, self.defaults[name])
        groups = [
            {**group, "params": saved["params"]}
            for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True)
        ]
        shared = [{name: value for name, value in group.items() if name not in _NOT_SHARED[1:]} for group in groups]
        self.base.load_state_dict({"state": state_dict["state"], "param_groups": shared})
        self._take_settings()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._memory = Workspace()

    def _differentiate(self, matrices: list[Tensor], tangents: list[Tensor]) -> None:
        """Gives the base optimiser's parameters the gradients in the tangent spaces."""
        together: list[tuple[Tensor, Tensor]] = []
        for W, tangent in zip(matrices, tangents, strict=True):
            tangent.grad = None
            if W.grad is not None and is_on_device(W) and not is_sharded(W):
                together.append((W, tangent))
            elif W.grad is not None:
                tangent.grad = tangent_gradient(W, W.grad, self._memory)
        found = tangent_gradients(
            [W.detach() for W, _ in together], [W.grad for W, _ in together if W.grad is not None]
        )
        for (_, tangent), gradient in zip(together, found, strict=True):
            tangent.grad = gradient

    def _move(self, group: dict[str, Any], tangents: list[Tensor]) -> None:
        moved = [(W, step) for W, step in zip(group["params"], tangents, strict=True) if step.grad is not None]
        for W, step in moved:
            if not is_on_device(W):
                move_(W, step, group["tolerance"], self._memory)
        together = [(W, step) for W, step in moved if is_on_device(W)]
        move_all_([W for W, _ in together], [step for _, step in together], group["tolerance"])
        for _, step in moved:
            step.grad = None
        if moved:
            torch._foreach_zero_([own_rows(step.detach()) for _, step in moved])
        group["since"] += bool(moved)
        if group["since"] >= group["retract_every"] or any(is_capturing(W.device) for W, _ in moved):
            _retract(group)
        for W, _ in moved:
            note_moved(W)

    def _look_ahead(self, group: dict[str, Any]) -> None:
        """Moves the slow weights, and the weights to them."""
        weights, slow = pairs_of(group, self.state)
        far = {p: own_rows(p.detach()).clone() for p in group["params"] if group["manifold"] and is_on_device(p)}
        average_(weights, slow, group["lookahead_alpha"])
        if group["manifold"]:
            _retract(group, far)
        for own, value in zip(weights, slow, strict=True):
            value.copy_(own)
        for W in group["params"] if group["manifold"] else ():
            note_moved(W)

    def _flat(self, group: dict[str, Any]) -> dict[str, Any]:
        """The group as the base optimiser has it: zeros in place of matrices."""
        settings = {name: value for name, value in group.items() if name not in _NOT_SHARED}
        if not group["manifold"]:
            return {**settings, "params": group["params"]}
        return {**settings, "params": [torch.zeros_like(W.detach()) for W in group["params"]]}

    def _take_settings(self) -> None:
        """Takes from the base optimiser what it has added to its groups and its state."""
        for group, flat in zip(self.param_groups, self.base.param_groups, strict=True):
            group.update({name: value for name, value in flat.items() if name not in _NOT_SHARED})
            for W, tangent in zip(group["params"], flat["params"], strict=True):
                if tangent in self.base.state:
                    self.state[W] = self.base.state[tangent]


def _retract(group: dict[str, Any], otherwise: Mapping[Tensor, Tensor] | None = None) -> None:
    """Replaces matrices by their polar factors; on a device, those without one by their rows in ``otherwise``."""
    for W in group["params"]:
        if not is_on_device(W):
            put_rows(retracted(gathered(W.detach())), W)
    on_device = [W for W in group["params"] if is_on_device(W)]
    retract_all_(on_device, [otherwise[W] for W in on_device] if otherwise else ())
    group["since"] = 0


def _require_no_place(base: Optimizer) -> None:
    """Raises ValueError if the optimiser keeps weights, or evaluates at several of them."""
    if isinstance(base, LBFGS):
        raise ValueError("base: LBFGS evaluates its closure several times in a step, at points of one flat space")
    if isinstance(getattr(base, "optimizer", None), Optimizer) or callable(getattr(base, "eval", None)):
        raise ValueError(
            f"base: {type(base).__name__} keeps weights of its own, and the tangent space moves with W; Lookahead is "
            "ManifoldOptimizer(..., lookahead=6)"
        )


def _check(group: Mapping[str, Any]) -> None:
    """Raises ValueError unless the settings are allowed and the matrices of a manifold group orthogonal."""
    every, tolerance = group["retract_every"], group["tolerance"]
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"retract_every={every!r}: expected an int of at least 1")
    if not 0 < tolerance <= 0.1:
        raise ValueError(f"tolerance={tolerance!r}: expected a number above 0 and at most 0.1")
    k, alpha = group["lookahead"], group["lookahead_alpha"]
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise ValueError(f"lookahead={k!r}: expected an int of at least 0")
    if not 0 < alpha <= 1:
        raise ValueError(f"lookahead_alpha={alpha!r}: expected a number above 0 and at most 1")
    for W in group["params"] if group["manifold"] else ():
        if W.dim() != 2:
            raise ValueError(
                f"params: expected matrices in a group with 'manifold': True, got shape {tuple(W.shape)}"
            )
        if W.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"params: got a matrix of {W.dtype}, expected float32 or float64; autocast computes "
                "activations in sixteen bits"
            )
        if not W.is_meta and not (error := orthogonality_error(gathered(W.detach()))) <= NOTICED:
            raise ValueError(
                f"params: the orthogonality error of a matrix of shape {tuple(W.shape)} is {error:.2g}, "
                f"expected at most {NOTICED}; fastlip.optim.retract_(model) makes it orthogonal"
            )
