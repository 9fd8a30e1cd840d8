"""What the kernels share: dispatch, compiled modules, launches, precision, padding."""
