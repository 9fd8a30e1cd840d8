"""Weighted absolute row sums of the Gram operator of a weight: the rescaling of AOL and SLL layers."""
