"""What does not yet keep to the rules of test_docstrings.py and test_structure.py: these lists may only shrink."""

DOCSTRINGS = []

FILES = [
    "fastlip/kernels/cayley/triton_kernels.py",
    "fastlip/kernels/common/product_triton.py",
    "tools/gpu/watch.py",
]

FUNCTIONS = [
    "fastlip/kernels/common/product_triton.py: product_kernel",
]

CIRCLES = []

VARIADIC = []

UNTYPED = []

STRINGS = []
