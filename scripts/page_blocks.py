"""The fenced blocks of a page, what its comments say about them, and when two outputs are the same.

A comment directly before a block says what is special about it. It shows neither on GitHub nor on the site:

    <!-- not run: REASON -->     it is not run; Python is still compiled, and what it imports must exist
    <!-- save as: NAME -->       the block is a file, which later commands of the page use
    <!-- ends with: 1 -->        the exit status of the last command, or of the last ones, where it is not 0
    <!-- until Ctrl-C -->        the last command goes on until it has printed what is shown, then gets Ctrl-C
    <!-- differs: REGEX -->      also differs from run to run, besides what RULES names
    <!-- printed -->             a text block that shows what the Python before it prints
    <!-- run by test_NAME -->    a test of its own runs it, and it is not run here
    <!-- run by redis-cli -->    a text block of commands of Redis
    <!-- setup ... -->           Python that is run and not shown: the names that the page takes as given
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

__all__ = [
    "ELSEWHERE",
    "ROOT",
    "RULES",
    "Block",
    "Command",
    "blocks",
    "commands",
    "every_page",
    "same",
]

ROOT = Path(__file__).resolve().parent.parent

RULES = (
    ("GRANT", r"\b[0-9a-f]{32}\b"),
    ("UUID", r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"),
    ("TIME", r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d([.,]\d+)?\b"),
    ("TIME", r"\b\d{1,2}:\d\d:\d\d([.,]\d+)?\b"),
    ("TOKEN", r"\b\d{16}\b"),
    ("TIME_MS", r"\b\d{13}\b"),
    ("HOLDER", r"[\w.\-]+:\d+/(Task-\d+|Main\S*)"),
    ("PORT", r"(?<=127\.0\.0\.1:)\d+"),
    ("DURATION", r"\b\d+(\.\d+)? (ms|s|min)\b"),
    ("-", r"[─\-=+┼]{3,}"),
    (" ", r"\s+"),
)
"""What differs from run to run, in any page. All else is compared word for word.

Widths of columns follow their contents, so blanks and rules count as one.
"""

ELSEWHERE = {
    "file": "tests/integration/test_documentation.py, and the test that runs the program",
    "diff": "tests/integration/test_guide.py",
    "listing": "tests/integration/test_guide.py",
    "run": "tests/integration/test_guide.py",
}
"""Blocks that are written from files and compared and run by tests of their own."""

_ORDERS = ("not run", "save as", "ends with", "until Ctrl-C", "differs", "printed", "run by")
_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)


@dataclass
class Block:
    """A fenced block, or a comment with a page's setup.

    Attributes:
        page: below the repository's root.
        line: of its fence, counted from one.
        language: after the fence; ``setup`` for a comment.
        text: without the fence and without the indent of a list.
        orders: what comments before it say.
    """

    page: str
    line: int
    language: str
    text: str
    orders: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where it is, as editors open it."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a session.

    Attributes:
        typed: its lines as they are in the page.
        code: what a shell runs.
        shown: the output below it.
    """

    typed: str
    code: str
    shown: str


def every_page() -> list[str]:
    """Every page that is for readers, below the root. The changelog and the decisions tell what was."""
    pages = [*ROOT.glob("*.md"), ROOT / "lab/README.md", *(ROOT / "docs").rglob("*.md")]
    names = sorted(page.relative_to(ROOT).as_posix() for page in pages)
    return [name for name in names if name != "CHANGELOG.md" and not name.startswith(("docs/adr/", "docs/_"))]


def blocks(page: str, text: str) -> list[Block]:
    """The page's blocks in order.

    Raises:
        ValueError: a comment before a block says something unknown, as a mistyped one does.
    """
    found: list[Block] = []
    orders: dict[str, str] = {}
    for token in MarkdownIt().parse(text):
        if token.type == "html_block" and token.map:
            for comment in _COMMENT.findall(token.content):
                if comment.split("\n", 1)[0] == "setup":
                    found.append(Block(page, token.map[0] + 1, "setup", comment.partition("\n")[2]))
                else:
                    orders |= _order(comment)
        elif (
            token.type == "fence" and token.map and not token.info.startswith("{")
        ):  # those are the site's own
            place = f"{page}:{token.map[0] + 1}"
            unknown = [name for name in orders if name not in (*_ORDERS, *ELSEWHERE)]
            if unknown:
                raise ValueError(
                    f"{place}: a comment says {unknown[0]!r}, which scripts/page_blocks.py does not know"
                )
            found.append(Block(page, token.map[0] + 1, token.info.strip(), token.content, orders))
            orders = {}
        elif token.type in ("inline", "heading_open", "table_open"):
            orders = {}
    return found


def _order(comment: str) -> dict[str, str]:
    name, colon, value = comment.partition(":")
    if colon and name in _ORDERS:
        return {name: value.strip()}
    if comment.startswith("run by "):
        return {"run by": comment.removeprefix("run by ")}
    word, _, rest = comment.partition(" ")
    if word in ELSEWHERE:
        return {word: rest}
    return {} if comment == "end" else {comment: ""}


def commands(session: str) -> list[Command]:
    """The commands of a session and what is shown below each."""
    found: list[Command] = []
    lines = session.splitlines()
    while lines:
        first = lines.pop(0)
        if not first.startswith("$ "):
            raise ValueError(f"a session begins with a command, and not with {first!r}")
        typed = [first]
        while lines and (typed[-1].endswith("\\") or lines[0].startswith("> ")):
            typed.append(lines.pop(0))
        shown = []
        while lines and not lines[0].startswith("$ "):
            shown.append(lines.pop(0))
        code = "\n".join(line.removeprefix("$ ").removeprefix("> ") for line in typed)
        found.append(Command("\n".join(typed), code, "\n".join(shown)))
    return found


def _shape(output: str, differs: str = "") -> list[str]:
    """The lines of an output without what differs from run to run."""
    lines = []
    for line in output.splitlines():
        text = re.sub(differs, "*", line) if differs else line
        for name, pattern in RULES:
            text = re.sub(pattern, name, text)
        lines.append(text.strip())
    while lines and not lines[-1]:
        lines.pop()
    return lines


def same(shown: str, printed: str, differs: str = "") -> bool:
    """Whether an output is as shown. A line of three dots stands for any lines."""
    parts: list[list[str]] = [[]]
    for line in _shape(shown, differs):
        if line == "...":
            parts.append([])
        else:
            parts[-1].append(line)
    rest = _shape(printed, differs)
    if len(parts) == 1:
        return parts[0] == rest
    begin, *middle, end = parts
    if rest[: len(begin)] != begin:
        return False
    rest = rest[len(begin) :]
    for part in middle:
        starts = [at for at in range(len(rest) - len(part) + 1) if rest[at : at + len(part)] == part]
        if not starts:
            return False
        rest = rest[starts[0] + len(part) :]
    return len(rest) >= len(end) and (not end or rest[-len(end) :] == end)
