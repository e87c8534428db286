"""The generated sequences that compare the fence's model with Postgres draw nothing that chance decides."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import asyncpg
import pytest

from lockguard_asyncpg import install
from lockguard_lab.sim.fenced import sequences
from lockguard_lab.sim.fenced.sessions import Modelled

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.no_cover

_SEEDS, _STEPS = 400, 24


def _drawn(seed: int) -> Iterator[sequences._Sequence]:
    """A sequence after each of its steps, on the model alone."""
    sequence = sequences._Sequence(seed, "", None)
    sequence.model = [Modelled(sequence.database) for _ in range(4)]
    for _ in range(_STEPS):
        step = sequence._drawn()
        one = sequence.model[step.session]
        match step.kind:
            case "kill" | "leave":
                one.session.close()
                sequence.model[step.session] = Modelled(sequence.database)
            case "prepare":
                one.session.parsed()
            case "copy rows" | "copy a bad row" | "copy is given up":
                one.end_copy([line.split("\t") for line in step.text.splitlines()] or None)
            case _:
                one.is_numbering = step.kind in sequences._NUMBERING
                one.send(step.text)
        sequence.time.move(1.0)
        for number, other in enumerate(sequence.model):
            if other.answer.startswith("ended"):
                sequence.model[number] = Modelled(sequence.database)
        yield sequence


def _may_insert(sequence: sequences._Sequence) -> int:
    """How many statements wait that may have to insert the row of a number, each beside the others."""
    found = 0
    for one in sequence.model:
        wait = one.session.waits_for
        if one.is_pending and one.is_numbering and wait is not None:
            found += wait.key[0] != "row" or sequence.database.latest(wait.key[1:]) is None
    return found


def test_of_the_statements_that_may_insert_the_row_of_a_number_one_waits_at_a_time() -> None:
    waiting = {seed: max(map(_may_insert, _drawn(seed))) for seed in range(_SEEDS)}
    assert not {seed: count for seed, count in waiting.items() if count > 1}
    assert sum(waiting.values()) > _SEEDS // 20, "one still waits for the other's end in many"


async def test_no_statement_of_a_sequence_leaves_its_transaction_with_a_limit_on_idling(
    database_url: str,
) -> None:
    conn = await asyncpg.connect(database_url)
    try:
        await install(conn)
        await conn.execute(sequences._TABLES)
        words = {
            "resource": "r",
            "token": 1,
            "grant": uuid.UUID(int=1),
            "number": 1 << 62,
            "which": 1,
            "op": 1,
        }
        pair = f"'{words['resource']}', {words['token']}, '{words['grant']}'::uuid"
        await conn.execute(f"select lockguard.seal({pair}, 'h', 'o', 1000)")
        tried = 0
        for kind in sorted(set(sequences._INSIDE)):
            text = sequences._TEXTS[kind].format(**words)
            if not text or "copy" in kind or kind in {"commit", "rollback", "error"}:
                continue
            await conn.execute("begin; savepoint s")
            await conn.execute(text)
            limit = await conn.fetchval("show idle_in_transaction_session_timeout")
            await conn.execute("rollback")
            assert limit == "0", kind
            tried += 1
        assert tried > 5
    finally:
        await conn.close()
