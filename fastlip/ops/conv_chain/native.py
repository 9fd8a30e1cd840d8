"""conv_chain on the CPU: channels-last convolutions of oneDNN, our passes between them (csrc/conv_chain)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlip.ops import _channels_last as images
from fastlip.ops import _native
from fastlip.ops.conv_chain import mask_shape, scaled

_native.require()


def supports(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    scales: list[Tensor],
    padding_mode: str,
    dilation: tuple[int, int],
    pairing: str,
) -> str:
    """Empty, or why these kernels cannot run."""
    return images.refuse(x, [*biases, *scales], weights, padding_mode, dilation)


def conv_chain_forward(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    scales: list[Tensor],
    keep: bool,
    padding_mode: str,
    dilation: Sequence[int],
    pairing: str,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The last output, and if they are to be kept those before it and the bits of every MaxMin."""
    weights = scaled(weights, scales)
    frames = [images.frame_of(weight, dilation, padding_mode) for weight in weights]
    framed = images.framed(x.contiguous(memory_format=images.LAST), frames[0])
    outputs, masks = [], []
    for weight, bias, frame in zip(weights, biases, [*frames[1:], images.NO_FRAME], strict=True):
        y = images.convolve(framed, weight, dilation, padding_mode)
        y, framed, address = images.outputs_of(y, frame)
        mask = torch.empty(mask_shape(x, weight.shape[0], pairing), dtype=torch.uint8)
        bias = bias.contiguous()
        plain = y.data_ptr() if keep or not address else 0
        addresses = y.data_ptr(), bias.data_ptr(), 0, plain, address, mask.data_ptr()
        images.launch("conv_chain_forward", y, *addresses, images.ACTIVATIONS[pairing], frame=frame)
        outputs.append(y)
        masks.append(mask)
    return outputs[-1], outputs[:-1] if keep else [], masks if keep else []


def conv_chain_backward(
    gradient: Tensor,
    x: Tensor,
    kernels: list[Tensor],
    between: list[Tensor],
    masks: list[Tensor],
    needs_x: bool,
    needs_kernels: list[bool],
    needs_biases: list[bool],
    padding_mode: str,
    dilation: Sequence[int],
    pairing: str,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradients of x (without values unless needed), of the kernels and of the biases (empty unless needed)."""
    inputs = [x.contiguous(memory_format=images.LAST), *between]
    gradient = gradient.contiguous(memory_format=images.LAST)
    weight_gradients, bias_gradients = [], []
    for i in reversed(range(len(kernels))):
        kernel = kernels[i]
        frame = images.opposite(images.frame_of(kernel, dilation, padding_mode))
        # Without a frame the pass writes a plain image.
        framed = images.empty_frame(gradient, frame)
        addresses = (0, framed.data_ptr()) if any(frame) else (framed.data_ptr(), 0)
        bias_gradient = gradient.new_empty(kernel.shape[0] if needs_biases[i] else 0)
        address = bias_gradient.data_ptr() if needs_biases[i] else 0
        addresses = gradient.data_ptr(), masks[i].data_ptr(), *addresses, address
        images.launch("conv_chain_backward", gradient, *addresses, images.ACTIVATIONS[pairing], frame=frame)
        adjoint = images.adjoint(kernel)
        arguments = inputs[i], framed, adjoint, dilation, padding_mode
        bar = images.adjoint_weight_gradient(*arguments) if needs_kernels[i] else kernel.new_empty(0)
        weight_gradients.append(bar)
        bias_gradients.append(bias_gradient)
        if needs_x or i > 0:
            gradient = images.convolve(framed, adjoint, dilation, padding_mode)
    x_gradient = gradient if needs_x else torch.empty_like(inputs[0])
    return x_gradient, weight_gradients[::-1], bias_gradients[::-1]
