"""Reflections of a batch of matrices: I - 2 V (VᴴV)⁻¹ Vᴴ, orthogonal for every V."""
