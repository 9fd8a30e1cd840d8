"""Kernel of an orthogonal convolution from a matrix, or a kernel, and a chain of projectors."""
