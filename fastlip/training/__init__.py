"""Training: recipe, loop, checkpoints and logs."""
