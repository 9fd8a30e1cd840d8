"""The errors that end a run but not its study, and their text in the table."""

from __future__ import annotations

from fastlip.training.watch import NotFiniteError

# Exceptions of models, kernels and optimisers, without OSError: a full disk or a missing file ends the study.
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
    """The message in one line, after the error's type where the message was not written for users."""
    text = " ".join(str(error).partition("\n")[0].split())
    return text if text and isinstance(error, (ValueError, NotFiniteError)) else f"{type(error).__name__}: {text}"
