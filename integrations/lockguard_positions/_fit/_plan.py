"""The whole fit: what the table is, what is wrong with it, and the statements, in their order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lockguard_asyncpg._connection import whole
from lockguard_positions._fit import _columns, _constraints, _data
from lockguard_positions._fit._mapping import CORE, Names, read_mapping
from lockguard_positions._fit._obstacles import obstacles
from lockguard_positions._fit._rows import Content, read_rows
from lockguard_positions._fit._steps import MACHINE_SINCE, Finding, Kind, Level, Phase, Step
from lockguard_positions._fit._table import Check, Table, ident, literal, read_table
from lockguard_positions._schema import LATEST, VERSIONS, migrations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import asyncpg

__all__ = ["HOME", "Fit", "Wishes", "look_at"]

HOME = "monitoring.positions"
"""Where lockguard_positions looks for its table."""

_UNIQUE_SINCE = 8
_OURS = ("check_status", "touch")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the person said.

    Attributes:
        table: the table's name.
        columns: lockguard's name of a column, and the table's.
        statuses: the table's name of a status, and the stage.
        exchange: the exchange of all rows of a table that has no column for it.
        older_than_s: for how many seconds a row may be on its way.
    """

    table: str
    columns: Mapping[str, str]
    statuses: Mapping[str, str]
    exchange: str | None = None
    older_than_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Fit:
    """What was found.

    Attributes:
        table: the shape of the table.
        names: what is called how.
        content: what is in it.
        findings: what a person has to know or to decide.
        steps: the statements that may run now or with the switch; none that waits for a decision.
    """

    table: Table
    names: Names
    content: Content
    findings: tuple[Finding, ...]
    steps: tuple[Step, ...]

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """What has to be settled before the flow can have the table."""
        return tuple(finding for finding in self.findings if finding.blocks)

    @property
    def never(self) -> tuple[Finding, ...]:
        """Why the table as it is can never be the flow's."""
        return tuple(finding for finding in self.findings if finding.never)

    @property
    def flows(self) -> bool:
        """Whether lockguard_positions can have the table as it is."""
        return not self.steps and not self.blocking

    @property
    def guarded(self) -> bool:
        """Whether the fence refuses writes without a lease, and locks and rows have one spelling."""
        several = any(
            finding.kind is Kind.SPELLING and finding.level is Level.GUARD for finding in self.findings
        )
        return self.table.around.protected and not several

    def fits(self, level: Level) -> bool:
        """Whether nothing is left to do for a level."""
        return {Level.LOOK: True, Level.GUARD: self.guarded, Level.FLOW: self.flows}[level]


async def look_at(conn: asyncpg.Connection[Any], wishes: Wishes) -> Fit:
    """Read the table and decide; changes nothing.

    Raises:
        ConfigurationError: the table, or an option, cannot be used at all.
    """
    async with whole(conn, isolation="repeatable_read", readonly=True):
        table = await read_table(conn, wishes.table)
        names = read_mapping(table, wishes.columns, wishes.statuses, wishes.exchange)
        content = await read_rows(conn, table, names)
        refusing, notes = await _constraints.refusing_checks(conn, table, names)
        met = await obstacles(conn, table, names)
    findings = [
        *_columns.unfit_columns(table, names),
        *_constraints.unfit_keys(table, names),
        *met,
        *_around(table, names),
        *_data.judge_rows(table, content, names, older_than_s=wishes.older_than_s),
        *notes,
        *_notes(table, names),
    ]
    steps: list[Step] = []
    if not any(finding.blocks and finding.kind is Kind.SHAPE for finding in findings):
        steps += _columns.add_columns(table, names)
        steps += _constraints.drop_not_null(table, names)
        steps += _constraints.widen_checks(table, refusing)
        waits = [f for f in findings if f.blocks and f.kind not in (Kind.DUPLICATE, Kind.RIGHT)]
        if not waits:
            twice = any(finding.kind is Kind.DUPLICATE for finding in findings)
            steps += _switch(table, content, names, refusing, duplicates=twice)
    if table.around.version < MACHINE_SINCE:
        findings += _data.transitions(content, names)
    return Fit(table, names, content, tuple(findings), tuple(steps))


def _switch(
    table: Table, content: Content, names: Names, refusing: list[Check], *, duplicates: bool
) -> Iterator[Step]:
    """What refuses something that the old code may do; up to the index where there are duplicates."""
    yield from _columns.change_types(table, names)
    yield from _moved(table, names)
    yield from _constraints.drop_checks(table, HOME, refusing, names)
    yield from _data.updates(table, HOME, content, names)
    for step in _migrations(table.around.version, 0, _UNIQUE_SINCE):
        yield replace(step, phase=Phase.SWITCH)
    yield from _constraints.own_checks(table, HOME)
    for step in _constraints.indexes(table, HOME, names):
        if duplicates and "idx_unique_open_position" in step.sql:
            return
        yield step
    if not duplicates:
        yield from _migrations(table.around.version, _UNIQUE_SINCE, LATEST + 1)


def _migrations(there: int, first: int, end: int) -> Iterator[Step]:
    """The migrations from one version up to another; the first is the old table itself, and only recorded."""
    for step in migrations():
        if not first <= step.version < end or step.version <= there:
            continue
        values = f"{step.version}, {literal(step.name)}"
        record = (
            "insert into monitoring.schema_version (version, name)"  # noqa: S608 - a file's name
            f" values ({values}) on conflict do nothing;"
        )
        if step.version == 1:
            yield Step(
                f"{VERSIONS.strip()}\n{record}", "the old table is version 1 from here on", Phase.SWITCH
            )
        else:
            why = f"version {step.version} of the schema, as 'lockguard positions migrate' applies it"
            if step.version == MACHINE_SINCE:
                why += ": from here on a change of status that is not in its table is refused (LG102)"
            yield Step(f"{step.up.strip()}\n{record}", why, Phase.SWITCH)


def _moved(table: Table, names: Names) -> Iterator[Step]:
    """The table at the flow's place and with its names, and a view for the old code where one can be."""
    if table.at_home and not names.renamed:
        return
    sql = []
    for ours, theirs in names.renamed.items():
        sql.append(f"alter table {table.sql} rename column {ident(theirs)} to {ours};")
    if table.at_home:
        why = "lockguard's statements name these columns. Old code that uses the old names fails from here on"
        yield Step("\n".join(sql), f"{why}. ACCESS EXCLUSIVE for a moment", Phase.SWITCH, renames=True)
        return
    if table.schema != "monitoring":
        sql += ["create schema if not exists monitoring;", f"alter table {table.sql} set schema monitoring;"]
    if table.name != "positions":
        sql.append(f"alter table monitoring.{ident(table.name)} rename to positions;")
    back = {theirs: ours for ours, theirs in names.renamed.items()}
    columns = ", ".join(f"{back[c]} as {ident(c)}" if c in back else ident(c) for c in table.columns)
    sql.append(f"create view {table.sql} as select {columns} from {HOME};")  # noqa: S608 - quoted
    sql.append(f"alter view {table.sql} owner to {table.owner};")
    for role, privilege in table.grants:
        to = "public" if role is None else role
        sql.append(f"grant {privilege.lower()} on {table.sql} to {to};")
    for role in sorted({role for role, _ in table.grants if role is not None}):
        sql.append(f"grant usage on schema monitoring to {role};")
    why = (
        f"lockguard_positions works on {HOME} only. The view lets the old code go on: Postgres passes its"
        " selects, inserts, updates and deletes on; COPY into it and TRUNCATE fail. ACCESS EXCLUSIVE for a"
        " moment"
    )
    yield Step("\n".join(sql), why, Phase.SWITCH)


def _around(table: Table, names: Names) -> Iterator[Finding]:
    """What the role and the rest of the database keep from being done."""
    if not table.owned:
        role = ident(table.role)
        told = f"role {role} does not own {table.sql}, and only its owner may change it"
        remedy = f"run fit as {table.owner}, or have it grant: grant {table.owner} to {role};"
        yield Finding(Kind.RIGHT, told, remedy, blocks=True)
    if not table.around.may_create:
        role = ident(table.role)
        told = f"role {role} may not create tables in schema monitoring"
        remedy = f"its owner grants that: grant create on database {ident(table.around.database)} to {role};"
        yield Finding(Kind.RIGHT, told, remedy, blocks=True)
    if not table.at_home and table.around.positions is not None:
        told = f"{HOME} is there already, and is another table"
        remedy = f"fit that one, or move it away: alter table {HOME} rename to positions_before;"
        yield Finding(Kind.SHAPE, told, remedy, blocks=True)
    if (names.renamed or not table.at_home) and (table.around.protected or table.around.watched):
        told = f"{table.sql} is protected or watched by its old names"
        yield Finding(
            Kind.SHAPE,
            told,
            f"lockguard fence unprotect {table.sql}, and protect it after the fit",
            blocks=True,
        )


def _notes(table: Table, names: Names) -> Iterator[Finding]:
    for name, definition in table.triggers:
        if name not in _OURS and not name.startswith("lockguard"):
            told = f"trigger {ident(name)} runs for lockguard's writes too"
            yield Finding(Kind.NOTE, told, f"read it: {definition}", level=Level.GUARD)
    if table.row_security:
        told = "row level security is on: its policies hold for lockguard's role too"
        yield Finding(Kind.NOTE, told, "have them let that role read and write every row", level=Level.GUARD)
    naive = [n for n in names.columns if table.columns[names.columns[n]].base == "timestamp"]
    if naive:
        told = f"{', '.join(naive)} have no time zone: ages are taken in that of the session"
        zone = table.around.time_zone
        yield Finding(
            Kind.NOTE, told, f"it is {zone} here; lockguard's processes need the one that the bot writes in"
        )
    for name in table.referencing:
        if name.startswith("monitoring.") and name.partition(".")[2] in ("position_intents", "signals"):
            continue
        yield Finding(
            Kind.NOTE, f"{name} has a foreign key to this table", "it stays as it is: no id changes"
        )
    if not table.at_home and names.renamed:
        listed = ", ".join(f"{theirs} -> {ours}" for ours, theirs in names.renamed.items() if ours in CORE)
        yield Finding(
            Kind.NOTE,
            f"lockguard_positions cannot work with other names: {listed}",
            "they are renamed under a view",
        )
