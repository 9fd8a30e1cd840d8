"""The theorem of every layer: singular values of its exact Jacobian, over its whole configuration space.

A configuration is bounded by 1 or refused with ValueError. The default run touches every value of every axis and
every pair (kernel, padding); ``-m slow`` runs the whole grid.
"""

import itertools

import pytest
import torch
from layer_catalog import layers, name_of, perturb, singular_values

BOUND, ORTHOGONAL = 1 + 1e-6, 1 - 1e-6
KERNELS = (1, 2, 3, 5)
CHANNELS = ((4, 4), (3, 5), (6, 3), (1, 1))
IMAGES = ((4, 4), (5, 5), (7, 3), (1, 1))
PADDING_MODES = ("circular", "zeros", "reflect", "replicate")
GEOMETRIES = (
    {"kernel_size": (1, 3)},
    {"kernel_size": (4, 2)},
    {"kernel_size": (6, 7)},
    {"kernel_size": 3, "dilation": 2},
    {"kernel_size": (2, 3), "dilation": (3, 2)},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "stride": (1, 3)},
    {"kernel_size": 3, "stride": 2, "dilation": 2},
    {"kernel_size": 3, "groups": 2},
    {"kernel_size": 4, "groups": 2, "stride": 2},
    {"kernel_size": 3, "padding": 0},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": 2},
    {"kernel_size": 3, "bias": False},
)


def broken_promises(cls, arguments, input_shape):
    """Returns how a configuration breaks its bound (fresh, perturbed, every relu active); None if it is refused."""
    try:
        layer = cls(*arguments[:-1], dtype=torch.float64, **arguments[-1]).eval().requires_grad_(False)
        layer(torch.zeros(1, *input_shape, dtype=torch.float64))
    except ValueError:
        return None
    except RuntimeError as error:
        # As torch.nn.Conv2d: without padding, an image smaller than the kernel has no output.
        if "Kernel size can't be greater" in str(error) or "Output size is too small" in str(error):
            return None
        raise
    problems = []
    square = arguments[0] == arguments[1]
    plain = {"padding_mode": "circular", "stride": (1, 1), "padding": "same"}
    plain = all(getattr(layer, name, value) == value for name, value in plain.items())
    isometry = layer._application.orthogonal and square and plain
    residual = hasattr(layer, "kernel") and layer.bias is not None
    for state in ("fresh", "perturbed", "every unit active")[: 2 + residual]:
        if state == "perturbed":
            perturb(layer)
        if state == "every unit active":
            layer.bias.fill_(1000.0)
        largest, smallest = singular_values(layer, input_shape)
        if not largest <= BOUND or (isometry and not smallest >= ORTHOGONAL):
            problems.append(f"{cls.__name__}{arguments} on {input_shape}, {state}: {smallest} to {largest}")
    return problems


def check(cls, configurations):
    reports = [broken_promises(cls, arguments, shape) for arguments, shape in configurations]
    broken = [line for report in reports for line in report or ()]
    assert not broken, "\n".join(broken)
    return [report is not None for report in reports]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def convolutions(kernel, padding_mode, options, pairs):
    for channels, image in pairs:
        arguments = (*channels, kernel, {"padding_mode": padding_mode, **options})
        yield arguments, (channels[0], *image)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layer", layers("Conv2d", square=True), ids=name_of)
def test_convolutions_keep_their_bound(layer, kernel, padding_mode):
    cls, options = layer
    # A Latin square: each kernel meets every number of channels and every image, in other pairs than the next.
    shift = KERNELS.index(kernel)
    pairs = [(channels, IMAGES[(index + shift) % 4]) for index, channels in enumerate(CHANNELS)]
    accepted = check(cls, convolutions(kernel, padding_mode, options, pairs))
    allowed = ("circular",) if options.get("exponential") == "spectral" else ("circular", "zeros")
    if padding_mode in allowed and kernel % 2 and "quasi_residual" not in options:
        assert all(accepted), "a padding mode that the class names is refused"


@pytest.mark.slow
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layer", layers("Conv2d", square=True), ids=name_of)
def test_convolutions_keep_their_bound_everywhere(layer, kernel, padding_mode):
    cls, options = layer
    check(cls, convolutions(kernel, padding_mode, options, itertools.product(CHANNELS, IMAGES)))


@pytest.mark.parametrize("layer", layers("Conv2d", square=True), ids=name_of)
def test_other_geometries_keep_their_bound(layer):
    cls, options = layer
    configurations = []
    for index, (geometry, padding_mode) in enumerate(itertools.product(GEOMETRIES, ("circular", "zeros"))):
        channels, image = ((4, 4), (2, 6), (6, 2))[index % 3], ((4, 6), (5, 3))[index // 2 % 2]
        arguments = (*channels, {"padding_mode": padding_mode, **geometry, **options})
        configurations.append((arguments, (channels[0], *image)))
    assert any(check(cls, configurations))


@pytest.mark.parametrize("layer", layers("Linear", square=True), ids=name_of)
def test_dense_layers_keep_their_bound(layer):
    cls, options = layer
    configurations = [((*channels, options), channels[:1]) for channels in (*CHANNELS, (16, 16))]
    accepted = check(cls, configurations)
    if "quasi_residual" in options:
        assert accepted == [inputs == outputs for (inputs, outputs, _), _ in configurations]
    else:
        assert all(accepted)
