"""The exponential of a skew matrix applied to few vectors, without the exponential (README.md)."""
