"""Polar factor of a batch of matrices: the nearest matrix with orthonormal rows or columns."""
