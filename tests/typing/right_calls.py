"""Calls that type checkers accept, and the types of their results: tests/typing/test_typing.py."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastlip
from fastlip import conformal, data, losses, models, ops, optim
from fastlip import nn as lip


def layers(x: Tensor) -> None:
    conv = lip.CayleyConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding="same", bias=False, device="cpu")
    sizes: tuple[int, ...] = (conv.in_channels, *conv.kernel_size)
    weight: Tensor = lip.AOLConv2d(3, 8, 3, padding=1).weight
    raw: nn.Parameter = lip.AOLConv1d(3, 8, 3).raw_weight
    matrix: Tensor = lip.SOCLinear(3, sizes[0]).weight
    residual: nn.Module = lip.LipschitzResidual(lip.Chain(lip.AOLConv2d(3, 3, 3), lip.MaxMin("halves", dim=1)))
    print(weight.shape, raw.shape, matrix.shape, residual(x).shape)


def functions(x: Tensor) -> list[Tensor]:
    square = torch.rand(4, 4)
    found = [ops.cayley(square), ops.polar(square, backend="reference"), ops.skew_exp(square)]
    kernel = torch.rand(4, 4, 3, 3)
    return [*found, ops.gram_rowsum(kernel), ops.pixel_unshuffle(x, 2), ops.spectral_norm(kernel, (8, 8))]


def losses_of(scores: Tensor, labels: Tensor) -> list[Tensor]:
    ours: list[nn.Module] = [losses.TemperatureCrossEntropy(0.25), losses.MulticlassHKR(alpha=0.9, reduction="sum")]
    return [loss(scores, labels) for loss in ours]


def certificates(net: nn.Sequential, x: Tensor, y: Tensor) -> None:
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    found: fastlip.Certificate = fastlip.certify(net, loader, eps=(0.1, 0.2), device=torch.device("cpu"))
    share: Mapping[float, float] = found.cra
    whole_sets = [fastlip.certify(net, TensorDataset(x, y), eps=0.1), fastlip.certify(net, (x.numpy(), y.numpy()))]
    radii: Tensor = whole_sets[0].radii
    attacked: fastlip.AttackResult = fastlip.attack(net, loader, eps=[0.1], kind="apgd", steps=2, restarts=1)
    outputs = fastlip.certify_outputs(net, [(x, y)])
    sets = conformal.calibrate(outputs, alpha=0.2).sets(fastlip.certify_outputs(net, x), eps=0.1)
    print(share, radii.shape, attacked.n, sets.sizes)


def models_and_files(net: nn.Sequential, x: Tensor, folder: Path) -> None:
    fused: nn.Sequential = fastlip.unfuse(fastlip.fuse(net))
    plain: nn.Module = fastlip.export(fused, (3, 8, 8))
    file: fastlip.ExportedFile = fastlip.export(net, folder / "net.pt2", (3, 8, 8))
    model: nn.Module = models.create_model("lip_conv_net", method="aol", image_size=8, layers_per_block=1)
    names: list[str] = models.list_models()
    torch_net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    converted, report = fastlip.convert(torch_net, method="aol", example=x[:1])
    manifold = lip.SOCLinear(4, 4, parametrization="manifold")
    optimizer: torch.optim.Optimizer = optim.ManifoldOptimizer(optim.manifold_groups(manifold), torch.optim.SGD)
    batches = data.Batches(data.digits().train, batch_size=32, divisor=16)
    print(plain(x).shape, file.path, model, names, converted(x).shape, report, optimizer, len(batches))
