"""The kernels: a folder for each op, and ``common`` for what they share."""

from pkgutil import iter_modules

# The names of the ops. Tests, benchmarks and the documentation go through them.
OPS = sorted(info.name for info in iter_modules(__path__) if info.ispkg and info.name != "common")
