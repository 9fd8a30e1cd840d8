"""Matrix exponential of a batch of skew-Hermitian matrices, exactly unitary; and of a convolution's kernel."""
