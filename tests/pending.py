"""What does not yet keep to the rules of test_docstrings.py and test_structure.py: these lists may only shrink."""

DOCSTRINGS = []

FILES = []

FUNCTIONS = []

CIRCLES = []

VARIADIC = []

UNTYPED = []

STRINGS = []
