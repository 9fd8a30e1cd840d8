"""Shared by the kernels: dispatch, compiled modules, launches, precision, padding."""
