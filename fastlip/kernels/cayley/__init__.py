"""Cayley transform of a batch of matrices: orthonormal columns or rows from any matrix."""
