"""Each public name that can be awaited is in a row of the explorer's table, or is excepted with a reason."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cancellation.test_cancelled_anywhere import WORLDS

API = Path(__file__).resolve().parents[2] / "docs/reference/api.txt"

_NAME = re.compile(r"(?:async )?def (?P<name>[\w.]+)\(")
_AWAITED = re.compile(
    r"-> .*\b(?:Awaitable|Coroutine|Future|AsyncIterator|AsyncGenerator|AsyncContextManager|Hold|HoldMany"
    r"|Releasing|FencedTransaction|MemoryTransaction|Transaction|Prepared|AsyncEngine|Pool\[Any\])\b"
)

EXCEPTED = {
    "lockguard.ports.LockNode.": "a future: cancelling it revokes nothing, and whoever waits for it is a row",
    "lockguard.ports.QuorumNode.": "as of LockNode",
    "lockguard.ports.CheckableNode.": "as of LockNode",
    "lockguard.ports.ReadableNode.history": "as of LockNode",
    "lockguard.redlock.Redlock.check": "futures, as of LockNode",
    "lockguard.redlock.Redlock.extend": "futures, as of LockNode",
    "lockguard.sync.LockGuard.hold": "synchronous: nothing can cancel it",
    "lockguard_tenacity.retry_reads": "a decorator: what is cancelled is the function under it",
}
"""What is not cancelled, by how its name begins, and why."""


def public_names() -> dict[str, bool]:
    """Each public function's name, and whether what it gives can be awaited or entered with a wait."""
    found: dict[str, bool] = {}
    for line in API.read_text(encoding="utf-8").splitlines():
        if (named := _NAME.match(line)) is not None:
            awaited = line.startswith("async ") or _AWAITED.search(line) is not None
            found[named["name"]] = found.get(named["name"], False) or awaited
    return found


def covered() -> set[str]:
    return {name for world in WORLDS for row in world.rows for name in row.covers}


def test_every_public_coroutine_is_cancelled_in_a_row() -> None:
    awaited = {name for name, is_awaited in public_names().items() if is_awaited}
    left = {name for name in awaited - covered() if not name.startswith(tuple(EXCEPTED))}
    assert left == set(), "add a row to tests/cancellation that calls each"
    assert len(awaited) > 150


def test_a_row_names_what_there_is() -> None:
    known = API.read_text(encoding="utf-8")
    assert {name for name in covered() if f" {name}" not in known} == set()


def test_each_exception_is_needed() -> None:
    left = {name for name, is_awaited in public_names().items() if is_awaited} - covered()
    assert [begin for begin in EXCEPTED if not any(name.startswith(begin) for name in left)] == []
