"""Runs the blocks of the pages on real servers and compares the outputs that they show.

    python scripts/pages.py                     what differs, on any page; ends with 1 if anything does
    python scripts/pages.py README.md           on one page
    python scripts/pages.py --write README.md   writes what is printed into the page
    python scripts/pages.py --list              each block, and what is done with it

A test does the same for every page. What a comment before a block can say, and which parts of an output may
differ, is in scripts/page_blocks.py.
"""

from __future__ import annotations

import argparse
import sys

import listings
from page_blocks import ROOT, blocks, every_page
from page_run import Servers, handled, run, servers

__all__ = ["main", "table"]


def table() -> list[tuple[str, str, str]]:
    """Each block: its place, its language, and what is done with it."""
    found = [block for page in every_page() for block in blocks(page, (ROOT / page).read_text("utf-8"))]
    return [(block.place, block.language, handled(block)) for block in found if block.language != "setup"]


def _write(page: str, these: Servers) -> list[str]:
    path = ROOT / page
    text = path.read_text("utf-8")
    differences, written = run(page, text, these)
    if written != text:
        path.write_text(written, "utf-8")
        differences = run(page, written, these)[0]
    return differences


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description="Runs the blocks of the pages and compares what they show.")
    parser.add_argument("--write", action="store_true", help="write what is printed into the pages")
    parser.add_argument("--list", action="store_true", help="list each block and what is done with it")
    parser.add_argument("pages", nargs="*", help="below the root of the repository; every page by default")
    asked = parser.parse_args()
    if asked.list:
        rows = table()
        for place, language, done in rows:
            print(f"{place:60} {language:8} {done}")
        print(f"{len(rows)} blocks, {sum(done.startswith('not run') for _, _, done in rows)} of them not run")
        return 0
    failed = False
    if asked.write:
        listings.write()
    with servers() as these:
        for page in asked.pages or every_page():
            text = (ROOT / page).read_text("utf-8")
            differences = _write(page, these) if asked.write else run(page, text, these)[0]
            print("\n".join(differences), end="\n" if differences else "")
            failed = failed or bool(differences)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
