"""Products of float32 numbers by parts on tensor cores: 3xTF32 without what Triton's own puts between its products.

``tl.dot(input_precision="tf32x3")`` looks for NaN in each small sum before it goes on, so sums are copied between the
products. Here a complex product is two chains of six, each of which sums where the last one did.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton's own compiler reads the kernels: to pyright its constants are numbers.

import triton
import triton.language as tl


@triton.jit
def split(x):
    """x = large + small exactly; large has TF32's ten bits, rounded, and what a tensor core cuts off of small is
    below 2⁻²³ |x|. NaN stays in small, and the small part of Inf is NaN: what is not finite remains so."""
    bits = x.to(tl.int32, bitcast=True)
    large = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return large, x - large


@triton.jit
def complex_step(a_re, a_im, b_re, b_im, re, im):
    """(re, im) + a b, float32. The sums of a step are the tensor core's, which cuts off; they are added rounded."""
    s_re, t_re = split(a_re)
    s_im, t_im = split(a_im)
    u_re, v_re = split(b_re)
    u_im, v_im = split(b_im)
    total = tl.dot(t_re, u_re, input_precision="tf32", out_dtype=re.dtype)
    total = tl.dot(s_re, v_re, total, input_precision="tf32", out_dtype=re.dtype)
    total = tl.dot(-t_im, u_im, total, input_precision="tf32", out_dtype=re.dtype)
    total = tl.dot(-s_im, v_im, total, input_precision="tf32", out_dtype=re.dtype)
    total = tl.dot(s_re, u_re, total, input_precision="tf32", out_dtype=re.dtype)
    re += tl.dot(-s_im, u_im, total, input_precision="tf32", out_dtype=re.dtype)
    total = tl.dot(t_re, u_im, input_precision="tf32", out_dtype=re.dtype)
    total = tl.dot(s_re, v_im, total, input_precision="tf32", out_dtype=re.dtype)
    total = tl.dot(t_im, u_re, total, input_precision="tf32", out_dtype=re.dtype)
    total = tl.dot(s_im, v_re, total, input_precision="tf32", out_dtype=re.dtype)
    total = tl.dot(s_re, u_im, total, input_precision="tf32", out_dtype=re.dtype)
    im += tl.dot(s_im, u_re, total, input_precision="tf32", out_dtype=re.dtype)
    return re, im
