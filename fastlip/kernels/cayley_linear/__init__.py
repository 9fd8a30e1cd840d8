"""The Cayley transform of a square matrix applied to vectors, with a gradient of as many products (README.md)."""
