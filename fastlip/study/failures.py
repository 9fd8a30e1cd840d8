"""What may end a run without ending the study, and how a table says it."""

from __future__ import annotations

from fastlip.training.watch import NotFiniteError

# What models, kernels and optimisers raise. OSError is not among them: a full disk or a missing file ends the study.
FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def reason(error: BaseException) -> str:
    """One line: the message, behind the error's type where the message was not written for users."""
    text = " ".join(str(error).partition("\n")[0].split())
    return text if text and isinstance(error, (ValueError, NotFiniteError)) else f"{type(error).__name__}: {text}"
