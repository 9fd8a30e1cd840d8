"""Studies: all methods under one budget of time (``fastlip compare``), and experiments on losses."""
