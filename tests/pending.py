"""What does not yet keep to the rules of test_docstrings.py and test_structure.py: these lists may only shrink."""

DOCSTRINGS = []

FILES = [
    "tools/gpu/watch.py",
]

FUNCTIONS = [
    "fastlip/kernels/common/product_triton.py: product_kernel",
]

CIRCLES = []

VARIADIC = []

UNTYPED = []

STRINGS = []
