"""Writes the tables of measured figures into docs/benchmarks.md and docs/guide/pretrained.md.

``python tools/docs/benchmarks_page.py`` replaces the text between ``<!-- table: NAME argument -->`` and
``<!-- end of table -->`` by the table that ``tables.py`` makes from benchmarks/results/*.json and from the cards of
the trained networks. With ``--check`` it changes nothing and exits with 1 if a page is not up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import ablation
import growth
import peers
from tables import ROOT, TABLES

PAGES = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "guide" / "pretrained.md"
_REGION = re.compile(r"^(<!-- table: (\w+)((?: \w+)*) -->\n).*?^(<!-- end of table -->)$", re.M | re.S)
_TABLES = TABLES | {
    "growth": growth.table,
    "how_growth": growth.about,
    "ablation": ablation.ablation,
    "peers": peers.peers,
}


def refresh(text: str) -> str:
    """The page with new tables; KeyError names an unknown table."""

    def region(match: re.Match[str]) -> str:
        return f"{match[1]}{_TABLES[match[2]](*match[3].split())}\n{match[4]}"

    return _REGION.sub(region, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a table is not up to date")
    options = parser.parse_args()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fresh = refresh(text)
        if options.check and fresh != text:
            sys.exit(f"{page.relative_to(ROOT)}: run `python tools/docs/benchmarks_page.py`")
        page.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
