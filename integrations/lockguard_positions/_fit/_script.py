"""A fit as a script of SQL, with everything that a person should know in its comments."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from lockguard.text import printable
from lockguard_positions._fit._steps import Finding, Kind, Level, Phase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockguard_positions._fit._plan import Fit

__all__ = ["levels_of", "script"]

_WIDTH = 120
_TICKS = (
    *("current_price", "unrealized_pnl", "updated_at", "last_price", "mark_price", "pnl", "unrealised_pnl"),
    *("last_update", "last_checked_at", "heartbeat_at"),
)
_PHASES = {
    Phase.BESIDE: "Beside the living bot: these refuse nothing that its code does.",
    Phase.SWITCH: "With the switch to lockguard's flow: each may refuse or rename what the old code uses.",
}
_ORDER = {Level.LOOK: 0, Level.GUARD: 1, Level.FLOW: 2}


def levels_of(found: Fit) -> dict[Level, str]:
    """What each level needs, and the next command, a line for each."""
    table, around = found.table, found.table.around
    shown = _quoted(table.sql)
    look = f"nothing is missing: lockguard positions fit {shown} --level look --exchange URL"
    ticks = ",".join(name for name in _TICKS if name in table.columns)
    exempt = f" --exempt {ticks}" if ticks else ""
    watch = f"lockguard fence protect {shown} --resource '{found.names.resource}'{exempt} --watch"
    if found.guarded:
        guard = "the fence refuses writes without a lease: lockguard fence check"
    elif around.watched:
        guard = f"the fence watches it; lockguard fence watch {shown} says when to protect it"
    elif around.protected:
        guard = "the fence is on; spell each symbol in one way"
    elif around.fence:
        guard = f"the fence is installed; next: {watch}"
    else:
        guard = f"next: lockguard fence install, then {watch}"
    return {Level.LOOK: look, Level.GUARD: guard, Level.FLOW: _flow(found, shown)}


def _flow(found: Fit, shown: str) -> str:
    if found.never:
        return "this table cannot have it: " + "; ".join(finding.told for finding in found.never)
    if found.flows:
        return "it fits; next: lockguard positions migrate --protect, once no other code writes to it"
    parts = []
    if found.blocking:
        parts.append(f"{len(found.blocking)} thing(s) to decide")
    beside = sum(step.phase is Phase.BESIDE for step in found.steps)
    switch = len(found.steps) - beside
    if beside:
        parts.append(f"{beside} statement(s) beside the living bot: lockguard positions fit {shown} --apply")
    if switch:
        parts.append(f"{switch} with the switch: the same with --apply --switch")
    return "; ".join(parts)


def script(found: Fit, seen: list[Finding], level: Level) -> str:
    """The whole answer as text."""
    return "\n".join(_lines(found, seen, level))


def _lines(found: Fit, seen: list[Finding], level: Level) -> Iterator[str]:
    table = found.table
    statuses = ", ".join(f"{s!r} {n}" for s, n in found.content.statuses.items()) or "none"
    count = sum(found.content.statuses.values())
    yield from _comment(f"{table.sql}: {count} rows; statuses: {statuses}")
    for each, told in levels_of(found).items():
        yield from _comment(f"level {each.value}: {told}", hang="  ")
    if seen:
        yield "--"
        yield from _comment("On the exchange (read only):")
        yield from _findings(seen)
    for title, findings in _parted(found, level):
        yield "--"
        yield from _comment(title)
        yield from _findings(findings)
    if found.fits(level):
        yield "--"
        yield from _comment(f"It fits for level {level.value}: nothing is to be done.")
        return
    if level is not Level.FLOW:
        return
    yield from _statements(found)


def _statements(found: Fit) -> Iterator[str]:
    if found.steps:
        yield ""
        yield from _comment("For psql -v ON_ERROR_STOP=1; or let --apply run them.")
    phase = None
    for number, step in enumerate(found.steps, 1):
        if step.phase is not phase:
            phase = step.phase
            yield ""
            yield from _comment(_PHASES[phase])
            yield "set lock_timeout = '1s';  -- and again, if it is refused with 55P03"
        yield ""
        alone = ". Not in a transaction" if step.alone else ""
        yield from _comment(f"{number}. {step.why}{alone}")
        several = step.sql.count(";") > 1 and not step.alone
        yield f"begin;\n{step.sql}\ncommit;" if several else step.sql
    if not found.steps:
        yield from _comment("No statement until that is decided.")


def _parted(found: Fit, level: Level) -> Iterator[tuple[str, list[Finding]]]:
    mine = [f for f in found.findings if _ORDER[f.level] <= _ORDER[level]]
    parts = (
        ("To decide first:", [f for f in mine if f.blocks]),
        ("What the status machine refuses of the old code:", [f for f in mine if f.kind is Kind.TRANSITION]),
        ("To know:", [f for f in mine if not f.blocks and f.kind is not Kind.TRANSITION]),
    )
    for title, findings in parts:
        if findings:
            yield title, findings


def _findings(findings: list[Finding]) -> Iterator[str]:
    for finding in findings:
        remedy = f" => {finding.remedy}" if finding.remedy else ""
        yield from _comment(f"* {finding.told}{remedy}", hang="  ")


def _comment(text: str, hang: str = "") -> Iterator[str]:
    """Lines of a comment. Nothing of the table's own may end it: a name may have a line break."""
    plain = printable(" ".join(text.splitlines()))
    for line in textwrap.wrap(
        plain, _WIDTH, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False
    ):
        yield f"-- {line}"


def _quoted(name: str) -> str:
    """A name as one word of a shell."""
    return name if all(c.isalnum() or c in "._" for c in name) else "'" + name.replace("'", "'\\''") + "'"
