"""Makes the pictures of the documentation's gallery: runs the experiments and examples that draw them.

``python tools/docs/gallery.py`` runs all of them, ``python tools/docs/gallery.py pareto`` those that are named, and
writes docs/images/gallery/NAME.png, 1200 pixels wide and with 256 colours. It takes about four minutes.
``--from FOLDER`` takes figures that are there already, as FOLDER/NAME.png.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "images" / "gallery"
WIDTH, COLOURS = 1200, 256

# What draws each figure, in a folder of its own, after the name of the interpreter.
COMMANDS: dict[str, tuple[str, ...]] = {
    **{
        name: ("-m", "fastlip", "experiment", name, "--out", ".")
        for name in ("temperature", "pareto", "signed-distance", "two-diracs", "random-labels")
    },
    "conformal_digits": (str(ROOT / "examples" / "conformal_digits.py"), "--figure", "conformal_digits.png"),
}


def draw(name: str, folder: Path) -> Path:
    """Runs the command, and returns the figure's file."""
    subprocess.run((sys.executable, *COMMANDS[name]), cwd=folder, check=True)
    return folder / f"{name}.png"


def reduce(figure: Path, name: str) -> None:
    """Writes the figure in the gallery's size."""
    with Image.open(figure) as image:
        scaled = image.convert("RGB")
        if scaled.width > WIDTH:
            scaled = scaled.resize((WIDTH, round(scaled.height * WIDTH / scaled.width)), Image.Resampling.LANCZOS)
        scaled.quantize(COLOURS, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=(*COMMANDS, []), help="figures to make; all by default")
    parser.add_argument("--from", dest="source", type=Path, help="folder with figures that are there already")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in options.names or COMMANDS:
        if options.source:
            reduce(options.source / f"{name}.png", name)
            continue
        with tempfile.TemporaryDirectory() as folder:
            reduce(draw(name, Path(folder)), name)


if __name__ == "__main__":
    main()
