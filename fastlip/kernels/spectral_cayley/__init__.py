"""Cayley transforms of a convolution's matrices."""
