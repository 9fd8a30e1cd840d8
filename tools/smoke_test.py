"""Tries an installation of the core: layers train, networks are certified, attacked and exported, trained ones load.

It needs torch and numpy alone, and neither a compiler nor the source folder: run it where a wheel was installed.

    python tools/smoke_test.py [--require native]
"""

from __future__ import annotations

import argparse
import copy
import inspect
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import fastlip

SHAPE = (4, 8, 8)


def layers() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Every convolution and every linear layer of fastlip.nn, with an input."""
    for name in fastlip.nn.__all__:
        cls = getattr(fastlip.nn, name)
        if not inspect.isclass(cls) or inspect.isabstract(cls):
            continue
        if name.endswith("Conv2d"):
            yield name, cls(4, 4, 3), torch.randn(2, *SHAPE)
        elif name.endswith("Conv1d"):
            yield name, cls(4, 4, 3), torch.randn(2, SHAPE[0], SHAPE[-1])
        elif name.endswith("Conv3d"):
            yield name, cls(4, 4, 3), torch.randn(2, SHAPE[0], 3, 4, 4)
        elif name.endswith("Linear"):
            yield name, cls(6, 6), torch.randn(3, 6)


def train_step(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's output after one step of SGD."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(x).square().mean().backward()
    optimizer.step()
    return layer.eval()(x).detach()


def check_layers() -> int:
    """How many layers were tried: the best backend here and the reference agree."""
    count = 0
    for name, layer, x in layers():
        reference = copy.deepcopy(layer)
        for module in reference.modules():
            if hasattr(module, "backend"):
                module.backend = "reference"
        fast, slow = train_step(layer, x), train_step(reference, x)
        if not torch.allclose(fast, slow, atol=1e-4):
            raise SystemExit(f"{name}: kernels and reference differ by {(fast - slow).abs().max():.2e}")
        count += 1
    return count


def check_network(method: str) -> float:
    """The audited bound of a small network after a training step, which is certified, attacked and exported too."""
    torch.manual_seed(0)
    model = fastlip.models.lip_conv_net(method, width=4, image_size=8, in_channels=1, layers_per_block=1)
    batch = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fastlip.losses.OffsetCrossEntropy(0.1, 0.25)(model(batch[0]), batch[1]).backward()
    optimizer.step()
    model.eval()
    certificate = fastlip.certify(model, [batch], eps=[36 / 255])
    fastlip.attack(model, [batch], [36 / 255], steps=2, restarts=1)
    file = io.BytesIO()
    torch.save(fastlip.export(model, (1, 8, 8)), file)
    return certificate.lipschitz


def check_trained() -> int:
    """How many trained networks of the package load, each with the bound of its card."""
    names = fastlip.models.list_models(pretrained=True)
    for name in names:
        card = fastlip.models.model_card(name)
        bound = fastlip.audit(fastlip.models.create_model(name, pretrained=True), card.input_shape).bound
        if abs(bound - card.lipschitz) > 1e-5:
            raise SystemExit(f"{name}: Lipschitz bound {bound:.7f}, its card says {card.lipschitz:.7f}")
    if not names:
        raise SystemExit("no trained networks: the wheel lacks fastlip/models/weights")
    return len(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--require", choices=["native"], help="fail unless the compiled kernels can be loaded")
    options = parser.parse_args()
    if options.require:
        from fastlip.kernels.common import binding

        print(binding.library("cpu").__file__)
    print(f"fastlip {fastlip.__version__} in {Path(fastlip.__file__).parent}, Python {sys.version.split()[0]}")
    print(f"{check_layers()} layers trained")
    print(f"{check_trained()} trained networks loaded")
    for method in fastlip.models.METHODS:
        print(f"{method:<12} Lipschitz bound {check_network(method):.7f}")


if __name__ == "__main__":
    main()
