"""A value that a layer keeps from one training step as the place where the next one begins, to make it cheaper."""

from __future__ import annotations

from torch import Tensor


class WarmStart:
    """A tensor that an iteration may begin from, kept between the training steps of a layer.

    Whoever begins from it checks the result, which is within a stated tolerance whatever was kept. So it is no part
    of the state dict, and copies of a layer, pickled ones too, begin without it. The tensor is replaced, never
    written to: threads may share a layer.
    """

    __slots__ = ("_kept", "_source")

    def __init__(self) -> None:
        self._kept: Tensor | None = None
        self._source: tuple[int, int] | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return WarmStart, ()

    def recall(self, like: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """The kept tensor, if it has this shape and the dtype and device of ``like``; None otherwise."""
        kept = self._kept
        if kept is None or kept.shape != shape or kept.dtype != like.dtype or kept.device != like.device:
            return None
        return kept

    def keep(self, value: Tensor, source: Tensor | None = None) -> None:
        """Keeps a tensor that nobody writes to, and remembers of which one it was found."""
        self._kept, self._source = value, None if source is None else _mark(source)

    def is_of(self, source: Tensor) -> bool:
        """Whether what is kept was found of this tensor as it is: then nothing is left to be iterated."""
        return self._source is not None and self._source == _mark(source)


def _mark(source: Tensor) -> tuple[int, int] | None:
    """Where a tensor is, and how often it was written to; None: torch does not count that."""
    return None if source.is_inference() else (source.data_ptr(), source._version)
