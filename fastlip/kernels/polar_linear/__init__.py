"""The polar factor of a matrix applied to few vectors, without the factor (README.md)."""
