"""Truncated exponential of a convolution."""
