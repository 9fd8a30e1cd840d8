"""Polar factors of a convolution's matrices, one per frequency, from the kernel's taps."""
