"""Decisions on sizes that a compiled program must not be specialised for."""

from __future__ import annotations

import torch


def surely_below(size: int, limit: int) -> bool:
    """Whether size < limit; while compiling, whether that is known of every size that the program is made for.

    A comparison of a symbolic size is a guard: each of its outcomes would become a program of its own.
    """
    if not torch.compiler.is_compiling():
        return size < limit
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(size < limit)


def are_static(*sizes: int) -> bool:
    """Whether every size is one number: always, but for the dynamic sizes of a program that is being compiled."""
    if not torch.compiler.is_compiling():
        return True
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return all([has_static_value(size) for size in sizes])
