"""Space to depth of channels-last images, which torch reads well and writes badly."""
