"""A user's script, which type checkers read in their strictest mode: test_typing.py."""

import torch
from torch import Tensor, nn

import fastlip
from fastlip import losses, ops
from fastlip import nn as lip
from fastlip.models import lip_conv_net


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = lip.AOLConv2d(channels, channels, 3, padding_mode="zeros", backend="native")
        self.act = lip.MaxMin("halves")
        self.second = lip.SLLConv2d(channels, channels, kernel_size=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.act(self.first(x)))
        return y


def classifier(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        lip.ZeroChannelPad(width),
        Block(width),
        lip.CayleyConv2d(width, width, (3, 3), padding="same", device="cpu", dtype=torch.float32),
        lip.GroupSort(4, dim=1),
        lip.SOCConv2d(width, width, 3, terms=4),
        lip.PixelUnshuffle(2),
        nn.Flatten(),
        lip.SandwichLinear(64 * width, 64 * width, activation="tanh"),
        lip.BjorckLinear(64 * width, classes),
    )


def sequences(channels: int) -> tuple[nn.Sequential, tuple[int]]:
    first = lip.AOLConv1d(channels, channels, 5, stride=2, padding=2)
    return nn.Sequential(
        first, lip.MaxMin(), lip.L2NormPool1d(2), lip.SandwichConv1d(channels, 4, (3,))
    ), first.stride


def train(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    loss = losses.OffsetCrossEntropy(offset=0.4, temperature=0.25, reduction="mean")
    optimizer.zero_grad()
    value: Tensor = loss(model(images), labels)
    torch.autograd.backward(value)
    optimizer.step()
    return value.item()


def main() -> None:
    images, labels = torch.rand(8, 3, 8, 8), torch.arange(8)
    model = fastlip.fuse(classifier(8, 10))
    print(f"loss {train(model, torch.optim.SGD(model.parameters(), lr=0.1), images, labels):.1f}")
    audit = fastlip.audit(model.eval(), (3, 8, 8))
    print([f"{layer.name}: {layer.bound:.3f} ({layer.how})" for layer in audit.layers if layer.bound > 1])
    found = fastlip.certify(model, [(images, labels)], eps=[36 / 255], rounding="worst-case")
    outputs = fastlip.certify_outputs(model, [(images, labels)], dtype=torch.float64)
    low, high = outputs.interval(eps=0.1)
    ranks: list[float] = [fastlip.certify_top_k(outputs, k).share for k in (1, 5)]
    sets = fastlip.conformal.calibrate(outputs, alpha=0.2, score="softmax").sets(outputs, eps=0.1)
    print((high - low).amax().item(), ranks, fastlip.certify_target(outputs, 3).radii.mean(), sets.coverage)
    print(f"{found.accuracy:.0%}, {found.radii.mean():.3f}, {found.lipschitz:.2f}, {audit.bound:.2f}")
    plain: nn.Module = fastlip.export(fastlip.unfuse(model), (3, 8, 8), fourier="fft")
    network = lip_conv_net("lot", size="XS", image_size=8, layers_per_block=1).eval()
    fastlip.freeze(network)
    kernel = torch.randn(4, 4, 3, 3)
    print((plain(images) - model(images)).norm() < 1e-4, network(images).shape)
    print(ops.cayley(kernel[0], backend="reference").shape, float(ops.spectral_norm(kernel, (8, 8))))


if __name__ == "__main__":
    main()
