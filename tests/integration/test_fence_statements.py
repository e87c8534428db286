"""Which texts begin or end a transaction, and that a name never becomes SQL."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from lockguard.errors import ConfigurationError
from lockguard_asyncpg import _literals as literals
from lockguard_asyncpg._statements import Kind, kind_of


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("select 1", Kind.ORDINARY),
        ("update a set b = 1;", Kind.ORDINARY),
        ("  begin ;", Kind.BEGIN),
        ("-- a comment\nBEGIN", Kind.BEGIN),
        ("start transaction isolation level serializable", Kind.BEGIN),
        ("/* really */ COMMIT", Kind.COMMIT),
        ("end", Kind.COMMIT),
        ("prepare p as select 1", Kind.ORDINARY),
        ("rollback to savepoint s", Kind.ROLLBACK),
        ("abort", Kind.ROLLBACK),
        ("savepoint s", Kind.SAVEPOINT),
        ("set transaction isolation level serializable", Kind.SETTING),
        ("insert into a values ('; commit; x')", Kind.ORDINARY),
        ("insert into a values (E'\\'; commit; x')", Kind.ORDINARY),
        ("do $$ begin perform 1; end $$", Kind.ORDINARY),
        ("do $x$ begin perform 1; commit; end $x$; select 2", Kind.ORDINARY),
        ("select 1; select 2;", Kind.ORDINARY),
        ('select 1 as "; commit; x"', Kind.ORDINARY),
        ("", Kind.ORDINARY),
        (";", Kind.ORDINARY),
    ],
)
def test_what_a_text_is_to_the_transaction_around_it(query: str, kind: Kind) -> None:
    assert kind_of(query) is kind


@pytest.mark.parametrize(
    "query",
    [
        "select 1; commit; update a set b = 1",
        "begin; update a set b = 1; commit",
        "rollback;select 1",
        "select 1;--x\nEND;select 2",
    ],
)
def test_transaction_control_among_other_statements_is_refused(query: str) -> None:
    with pytest.raises(ConfigurationError, match="by themselves"):
        kind_of(query)


def test_a_prepared_transaction_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="COMMIT instead"):
        kind_of("prepare /* it */ transaction 'x'")


@pytest.mark.parametrize("strings", ["on", "off"])
@pytest.mark.parametrize(
    "value", ["", "x", "'", "\\'", "\\x00", "'); drop table a; --", "$1", "ö比특\U0001f600", "a\nb"]
)
async def test_a_text_arrives_as_it_was(conn: asyncpg.Connection[Any], value: str, strings: str) -> None:
    await conn.execute(f"set standard_conforming_strings = {strings}")
    assert await conn.fetchval(f"select {literals.text(value)}") == value


async def test_numbers_and_ids_arrive_as_they_were(conn: asyncpg.Connection[Any]) -> None:
    row = await conn.fetchrow(
        f"select {literals.number(2**62)}, {literals.number(-1)}, {literals.number(None)},"
        f" {literals.uuid('ab' * 16)}"
    )
    assert row is not None
    assert [row[0], row[1], row[2], row[3].hex] == [2**62, -1, None, "ab" * 16]


@pytest.mark.parametrize("wrong", ["'; drop table a; --", "xyz", "", "ab"])
def test_what_is_no_grant_id_is_not_written(wrong: str) -> None:
    with pytest.raises(ValueError, match="UUID"):
        literals.uuid(wrong)
