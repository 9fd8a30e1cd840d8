"""A sequence of modules that runs each layer and the MaxMin after it fused."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import Tensor, fx, nn

from fastlip.nn import _lending
from fastlip.nn.activations import MaxMin
from fastlip.nn.fusion import Fusion, fusion_of, run_links

_ALONE = nullcontext()


class Chain(nn.Sequential):
    """``torch.nn.Sequential``, with every convolution -> MaxMin pair in one pass after the convolution.

    Each layer's application says by ``fused(layer, activation)`` how it runs together with the :class:`MaxMin` after
    it. Those of this package do so in these cases: layers with one kernel (AOL, BCOP, ...) and ``torch.nn.Conv2d``
    at stride 1, with one group and padding that keeps the image's size; residual layers (SLL, CPL); and, in
    evaluation, layers that are applied per frequency (Cayley, LOT, circular SOC). Everything else runs module by
    module. So does a pair whose call anything has touched (a hook, also one of all modules, a ``forward`` or another
    method replaced on the instance, a parametrization, a subclass of another package with methods of its own), with
    ``backend="reference"``, or where no kernel runs the pair (another device or dtype, autocast). Results are those
    of ``Sequential`` to rounding, in channels-last memory format after a fused pair.

    On a GPU, in training, like layers (of one class, with the same shapes and options) compute their weights
    together, in one call of each op.

    ``fastlip.fuse`` makes every ``torch.nn.Sequential`` of a model a Chain, and ``fastlip.unfuse`` undoes it.

    Args:
        *modules: the modules in their order, or one ``OrderedDict`` of them, as ``torch.nn.Sequential`` takes them.

    >>> model = lip.Chain(lip.AOLConv2d(3, 8, 3), lip.MaxMin())
    >>> model(torch.rand(1, 3, 8, 8)).shape
    torch.Size([1, 8, 8, 8])
    """

    # Whether fuse made it of a torch.nn.Sequential.
    converted = False

    def forward(self, x: Tensor) -> Tensor:
        """The modules of the sequence, one after the other."""
        if isinstance(x, fx.Proxy):
            return super().forward(x)
        if not isinstance(x, Tensor):
            raise TypeError(f"x: got {type(x).__name__}, expected a tensor, such as torch.as_tensor(x)")
        modules: list[Any] = list(self)
        position = 0
        with _lending.lent(self) if self.training and _lending.may_lend(x) else _ALONE:
            while position < len(modules):
                fusion, images = None, x.dim() == 4 and x.is_floating_point()
                if images and position + 1 < len(modules) and isinstance(modules[position + 1], MaxMin):
                    fusion = fusion_of(modules[position], modules[position + 1])
                if fusion is None:
                    x = modules[position](x)
                    position += 1
                elif fusion.plan is not None and (plan := fusion.plan(x)):
                    x = fusion.run(x, plan)
                    position += 2
                else:
                    x, count = _run(fusion, modules, position, x)
                    position += count
        return x


def _run(fusion: Fusion, modules: list[Any], position: int, x: Tensor) -> tuple[Tensor, int]:
    """Applies as many pairs of one style as follow each other, or the first module alone; and their number."""
    if fusion.link is None:
        return modules[position](x), 1
    links, end = [fusion.link], position + 2
    while end + 1 < len(modules) and isinstance(modules[end + 1], MaxMin):
        following = fusion_of(modules[end], modules[end + 1])
        link = None if following is None else following.link
        if following is None or link is None or link.style != fusion.link.style:
            break
        if following.plan is not None and following.plan(x):
            break
        links.append(link)
        end += 2
    y = run_links(links, x)
    if y is not None:
        return y, end - position
    for module in modules[position:end]:
        x = module(x)
    return x, end - position
