"""Dense layers applied at each pixel of an image."""

from __future__ import annotations

from torch import Tensor, nn

from fastlip._names import lists_keywords


class PerPixel(nn.Module):
    r"""Applies a dense layer to the channels of each pixel, as a convolution of one tap does.

    .. math:: y_{:, i, j} = f(x_{:, i, j}), \qquad L \le L_f

    It makes a layer of images of a dense layer, such as one whose parameter is an orthogonal matrix
    (``parametrization="manifold"``). An orthogonal f gives an orthogonal layer. The output is in channels-last memory
    format, in which consecutive layers copy nothing. ``fastlip.audit`` follows f.

    Args:
        module: f, a dense layer: (*, in_features) to (*, out_features).

    Shapes: (n, in_features, h, w) or (in_features, h, w) to (n, out_features, h, w).

    Raises:
        TypeError: module is no ``torch.nn.Module``.

    >>> layer = lip.PerPixel(lip.CayleyLinear(4, 8))
    >>> layer(torch.rand(2, 4, 6, 6)).shape
    torch.Size([2, 8, 6, 6])
    >>> fastlip.audit(layer, (4, 6, 6)).bound <= 1 + 1e-6
    True
    """

    @lists_keywords
    def __init__(self, module: nn.Module):
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: got {type(module).__name__}, expected a torch.nn.Module")
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """f at each pixel."""
        return self.module(x.movedim(-3, -1)).movedim(-1, -3)
