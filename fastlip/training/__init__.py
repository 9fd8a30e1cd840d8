"""Training: recipe, loop, run folder, checkpoints and logs."""
