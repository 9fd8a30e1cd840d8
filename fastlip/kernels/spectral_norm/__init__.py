"""Upper bound of the L2 operator norm of a convolution on images of one size, or of a matrix."""
