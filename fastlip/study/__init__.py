"""Studies: every method under one budget of time (``fastlip compare``), and experiments on what losses do."""
