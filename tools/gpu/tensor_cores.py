"""What tensor cores do to float32, on the CPU: TF32 numbers, 3xTF32 products, sums that are cut off.

A multiplication takes numbers rounded to TF32's ten bits, and its sums drop bits instead of rounding them. 3xTF32
splits a number in two such parts and leaves out the product of the small ones; Triton adds its partial sums outside
of the tensor core, rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

STEP = 8  # of a tensor core's sum: products that are added at once


def tf32(x: np.ndarray) -> np.ndarray:
    """Rounded to ten bits, ties away from zero."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32).reshape(x.shape)


def cut(x: np.ndarray) -> np.ndarray:
    """What a tensor core reads of float32 numbers that nobody rounded: ten bits, the others dropped."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32).reshape(x.shape)


def truncated(x: np.ndarray) -> np.ndarray:
    """Float64 numbers as float32, towards zero."""
    near = x.astype(np.float32)
    return np.where(np.abs(near.astype(np.float64)) > np.abs(x), np.nextafter(near, np.float32(0)), near)


def multiply(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> np.ndarray:
    """total + a b of TF32 numbers in one tensor core, a few products at a time, each sum cut off."""
    for start in range(0, a.shape[-1], STEP):
        left, right = a[..., start : start + STEP], b[..., start : start + STEP, :]
        total = truncated(np.matmul(left.astype(np.float64), right.astype(np.float64)) + total.astype(np.float64))
    return total


def dot(a: np.ndarray, b: np.ndarray, total: np.ndarray, three: bool = True) -> np.ndarray:
    """total + a b of float32 numbers as Triton computes it: in 3xTF32, or in TF32."""
    a_big, b_big = tf32(a), tf32(b)
    product = np.zeros(total.shape, np.float32)
    if three:
        product = multiply(tf32(a - a_big), b_big, product)
        product = multiply(a_big, tf32(b - b_big), product)
    return (multiply(a_big, b_big, product) + total).astype(np.float32)


def interpreted(three: bool) -> Any:
    """In place of ``InterpreterBuilder.create_dot`` of Triton's interpreter; what asks for TF32 is given it."""
    from triton.runtime.interpreter import TensorHandle

    def create_dot(self: Any, a: Any, b: Any, total: Any, precision: Any, *_: Any) -> Any:
        if precision.name == "TF32":
            result = multiply(cut(a.data), cut(b.data), total.data)
        elif a.data.dtype != np.float32:
            result = np.matmul(a.data, b.data, dtype=total.data.dtype) + total.data
        else:
            result = dot(a.data, b.data, total.data, three)
        return TensorHandle(result, total.dtype.scalar)

    return create_dot
