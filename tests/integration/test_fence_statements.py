"""Which texts begin or end a transaction, and that a name never becomes SQL."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from lockguard.errors import ConfigurationError
from lockguard_postgres import _literals as literals
from lockguard_postgres._statements import Kind, kind_of, may_write_after, read_only_after


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
        ("/* a /* b */ c */ rollback", Kind.ROLLBACK),
        ("-- a\rcommit", Kind.COMMIT),
        ("select $1 + $2; select $a$; commit; $a$", Kind.ORDINARY),
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
        "-- x\rcommit; update a set b = 1",
        "/* a /* b */ c */ commit; update a set b = 1",
        "select 1 as a$x$; commit; update a set b = 1; select 1 as b$x$",
    ],
)
def test_transaction_control_among_other_statements_is_refused(query: str) -> None:
    with pytest.raises(ConfigurationError, match="by themselves"):
        kind_of(query)


@pytest.mark.parametrize(
    ("query", "read_only"),
    [
        ("begin read only", True),
        ("start transaction isolation level serializable, read only", True),
        ("begin read only, read write", False),
        ("begin read write -- read only", False),
        ("begin /* a /* b */ read only */", None),
        ("begin --\rread write", False),
    ],
)
def test_which_begin_is_read_only(query: str, read_only: bool | None) -> None:
    assert read_only_after(query) is read_only


@pytest.mark.parametrize(
    ("query", "may"),
    [
        ("set transaction /* a */ read\nwrite", True),
        ("SET LOCAL Transaction_Read_Only TO off", True),
        ('set "transaction_read_only" = off', True),
        ('set U&"transaction\\005fread\\005fonly" = off', True),
        ("select 1; set transaction read write; select 2", True),
        ("begin read write", True),
        ("select write_time from a", False),
        ("set local search_path = a", False),
        ("select 'set'; /* set */ select read_only from a", False),
    ],
)
def test_what_may_make_a_read_only_transaction_read_write(query: str, may: bool) -> None:
    assert may_write_after(query) is may


def test_a_prepared_transaction_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="COMMIT instead"):
        kind_of("prepare /* it */ transaction 'x'")
    with pytest.raises(ConfigurationError, match="can present no lease"):
        kind_of("commit prepared 'x'")
    assert kind_of("rollback prepared 'x'") is Kind.ROLLBACK


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
