"""Writes into the guide what it shows of the bots, and what their races print.

    python page.py         the listings and the differences between the bots
    python page.py --run   also the races, by running them

Each piece of the page stands between ``<!-- diff bot0.py bot1.py -->``, ``<!-- listing bot0.py NAME -->`` or
``<!-- run 1 -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import difflib
import re
from collections.abc import Callable
from pathlib import Path

from race import results, shown

from lockguard.testing import PostgresServer, RedisServer

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
PIECE = re.compile(r"<!-- (diff|listing|run) (?!by )([^\n]+?) -->\n```\w+\n(.*?)```\n<!-- end -->", re.DOTALL)
LANGUAGES = {"diff": "diff", "listing": "python", "run": "text"}


def diff(old: str, new: str) -> str:
    """The difference between two bots."""
    before, after = ((HERE / name).read_text().splitlines(keepends=True) for name in (old, new))
    return "".join(difflib.unified_diff(before, after, old, new, n=2))


def listing(file: str, name: str) -> str:
    """A function out of a bot."""
    text = (HERE / file).read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return "".join(text.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno])
    raise ValueError(f"{file} has no function {name}")


def due(kind: str, words: str) -> str:
    """What a piece must show."""
    return (diff if kind == "diff" else listing)(*words.split())


def form(output: str) -> str:
    """What is the same whenever a race is run: all but tokens and the name of a process."""
    return re.sub(r"\S+:\d+/Task-\d+", "HOLDER", re.sub(r"\d{9,}", "TOKEN", output))


def written(page: str, piece: Callable[[str, str, str], str]) -> str:
    """The page with each piece as ``piece(kind, words, shown)`` gives it."""

    def replace(match: re.Match[str]) -> str:
        kind, words, shown = match.groups()
        body = piece(kind, words, shown)
        return f"<!-- {kind} {words} -->\n```{LANGUAGES[kind]}\n{body}```\n<!-- end -->"

    return PIECE.sub(replace, page)


def main() -> None:
    """Bring the page up to date."""
    parser = argparse.ArgumentParser(description="Brings the guide's page up to date.")
    parser.add_argument("--run", action="store_true", help="run the races, too")
    run = parser.parse_args().run

    def piece(kind: str, words: str, was: str) -> str:
        if kind != "run":
            return due(kind, words)
        return printed(int(words)) if run else was

    PAGE.write_text(written(PAGE.read_text(), piece))


def printed(number: int) -> str:
    """What a race prints, by running it."""
    with RedisServer() as redis, PostgresServer() as postgres:
        return shown(asyncio.run(results(number, redis.url, postgres.url)))


if __name__ == "__main__":
    main()
