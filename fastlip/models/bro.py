"""BRONet: quasi-residual block reflectors."""

from __future__ import annotations

from fastlip import nn as lip
from fastlip._names import lists_keywords
from fastlip.kernels.common.literals import Backend, PaddingMode, Pairing
from fastlip.models.literals import Size
from fastlip.models.model import Model
from fastlip.models.quasi_residual import PATCH, STEM, Layers, QuasiResidualNet, assemble, sizes_of


@lists_keywords
def bro_net(
    size: Size = "L",
    num_classes: int = 10,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    width: int | None = None,
    depth: int | None = None,
    features: int | None = None,
    dense_layers: int | None = None,
    rank: float = 0.5,
    quasi_residual: bool = True,
    centering: bool = True,
    padding_mode: PaddingMode = "zeros",
    pairing: Pairing = "halves",
    backend: Backend = "auto",
) -> QuasiResidualNet:
    r"""Builds BRONet, a network of block reflectors.

    Lai, Huang, Kung, Chien, *Enhancing Certified Robustness via Block Reflector Orthogonal Layers and Logit Annealing
    Loss*, ICML 2025.

    A 5x5 convolution with stride 2 maps the image to w channels, and MaxMin follows. Then come ``depth`` blocks: a
    3x3 block reflector of V = I + gamma W / sqrt(depth), centering, MaxMin. A 4x4 convolution with stride 4, a dense
    layer to ``features`` and MaxMin are the neck; then come ``dense_layers`` quasi-residual dense layers with
    MaxMin, and a head with unit rows. All layers before the head are block reflectors here. The published network has
    a stem whose norm is a power iteration's, and Cholesky factors in the neck and the dense layers.

    The head is not 1-Lipschitz. With L the bound of the layers before it, the network's certificate is

    .. math:: \min_{j \neq y} \frac{f_y - f_j}{L \, |w_y - w_j|}

    which :func:`fastlip.certify` reports as ``radii``.

    Args:
        size: w = 32, 128, 256, 512, 4, 6, 12, 12 blocks, 2, 4, 8, 8 dense layers of 128, 512, 1024, 2048 features for
            ``"XS"``, ``"S"``, ``"M"``, ``"L"`` (default). L is the published one for CIFAR-10, here with 53 M
            parameters at ``image_size`` 32.
        num_classes: number of outputs, at least 2; default 10.
        image_size: side of the images in pixels (published: 32, 64); default 32.
        in_channels: channels of the images; default 3.
        width: w itself; None: the width of ``size``.
        depth: number of blocks; None: that of ``size``.
        features: features of the dense layers; None: those of ``size``.
        dense_layers: number of quasi-residual dense layers; None: that of ``size``.
        rank: columns of each V, as a fraction of its rows (published: 1/2, on TinyImageNet 1/8) or a number; default
            0.5.
        quasi_residual: whether blocks and dense layers have the identity in V; default True.
        centering: whether blocks subtract the mean of each channel; otherwise their convolutions have a bias; default
            True.
        padding_mode: of the blocks and the stem: ``"zeros"`` (default, published), or ``"circular"``, where blocks
            are orthogonal.
        pairing: channels that MaxMin compares: ``"halves"`` (default, published) or ``"adjacent"``.
        backend: kernels of every layer and activation; default ``"auto"``.

    Returns:
        A ``torch.nn.Sequential``: (n, in_channels, image_size, image_size) -> (n, num_classes).

    Raises:
        ValueError: an argument that is not allowed; the message names it and what is allowed.

    Example:
        >>> model = fastlip.models.bro_net("XS", width=16, depth=2, features=32, dense_layers=1, image_size=8)
        >>> [name for name, _ in model.named_children()]
        ['pad', 'stem', 'blocks', 'neck', 'dense', 'head']
        >>> model(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    def stem(inputs: int, outputs: int) -> lip.BROConv2d:
        return lip.BROConv2d(inputs, outputs, STEM, stride=2, padding_mode=padding_mode, rank=rank, backend=backend)

    def block(width: int, s: bool | float, bias: bool) -> lip.BROConv2d:
        options = {"padding_mode": padding_mode, "rank": rank, "quasi_residual": s}
        return lip.BROConv2d(width, width, 3, bias=bias, backend=backend, **options)

    def neck(width: int) -> lip.BROConv2d:
        return lip.BROConv2d(width, width, PATCH, stride=PATCH, bias=False, rank=width, backend=backend)

    def dense(inputs: int, outputs: int, s: bool | float) -> lip.BROLinear:
        # As many columns as the product of a matrix of this shape could have: a V of full rank would be a constant.
        columns = rank if inputs == outputs else min(inputs, outputs, (max(inputs, outputs) + 1) // 2)
        return lip.BROLinear(inputs, outputs, rank=columns, quasi_residual=s, backend=backend)

    layers = Layers(stem, block, neck, dense, pairing, backend)
    sizes = sizes_of(size, width=width, depth=depth, features=features, dense_layers=dense_layers)
    return assemble(layers, sizes, num_classes, image_size, in_channels, quasi_residual, centering)


MODEL = Model("bro_net", bro_net, "bronet", ("depth", "quasi_residual", "centering", "rank"))
