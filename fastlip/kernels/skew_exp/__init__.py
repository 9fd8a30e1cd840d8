"""Matrix exponential of a batch of real skew matrices: dense orthogonal layers."""
