"""The public functions and classes of the package, for the tests that go through all of them."""

import importlib
import inspect

MODULES = [
    *(
        "",
        "nn",
        "ops",
        "losses",
        "metrics",
        "models",
        "data",
        "hub",
        "certification",
        "conformal",
        "optim",
        "training",
    ),
]


def public_names(module):
    """The names that a module lists, or else those that it defines."""
    if hasattr(module, "__all__"):
        return module.__all__
    defined = ((name, value) for name, value in vars(module).items() if not name.startswith("_"))
    return [name for name, value in defined if getattr(value, "__module__", "") == module.__name__]


def public_objects(modules):
    """Every function and class of these modules of the package, once, by its shortest path."""
    found = {}
    for short in modules:
        path = f"fastlip.{short}".rstrip(".")
        module = importlib.import_module(path)
        for name in public_names(module):
            value = getattr(module, name)
            if (inspect.isfunction(value) or inspect.isclass(value)) and value not in found.values():
                found[f"{path}.{name}"] = value
    return found


OBJECTS = public_objects(MODULES)


def constructor(cls):
    """The ``__init__`` of a class, if the package wrote it: not torch, a protocol or a dataclass."""
    own = cls.__init__
    written = inspect.isfunction(own) and not own.__code__.co_filename.startswith("<")
    return own if written and own.__module__.startswith("fastlip") else None


def is_result(value):
    """Whether this is the class of a named tuple or a dataclass, whose fields are what it is about."""
    return inspect.isclass(value) and (issubclass(value, tuple) or hasattr(value, "__dataclass_fields__"))
