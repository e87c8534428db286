"""Mistakes that another mechanism makes good: a schedule convicts neither of two alone, and both together."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockguard_lab.sim.planted import Change, Planted, convict

pytestmark = pytest.mark.no_cover

PAIRS = (
    (
        39,
        "after a reconnect no waiter asks at once, and waiters ask again only when they are woken",
        Change(
            "lockguard/_nodes/standalone.py",
            "                self._send_text(call)\n        self._wake(None)",
            "                self._send_text(call)",
        ),
        Change(
            "lockguard/_waiting.py",
            "return min(self._locks.ask_again_s(), outcome.busy.retry_after_ms / 1000 + 0.001)",
            "return 3600.0",
        ),
        "L4",
        "sim",
        "single",
    ),
    (
        14,
        "a savepoint is not checked, nor is a statement in it",
        Change(
            "lockguard_asyncpg/_transaction_state.py",
            "        if not leases or tx.read_only:\n            return",
            "        if not leases or tx.read_only or not outermost:\n            return",
        ),
        Change(
            "lockguard_asyncpg/_dropin.py",
            "        case Kind.ORDINARY:\n            await present(con, tx, leases)",
            "        case Kind.ORDINARY:\n            pass",
        ),
        "S1",
        "fenced",
        "",
    ),
)


@pytest.mark.parametrize(("seed", "name", "first", "second", "law", "judge", "topology"), PAIRS)
def test_either_of_two_makes_good_what_the_other_misses(
    seed: int, name: str, first: Change, second: Change, law: str, judge: str, topology: str, tmp_path: Path
) -> None:
    def planted(one: Change, *more: Change) -> Planted:
        return Planted(
            name, "", one.file, one.old, one.new, law=law, topology=topology, judge=judge, more=more
        )

    def convicted(which: str, one: Planted) -> str:
        directory = tmp_path / which
        directory.mkdir()
        found = convict(one, directory, seeds=range(seed, seed + 1))
        return "" if found is None else found.law

    assert convicted("first", planted(first)) == ""
    assert convicted("second", planted(second)) == ""
    assert convicted("both", planted(first, second)).startswith(law)
