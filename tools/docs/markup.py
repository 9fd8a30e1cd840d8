"""Converts docstrings to Markdown: formulas become lines of Unicode, which need no script or font."""

from __future__ import annotations

import re

_NAMES = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eta": "η", "mu": "μ", "phi": "φ", "varphi": "φ",
    "pi": "π", "psi": "ψ", "Psi": "Ψ", "rho": "ρ", "sigma": "σ", "dots": "…", "langle": "⟨", "rangle": "⟩",
    "tau": "τ", "theta": "θ", "sum": "Σ", "prod": "∏", "le": "≤", "ge": "≥", "ne": "≠", "neq": "≠", "mapsto": "↦",
    "top": "T", "nabla": "∇", "lVert": "‖", "rVert": "‖", "lfloor": "⌊", "rfloor": "⌋", "qquad": "\n", "quad": " ",
    "leftarrow": "←", "min": "min", "max": "max", "log": "log", "exp": "exp", "sin": "sin", "cos": "cos",
    "in": "∈", "infty": "∞", "varepsilon": "ε",
}  # fmt: skip
_SIZES = re.compile(r"\\(?:[bB]igg?[lr]?|left|right)(?![a-z])")
_SPACES = re.compile(r"\\[,; ]")
_HAT = re.compile(r"\\hat\s*\{?\s*(\w)\}?")
_WORDS = re.compile(r"\\(?:mathrm|text|operatorname)\{([^{}]*)\}")
_FRACTION = re.compile(r"\\t?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(\w)\s*(\w))")
_ROOT = re.compile(r"\\sqrt\s*(?:\{([^{}]*)\}|(\w))")
_INDEX = re.compile(r"([_^])\{([^{}]*)\}")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_FORMULA = re.compile(r"^([ ]*)\.\. math:: (.*\n(?:\1[ ]+\S.*\n)*)", re.M)
_ROLE = re.compile(r":(?:func|class|meth|mod):`([^`]*)`")
_CODE = re.compile(r"(^ *```.*?^ *```$|^ *>>> .*?(?=\n *\n|\Z)|``.*?``|`[^`]*`)", re.M | re.S)
_EXAMPLE = re.compile(r"^Example:$", re.M)
_BARE_DOCTEST = re.compile(r"^>>> .*?(?=\n *\n|\Z)", re.M | re.S)
_RAISED = {"^T": "ᵀ", "^H": "ᴴ", "^2": "²", "^(-1)": "⁻¹"}


def to_markdown(docstring: str) -> str:
    """The docstring in Markdown, without text that looks like HTML; doctests stand in sections of examples."""
    text = _BARE_DOCTEST.sub(_section, _EXAMPLE.sub("Examples:", docstring))
    text = _ROLE.sub(_link, _FORMULA.sub(_block, text + "\n"))
    parts = _CODE.split(text)
    return "".join(part if index % 2 else part.replace("<", "&lt;") for index, part in enumerate(parts))


def to_unicode(latex: str) -> str:
    r"""A formula in Unicode; ``\qquad`` starts a new line. ValueError names a command that is not known here."""
    text = _SPACES.sub(" ", _SIZES.sub("", " ".join(latex.split())).replace(r"\|", "‖"))
    text = _HAT.sub(lambda match: match[1] + "\u0302", text)
    text = _WORDS.sub(r"\1", text)
    text = _COMMAND.sub(_name, text)
    # This works from the inside out: an index has no braces once those inside it are gone.
    while (changed := _unbrace(text)) != text:
        text = changed
    if "\\" in text:
        raise ValueError(f"formula {latex!r}: not understood: {text!r}")
    for index, raised in _RAISED.items():
        text = re.sub(re.escape(index) + r"(?![\w(])", raised, text)
    text = re.sub(r" *([,;)\]⌋])", r"\1", re.sub(r"⌊ +", "⌊", text))
    text = re.sub(r"‖ (\w+) ‖", r"‖\1‖", text)
    return "\n".join(" ".join(line.split()) for line in text.split("\n"))


def _section(match: re.Match[str]) -> str:
    """A doctest as a section of its own: Markdown would read it as a quotation."""
    return "Examples:\n" + "".join(f"    {line}\n" for line in match[0].split("\n")).rstrip("\n")


def _block(match: re.Match[str]) -> str:
    lines = ("```text", *to_unicode(match[2]).split("\n"), "```")
    return "".join(f"{match[1]}{line}\n" for line in lines)


def _link(match: re.Match[str]) -> str:
    name = match[1]
    return f"[`{name}`][{name}]" if name.startswith("fastlip.") else f"`{name}`"


def _unbrace(text: str) -> str:
    text = _INDEX.sub(lambda match: match[1] + _grouped(match[2]), text)
    text = _ROOT.sub(lambda match: "√" + _grouped(match[1] or match[2]), text)
    return _FRACTION.sub(_fraction, text)


def _fraction(match: re.Match[str]) -> str:
    above, below = (match[1], match[2]) if match[1] is not None else (match[3], match[4])
    return f"{_grouped(above.strip())} / {_grouped(below.strip())}"


def _grouped(text: str) -> str:
    simple = re.fullmatch(r"\w+|\w_\w", text) or (text.startswith(("max(", "min(")) and text.count("(") == 1)
    return text if simple else f"({text})"


def _name(match: re.Match[str]) -> str:
    # Fractions and roots are replaced later, with their arguments.
    return match[0] if match[1] in ("frac", "tfrac", "sqrt") else _NAMES.get(match[1], match[0])
