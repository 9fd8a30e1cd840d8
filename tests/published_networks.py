"""Published LiResNets and BRONets, from their formulas: random weights under the published names, and outputs.

Everything here is in float64 and goes other ways than the package: full complex transforms, explicit projections,
Gram-Schmidt by triangular inverses.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, FEATURES, CLASSES, DEPTH = 6, 10, 4, 2


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def eye(rows: int, columns: int | None = None) -> Tensor:
    return torch.eye(rows, columns or rows, dtype=torch.float64)


def centred_eye(rows: int, columns: int) -> Tensor:
    kernel = torch.zeros(rows, columns, 3, 3, dtype=torch.float64)
    kernel[:, :, 1, 1] = eye(rows, columns)
    return kernel


def stem_entries(side: int, kernel: int) -> dict[str, Tensor]:
    return {
        "stem.0.weight": normal(WIDTH, 3, kernel, kernel) / kernel,
        "stem.0.bias": normal(WIDTH),
        "stem.0.init_x": normal(1, 3, side, side),
    }


def common_blocks(depth: int, rank: int) -> dict[str, Tensor]:
    return {
        "weights": normal(depth, WIDTH, rank, 3, 3) / 9,
        "gamma": 1 + normal(depth, WIDTH, 1, 1, 1) / 4,
        "bias": normal(depth, WIDTH),
        "running_mean": normal(depth, WIDTH),
    }


def linear_blocks(depth: int, side: int) -> dict[str, Tensor]:
    """LiResNet's convolutions."""
    entries = common_blocks(depth, WIDTH)
    entries["identity"] = centred_eye(WIDTH, WIDTH).expand(depth, -1, -1, -1, -1).clone()
    entries["init_x"] = normal(1, depth * WIDTH, side, side)
    return entries


def reflector_blocks(depth: int, rank: int) -> dict[str, Tensor]:
    """BRONet's convolutions."""
    constants = {"I_low": eye(rank)[None, None, None], "I_full": eye(WIDTH)[None, None, None]}
    return {**common_blocks(depth, rank), "identity": centred_eye(WIDTH, rank), **constants}


def neck_entries(kind: str, dense: str, patch: int, pixels: int) -> dict[str, Tensor]:
    rows, flat = WIDTH * patch**2, WIDTH * pixels
    entries = {"bias": normal(FEATURES)}
    if kind != "l2":
        entries["kernel"] = normal(WIDTH, rows) if kind == "cholesky" else normal(rows, WIDTH)
    entries["weight"] = normal(FEATURES, flat) if dense == "cholesky" else normal(flat, FEATURES)
    return entries


def dense_entries(kind: str, depth: int, rank: int = 3) -> dict[str, Tensor]:
    columns = FEATURES if kind == "cholesky" else rank
    entries = {
        "weights": normal(depth, FEATURES, columns) / FEATURES,
        "gamma": 1 + normal(depth, FEATURES, 1) / 4,
        "bias": normal(depth, FEATURES),
        "identity": eye(FEATURES),
    }
    if kind == "cholesky":
        return {**entries, "eval_weight": normal(depth, FEATURES, FEATURES)}  # of an earlier evaluation
    return {**entries, "residual_identity": eye(FEATURES, rank), "identity_half": eye(rank)}


def under(prefix: str, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in entries.items()}


def head_entries() -> dict[str, Tensor]:
    return {"head.weight": normal(CLASSES, FEATURES), "head.bias": normal(CLASSES)}


def liresnet(depth: int = DEPTH, dense: int = 2) -> dict[str, Tensor]:
    """The entries of a LiResNet for images of 32 pixels."""
    parts = {"conv": linear_blocks(depth, 16), "neck": neck_entries("cholesky", "cholesky", 4, 16)}
    entries = stem_entries(32, 5)
    for prefix, values in {**parts, "linear": dense_entries("cholesky", dense)}.items():
        entries |= under(prefix, values)
    return {**entries, **head_entries()}


def bronet(neck: str = "cholesky", neck_dense: str = "cholesky", dense: str = "cholesky", rank: int = 3):
    """The entries of a BRONet for images of 32 pixels."""
    entries = stem_entries(32, 5) | under("conv", reflector_blocks(DEPTH, rank))
    entries |= under("neck", neck_entries(neck, neck_dense, 4, 16)) | under("linear", dense_entries(dense, 2))
    return {**entries, **head_entries()}


def imagenet_bronet() -> dict[str, Tensor]:
    """The entries of a BRONet for images of 224 pixels: linear blocks, growing reflectors, a neck of norms."""
    entries = stem_entries(224, 14) | under("conv_1", linear_blocks(1, 16)) | under("conv", reflector_blocks(2, 3))
    entries |= under("neck", neck_entries("l2", "cholesky", 4, 25)) | under("linear", dense_entries("cholesky", 1))
    return {**entries, **head_entries()}


IMAGENET = {"backbone_type": "hybridbrov2", "neck_conv_type": "l2", "neck_conv_patch_size": 4}


def maxmin(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat((torch.maximum(a, b), torch.minimum(a, b)), 1)


def cholesky_rows(V: Tensor) -> Tensor:
    gram = V @ V.T
    gram = gram + 1e-3 * gram.diagonal().mean() * eye(len(gram))
    return torch.linalg.inv(torch.linalg.cholesky(gram)) @ V


def reflector(V: Tensor, ridge: float) -> Tensor:
    gram = V.mH @ V
    r = ridge * gram.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
    return eye(V.shape[-2]) - 2 * V @ torch.linalg.inv(gram + r * eye(V.shape[-1])) @ V.mH


def reflector_convolution(x: Tensor, V: Tensor, version: int, zeros: bool) -> Tensor:
    """The circular convolution (version 2: correlation) by the reflectors of a kernel's spectrum."""
    x = F.pad(x, (1, 1, 1, 1)) if zeros else x
    sides = x.shape[-2:]
    spectrum = torch.fft.fft2(V, sides).permute(2, 3, 0, 1)
    Q = reflector(spectrum if version == 1 else spectrum.conj(), 1e-7)
    y = torch.fft.ifft2(torch.einsum("hwoi,nihw->nohw", Q, torch.fft.fft2(x))).real
    return y[..., 1:-1, 1:-1] if zeros and version == 1 else y


def blocks(x: Tensor, own: dict[str, Tensor], version: int, zeros: bool, quasi_residual: bool) -> Tensor:
    depth = len(own["weights"])
    for W, gamma, bias, mean in zip(
        own["weights"], own["gamma"], own["bias"], own.get("running_mean", torch.zeros(depth, 1)), strict=True
    ):
        V = centred_eye(*W.shape[:2]) + gamma * W * depth**-0.5 if quasi_residual else gamma * W
        y = F.conv2d(x, V, padding=1) if "init_x" in own else reflector_convolution(x, V, version, zeros)
        x = maxmin(y + (bias - mean)[:, None, None])
    return x


def neck(x: Tensor, own: dict[str, Tensor], patch: int) -> Tensor:
    patches = x.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5)  # n, h, w, c, p, p
    if "kernel" not in own:
        y = patches.square().sum((-1, -2)).sqrt()
    else:
        K = own["kernel"]
        Q = cholesky_rows(K) if len(K) == WIDTH else reflector(K, 1e-5)[:WIDTH]
        y = patches.flatten(3) @ Q.T
    flat, W = y.permute(0, 3, 1, 2).flatten(1), own["weight"]
    W = cholesky_rows(W) if len(W) == FEATURES else reflector(W, 1e-5)[:FEATURES]
    return maxmin(flat @ W.T + own["bias"])


def dense_layers(x: Tensor, own: dict[str, Tensor]) -> Tensor:
    depth = len(own["weights"])
    for W, gamma, bias in zip(own["weights"], own["gamma"], own["bias"], strict=True):
        V = eye(*W.shape) + gamma * W * depth**-0.5
        Q = cholesky_rows(V) if W.shape[0] == W.shape[1] else reflector(V, 1e-7)
        x = maxmin(x @ Q.T + bias)
    return x


def published_outputs(
    state: dict[str, Tensor],
    x: Tensor,
    *,
    version: int = 1,
    zeros: bool = True,
    quasi_residual: bool = True,
    patch: int = 4,
    unit_rows: bool = True,
) -> Tensor:
    """What the published network returns in evaluation for images (n, 3, side, side)."""

    def own(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")
        }

    W = state["stem.0.weight"]
    step = {"stride": 2, "padding": W.shape[-1] // 2} if x.shape[-1] != 224 else {"stride": W.shape[-1]}
    x = maxmin(F.conv2d(x - 0.5, W, state["stem.0.bias"], **step))
    if "conv_1.weights" in state:
        x = blocks(x, own("conv_1"), version, zeros, True)
    x = blocks(x, own("conv"), version, zeros, quasi_residual)
    x = neck(x, own("neck"), patch)
    if "linear.weights" in state:
        x = dense_layers(x, own("linear"))
    W = state["head.weight"]
    return x @ (W / W.norm(dim=1, keepdim=True) if unit_rows else W).T + state["head.bias"]
