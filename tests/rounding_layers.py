"""The layers whose rounding errors test_rounding.py compares with their bounds, and the shape of a sample."""

import torch
from torch import nn

from fastlip import nn as lip

METHODS = "AOL", "AOC", "BCOP", "BRO", "CPL", "Cayley", "LOT", "SLL", "SOC", "Sandwich"


def convolutions():
    for name in METHODS:
        for mode in ("zeros", "circular"):
            for cin, cout, taps in ((6, 8, 3), (16, 16, 1), (32, 32, 3)):
                yield f"{name}-{mode}-{cin}-{cout}-{taps}", getattr(lip, f"{name}Conv2d"), (cin, cout, taps), mode


def spread_out(layer):
    """A sandwich layer with numbers e^psi of all sizes."""
    with torch.no_grad():
        layer.psi.copy_(torch.linspace(-20, 20, len(layer.psi)))
    return layer


LAYERS = {
    **{
        name: (
            lambda kind=kind, sizes=sizes, mode=mode: kind(*sizes, padding_mode=mode),
            (sizes[0], 8, 8),
        )
        for name, kind, sizes, mode in convolutions()
    },
    **{
        f"{name}Linear": (lambda name=name: getattr(lip, f"{name}Linear")(64, 48), (64,))
        for name in ("AOL", "BRO", "Bjorck", "CPL", "Cayley", "LOT", "Normalized", "SLL", "SOC", "Sandwich")
    },
    "SOC-spectral": (lambda: lip.SOCConv2d(8, 8, 3, exponential="spectral"), (8, 7, 9)),
    "SOC-eval-terms": (lambda: lip.SOCConv2d(8, 8, 3, terms=5, eval_terms=12), (8, 7, 9)),
    "SLL-stride": (lambda: lip.SLLConv2d(4, 8, 3, stride=2), (4, 9, 9)),
    **{
        f"Sandwich-{activation}{part}": (lambda make=make, activation=activation: make(activation), shape)
        for activation in ("softplus", "tanh")
        for part, make, shape in (
            ("Linear", lambda activation: spread_out(lip.SandwichLinear(64, 48, activation=activation)), (64,)),
            ("Conv", lambda activation: spread_out(lip.SandwichConv2d(6, 8, 3, activation=activation)), (6, 7, 9)),
            ("Pixel", lambda activation: spread_out(lip.SandwichConv2d(6, 8, 1, activation=activation)), (6, 7, 9)),
        )
    },
    **{f"{name}-1d": (lambda name=name: getattr(lip, f"{name}Conv1d")(6, 8, 3), (6, 9)) for name in METHODS},
    **{
        f"{name}-3d": (lambda name=name: getattr(lip, f"{name}Conv3d")(6, 8, (3, 2, 3)), (6, 3, 4, 5))
        for name in ("AOL", "BRO", "CPL", "Cayley", "LOT", "SLL")
    },
    "Cayley-3d-zeros": (lambda: lip.CayleyConv3d(6, 8, 3, stride=(1, 2, 1), padding_mode="zeros"), (6, 2, 5, 3)),
    "AOC-transposed": (lambda: lip.AOCConvTranspose2d(8, 4, 4, stride=2), (8, 5, 5)),
    "HouseHolder": (lambda: lip.HouseHolder(8), (8, 6, 6)),
    "ScaledAvgPool1d": (lambda: lip.ScaledAvgPool1d(3), (8, 13)),
    "L2NormPool1d": (lambda: lip.L2NormPool1d(3), (8, 13)),
    "AdaptiveL2NormPool1d": (lambda: lip.AdaptiveL2NormPool1d(4), (8, 13)),
    "ScaledAvgPool2d": (lambda: lip.ScaledAvgPool2d(2), (8, 6, 6)),
    "L2NormPool2d": (lambda: lip.L2NormPool2d(2), (8, 6, 6)),
    "AdaptiveL2NormPool2d": (lambda: lip.AdaptiveL2NormPool2d((2, 4)), (8, 6, 7)),
    "ScaledAvgPool3d": (lambda: lip.ScaledAvgPool3d((1, 2, 2)), (8, 2, 6, 6)),
    "L2NormPool3d": (lambda: lip.L2NormPool3d(2), (8, 2, 6, 6)),
    "AdaptiveL2NormPool3d": (lambda: lip.AdaptiveL2NormPool3d((1, 2, 4)), (8, 3, 6, 7)),
    "BatchCentering": (lambda: lip.BatchCentering(8), (8, 6, 6)),
    "LayerCentering": (lambda: lip.LayerCentering(8), (8, 6, 6)),
    "PositionBias": (lambda: lip.PositionBias(6), (8, 6, 6)),
    "Scale": (lambda: lip.Scale(0.9), (8, 6, 6)),
    "Scale-learnable": (lambda: lip.Scale(300.0, learnable=True), (8, 6, 6)),
    "InputWeights": (lambda: lip.InputWeights(torch.logspace(-4, 4, 8)[:, None, None]), (8, 6, 6)),
    "InputWeights-centred": (lambda: lip.InputWeights(torch.logspace(-4, 4, 8)[:, None, None], 3.0), (8, 6, 6)),
    "Linear": (lambda: nn.Linear(384, 50), (384,)),
    "Linear-tokens": (lambda: nn.Linear(20, 5), (7, 20)),
    "Conv2d": (lambda: nn.Conv2d(8, 12, 3, padding=1), (8, 9, 9)),
    "Conv2d-stride": (lambda: nn.Conv2d(8, 12, 3, 2, padding=2, groups=2), (8, 9, 9)),
    "Conv2d-dilation": (lambda: nn.Conv2d(8, 12, 3, padding=2, dilation=2, padding_mode="circular"), (8, 9, 9)),
    "Conv2d-reflect": (lambda: nn.Conv2d(8, 12, 5, padding=2, padding_mode="reflect"), (8, 9, 9)),
    "Conv2d-replicate": (lambda: nn.Conv2d(8, 12, 4, 2, padding=2, padding_mode="replicate"), (8, 9, 9)),
    "Conv2d-small-image": (lambda: nn.Conv2d(8, 12, 5, padding=2), (8, 2, 2)),
    "Conv1d": (lambda: nn.Conv1d(8, 12, 3), (8, 20)),
    "Conv3d": (lambda: nn.Conv3d(8, 12, 3, (1, 2, 1), padding=1, groups=2), (8, 3, 5, 4)),
    "Conv3d-reflect": (lambda: nn.Conv3d(8, 12, (1, 3, 5), padding=(0, 1, 2), padding_mode="reflect"), (8, 2, 5, 4)),
    "Conv3d-circular": (lambda: nn.Conv3d(8, 12, 3, padding=1, padding_mode="circular"), (8, 2, 3, 3)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(8, 12, 3, 2, 1, 1, groups=2), (8, 6, 6)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(8), (8, 6, 6)),
    "LayerNorm": (lambda: nn.LayerNorm((8, 6, 6)), (8, 6, 6)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 8), (8, 6, 6)),
    "Softmax": (lambda: nn.Softmax(1), (8, 6, 6)),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2, 1), (8, 9, 9)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(4), (8, 9, 9)),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, 1), (8, 9, 9)),
    **{
        name: (getattr(nn, name), (8, 6, 6))
        for name in (
            *(
                "CELU",
                "ELU",
                "GELU",
                "Hardsigmoid",
                "Hardswish",
                "Hardtanh",
                "LeakyReLU",
                "LogSigmoid",
                "Mish",
                "PReLU",
            ),
            *("ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink"),
        )
    },
}
