"""A model of TF32 on the CPU, and torch's settings for the precision of float32 products."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
PLACES = [(library, "all") for library in ("generic", "cuda", "mkldnn")]
PRODUCTS = [("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"), ("mkldnn", "matmul"), ("mkldnn", "conv")]
PLACES += PRODUCTS
FULL = ("none", "ieee")
CPU = torch.device("cpu")


def reset():
    """Makes torch's settings what they are when it is imported."""
    torch.set_float32_matmul_precision("highest")
    torch._C._set_cudnn_allow_tf32(True)
    for place in PLACES:
        put(*place, "tf32" if place in (("cuda", "conv"), ("cuda", "rnn")) else "none")


LOWER = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "all libraries": lambda: put("generic", "all", "tf32"),
    "oneDNN": lambda: [put("mkldnn", product, "bf16") for product in ("matmul", "conv")],
}


class TF32(TorchDispatchMode):
    """Products of float32 numbers round them to TF32's ten bits unless the settings say otherwise."""

    PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "convolution", "convolution_backward", "linear", "einsum", "matmul")
    PRODUCTS += ("mv", "addmv", "dot", "vdot", "linalg_matrix_exp")

    def __init__(self):
        super().__init__()
        self.rounded = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name.partition("::")[2]
        if name in self.PRODUCTS:
            product = ("mkldnn", "conv") if "convolution" in name else ("mkldnn", "matmul")
            if get(*product) not in FULL:
                args = tuple(map(self.round, args))
        return func(*args, **(kwargs or {}))

    def round(self, value):
        if not isinstance(value, torch.Tensor) or value.dtype not in (torch.float32, torch.complex64):
            return value
        self.rounded += 1
        if value.is_complex():
            parts = torch.view_as_real(value.resolve_conj().contiguous())
            return torch.view_as_complex(self.round(parts))
        bits = value.contiguous().view(torch.int32)
        return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)
