"""Modules of torch alone, into which ``fastlip.export`` turns what ``torch.nn`` has no module for.

Each is written so that ``torch.fx`` can trace it. :func:`freeze` makes a ``torch.fx.GraphModule`` of it, which
holds its tensors and its own code, and needs no fastlip to be unpickled or run; :func:`thaw` finds the module
again, for the audit, and only if the graph still is the one that :func:`freeze` made.
"""

from fastlip.exporting.plain._module import Plain
from fastlip.exporting.plain.entries import (
    Absolute,
    FirstEntries,
    Interleave,
    NormPool,
    PadChannels,
    PadGroups,
    Patches,
    Reflection,
    ScaledPool,
    SortGroups,
    SortPairs,
    Spread,
)
from fastlip.exporting.plain.freezing import freeze, frozen_kind, thaw
from fastlip.exporting.plain.sandwich import SandwichProducts, SandwichSpectra
from fastlip.exporting.plain.shifts import (
    BY_OUTPUT,
    AbsoluteFirst,
    AdaptiveNormPool,
    Centre,
    Multiply,
    Shift,
    ShiftImage,
    ShiftPixels,
    Weigh,
)
from fastlip.exporting.plain.spectral import SpectralConvolution
from fastlip.exporting.plain.weighted import Convolution, Exponential, ResidualConvolution, ResidualDense

__all__ = [
    "BY_OUTPUT",
    "Absolute",
    "AbsoluteFirst",
    "AdaptiveNormPool",
    "Centre",
    "Convolution",
    "Exponential",
    "FirstEntries",
    "Interleave",
    "Multiply",
    "NormPool",
    "PadChannels",
    "PadGroups",
    "Patches",
    "Plain",
    "Reflection",
    "ResidualConvolution",
    "ResidualDense",
    "SandwichProducts",
    "SandwichSpectra",
    "ScaledPool",
    "Shift",
    "ShiftImage",
    "ShiftPixels",
    "SortGroups",
    "SortPairs",
    "SpectralConvolution",
    "Spread",
    "Weigh",
    "freeze",
    "frozen_kind",
    "thaw",
]
