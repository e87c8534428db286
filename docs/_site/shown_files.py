"""Shows files of the repository in a page, as they are when the site is made.

``<!-- source lockguard/lua/acquire.lua -->`` stands for the file, ``<!-- function lockguard.seal -->`` for a
function of the fence in the last step of the schema that defines it. Where the repository is shown, the link
above such a mark leads to the file. ``<!-- contents first * -->`` makes pages of a folder parts of the page,
in that order.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = ROOT / "integrations/lockguard_postgres/sql"
MARK = re.compile(r"^<!-- (source|function) (\S+) -->$", re.MULTILINE)
CONTENTS = re.compile(r"^<!-- contents (.+) -->$", re.MULTILINE)
DEFINITION = re.compile(
    r"^create (?:or replace )?function (lockguard\.\w+)\(.*?\bas\s+(\$\w*\$).*?\2;\n",
    re.MULTILINE | re.DOTALL,
)
LANGUAGES = {".lua": "lua", ".sql": "postgres"}

log = logging.getLogger(__name__)


@cache
def functions() -> dict[str, tuple[Path, int, int]]:
    """The file and the lines in which each function of the fence was defined last."""
    found: dict[str, tuple[Path, int, int]] = {}
    for step in [*sorted(STEPS.glob("0*.sql")), STEPS / "rights.sql"]:
        text = step.read_text("utf-8")
        for one in DEFINITION.finditer(text):
            first = text.count("\n", 0, one.start()) + 1
            found[one[1]] = step, first, text.count("\n", 0, one.end())
    return found


def show(app: Sphinx, docname: str, content: list[str]) -> None:
    """Include a file where the page has a mark for it."""

    def included(mark: re.Match[str]) -> str:
        lines = ""
        if mark[1] == "function":
            if mark[2] not in functions():
                log.warning("no step of the fence's schema defines %s", mark[2], location=docname)
                return ""
            path, first, last = functions()[mark[2]]
            lines = f":lines: {first}-{last}\n"
        else:
            path = ROOT / mark[2]
        place = os.path.relpath(path, Path(app.srcdir, docname).parent)
        language = LANGUAGES.get(path.suffix, "text")
        caption = path.name
        return f"```{{literalinclude}} {place}\n:language: {language}\n:caption: {caption}\n{lines}```"

    def listed(mark: re.Match[str]) -> str:
        named = mark[1].split()
        if "*" in named:
            app.env.glob_toctrees.add(docname)  # read again when pages come and go
            place = Path(app.srcdir, docname)
            others = sorted({page.stem for page in place.parent.glob("*.md")} - {place.name, *named})
            named[named.index("*") :] = [*others, *named[named.index("*") + 1 :]]
        return "\n".join(["```{toctree}", ":hidden:", "", *named, "```"])

    content[0] = CONTENTS.sub(listed, MARK.sub(included, content[0]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", show)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
