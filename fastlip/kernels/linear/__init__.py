"""A matrix times each vector of a batch: the product of dense layers (README.md)."""
