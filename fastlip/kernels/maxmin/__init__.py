"""MaxMin activation, forward and backward with one saved bit per pair."""
