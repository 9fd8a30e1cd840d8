"""A chain of "same" convolutions, each with its bias and MaxMin, forward and backward in channels-last passes."""
