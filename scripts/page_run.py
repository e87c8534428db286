"""Runs one page, and tells what differs from what it shows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import redis
from page_blocks import ELSEWHERE, ROOT, Block, blocks
from page_parse import Failed
from page_world import Page, Servers

from lockguard_lab.servers import PostgresServer, RedisServer

__all__ = ["Servers", "handled", "run", "servers"]

_TEXTS = {"printed": "compared", "save as": "saved as a file", "run by": "run"}


@contextlib.contextmanager
def servers() -> Iterator[Servers]:
    """Servers for any number of pages, one after the other."""
    with RedisServer() as redis_server, PostgresServer() as postgres_server:
        yield Servers(redis_server, postgres_server)


def handled(block: Block) -> str:
    """What is done with a block, in a few words."""
    for kind, where in ELSEWHERE.items():
        if kind in block.orders:
            return f"written from a file; {where}"
    if "not run" in block.orders:
        compiled = "compiled; " if block.language == "python" else ""
        return f"not run: {compiled}{block.orders['not run']}"
    test = block.orders.get("run by", "redis-cli")
    if test != "redis-cli":
        if not list(ROOT.glob(f"tests/*/{test}.py")):
            raise ValueError(f"{block.place}: there is no test {test}")
        return f"run by {test}"
    kinds = {
        "console": "run, outputs compared",
        "python": "saved as a file" if "save as" in block.orders else "run",
        "setup": "run",
        "sh": "run",
        "sql": "run",
        "text": next((done for name, done in _TEXTS.items() if name in block.orders), ""),
        "promql": "parsed",
        "json": "parsed",
        "toml": "parsed",
        "yaml": "parsed",
    }
    if block.language not in kinds:
        raise ValueError(f"{block.place}: a block in {block.language or 'no language'!r}, which nothing runs")
    if not kinds[block.language]:
        raise ValueError(f"{block.place}: what prints this text? Or a comment says why it is not run")
    return kinds[block.language]


def run(page: str, text: str, these: Servers) -> tuple[list[str], str]:
    """What differs from what the page shows, and the page as it ought to be."""
    found = [block for block in blocks(page, text) if not ELSEWHERE.keys() & block.orders.keys()]
    if not found:
        return [], text
    new: list[tuple[Block, str]] = []
    with Page(page, text, these) as here:
        for block in found:
            try:
                handled(block)
                new.append((block, here.block(block)))
            except (Failed, TimeoutError, ValueError, SyntaxError, redis.RedisError) as failure:
                here.differences.append(f"{block.place}: {failure}")
    lines = text.splitlines()
    for block, content in reversed(new):
        if content == block.text:
            continue
        fence = lines[block.line - 1]
        indent = fence[: len(fence) - len(fence.lstrip())]
        end = next(at for at in range(block.line, len(lines)) if lines[at].strip() == "```")
        lines[block.line : end] = [f"{indent}{line}".rstrip() for line in content.splitlines()]
    return here.differences, "\n".join(lines) + "\n"
