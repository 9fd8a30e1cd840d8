"""Every constrained layer of fastlip.nn, found by name, and the exact Jacobian they are judged by."""

import inspect
from functools import partial

import torch

from fastlip import nn as lip
from fastlip.kernels.common.dispatch import registered
from fastlip.nn.base import LipschitzLayer

# Unit rows do not make a layer 1-Lipschitz, and it says so.
HEADS = (lip.NormalizedLinear,)
# The kernels of residual layers, which "auto" takes for larger images than those of tests; none where none is built.
KERNELS = [] if registered["sdp_residual"].status("native") else [{"backend": "native"}]
# Options that change a layer's function, and kernels asked for by name; the defaults come on their own.
OPTIONS = {
    "CPLConv2d": [
        {"inner_channels": 2},
        *KERNELS,
    ],  # training_sigma="power" promises nothing in train mode: test_residual.py
    "CPLLinear": [{"inner_features": 2}],
    "LOTConv2d": [{"ridge": 1e-4, "steps": 10}],
    "LOTLinear": [{"ridge": 1e-4, "steps": 10}],
    "SLLConv2d": [{"inner_channels": 8}, *KERNELS],
    "SLLLinear": [{"inner_features": 7}],
    "SOCConv2d": [{"exponential": "spectral"}],
    "SandwichLinear": [{"activation": "tanh"}],
}
# Of layers with as many outputs as inputs.
QUASI = {"quasi_residual": 0.5}


def layers(suffix, square=False):
    """(class, options) for the layers whose name ends in "Conv2d" or "Linear"; square: options of square ones too."""
    found = []
    for name, member in sorted(vars(lip).items()):
        if inspect.isclass(member) and issubclass(member, LipschitzLayer) and name.endswith(suffix):
            more = [QUASI] if square and "quasi_residual" in member._fixed else []
            found += [(member, options) for options in [{}, *OPTIONS.get(name, []), *more] if member not in HEADS]
    return found


def automatic(items):
    """Those of ``layers`` that leave the choice of kernels to fastlip, for inputs that no kernel takes."""
    return [(cls, options) for cls, options in items if "backend" not in options]


def name_of(item):
    """The test's name of one of ``layers``."""
    cls, options = item
    return "-".join([cls.__name__, *(f"{key}={value}" for key, value in options.items())])


def perturb(layer, scale=1.0):
    """Moves every parameter by noise of its own size: away from its initialisation, relu masks of all kinds."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * (scale * (parameter.abs().mean() + 0.1)))
    return layer


def jacobians(layer, points):
    """The exact Jacobian at each point [p, ...], by one vector-Jacobian product per output: [p, out, in]."""
    with torch.no_grad():
        shape = layer(points).shape[1:]
    outputs = shape.numel()
    inputs = points.repeat_interleave(outputs, 0).requires_grad_()
    rows = torch.eye(outputs, dtype=points.dtype).view(outputs, *shape).repeat(len(points), *[1] * len(shape))
    (gradient,) = torch.autograd.grad(layer(inputs), inputs, rows)
    return gradient.reshape(len(points), outputs, -1)


def singular_values(layer, input_shape, dtype=torch.float64):
    """(largest, smallest) singular value of the Jacobian over points of several sizes."""
    points = torch.randn(2, *input_shape, dtype=dtype) * torch.tensor([0.3, 5.0], dtype=dtype).view(
        -1, *[1] * len(input_shape)
    )
    matrices = jacobians(layer, points).double()
    if torch.equal(matrices[0], matrices[1]):
        matrices = matrices[:1]
    values = torch.linalg.svdvals(matrices)
    return values.max().item(), values.min().item()


def every_layer():
    """{name: (make(**options), shape of a sample)} of every module of fastlip.nn, in each form of its own."""
    found = {}
    for name, member in sorted(vars(lip).items()):
        if inspect.isclass(member) and issubclass(member, torch.nn.Module):
            for form, make in _forms(name, member).items():
                found[f"{name} {form}".strip()] = make, _shape_for(name)
    return found


def _shape_for(name):
    """The shape of a sample for a module of this name."""
    if name.endswith("Linear"):
        return (4,)
    if name.endswith("3d"):
        return (8, 2, 4, 4)
    return (4, 6) if name.endswith("1d") else (4, 6, 6)


def _forms(name, kind):
    if name.endswith("Conv1d"):
        return {"": partial(kind, 4, 4, 3)}
    if name.endswith("Conv3d"):
        return {"": partial(kind, 8, 8, (1, 3, 3))}
    if name.endswith("ConvTranspose2d"):
        return {"": partial(kind, 4, 4, 2, stride=2)}
    if name.endswith("Conv2d"):
        forms = {mode: partial(kind, 4, 4, 3, padding_mode=mode) for mode in ("circular", "zeros")}
        forms |= {"strided": partial(kind, 4, 6, 3, stride=2), "1 x 1": partial(kind, 4, 4, 1)}
        return forms | {str(options): partial(kind, 4, 4, 3, **options) for options in _MORE_OPTIONS.get(name, [])}
    if name.endswith("Linear"):
        return {"": partial(kind, 4, 6), "square": partial(kind, 4, 4)}
    if name == "Chain":
        return {"": lambda **options: kind(lip.AOLConv2d(4, 4, 3, **options), lip.MaxMin())}
    if name == "PerPixel":
        return {"": lambda **options: kind(lip.AOLLinear(4, 6, **options))}
    if name == "LipschitzResidual":
        return {"": lambda **options: kind(lip.Chain(lip.AOLConv2d(4, 4, 3, **options), lip.MaxMin()))}
    arguments = {"HouseHolder": (4,), "ZeroChannelPad": (4,), "FirstChannels": (4,), "PartialAbs": (2,)}
    arguments |= {"BatchCentering": (4,), "LayerCentering": (4,), "SpatialShift": (1,), "PositionBias": (6,)}
    if name == "InputWeights":
        return {"": partial(kind, [[[0.5]], [[2.0]], [[1.0]], [[0.1]]], center=0.25)}
    if name == "Scale":
        return {"": partial(kind, 0.9), "learnable": partial(kind, 0.9, learnable=True)}
    if name == "BatchCentering":
        return {"": partial(kind, 4), "accumulate": partial(kind, 4, accumulate=2)}
    return {"": partial(kind, *arguments.get(name, (2,) if "Pool" in name else ()))}


_MORE_OPTIONS = {
    "BROConv2d": [QUASI],
    "CPLConv2d": [{"training_sigma": "power"}, *KERNELS],
    "LOTConv2d": [{"ridge": 1e-4, "steps": 10}],
    "SLLConv2d": KERNELS,
    "SOCConv2d": [{"exponential": "spectral"}, {"eval_terms": 12, "recompute": True}],
}
