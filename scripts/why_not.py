"""Writes the figures into docs/explanation/why-not.md: ``python scripts/why_not.py [FILE...]``.

FILE is what ``lockguard bench --stopped-holder --json FILE`` wrote; it becomes docs/explanation/why-not.json.
Further files add ways that the first one left out, and the page says so.
Without any the page is written from that file again. A table stands between ``<!-- figures NAME -->`` and
``<!-- end -->``; a test compares.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from lockguard_lab.bench.holders.results import Found, Pooler
from lockguard_lab.bench.holders.wording import TABLES, rows

__all__ = ["FIGURES", "PAGE", "written"]

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/explanation/why-not.md"
FIGURES = ROOT / "docs/explanation/why-not.json"
_PLACE = re.compile(r"<!-- figures (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def written(page: str, figures: str) -> str:
    """The page with each table as the figures are."""
    found = Found.from_json(json.loads(figures))

    def part(place: re.Match[str]) -> str:
        name = place[1]
        text = _about(found) if name == "about" else _pooler(found.pooler) if name == "pooler" else ""
        return f"<!-- figures {name} -->\n{text or _table(found, name)}\n<!-- end -->"

    return _PLACE.sub(part, page)


def _table(found: Found, name: str) -> str:
    head, *body = [list(TABLES[name]), *rows(found, name)]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def _about(found: Found) -> str:
    about = found.about
    versions = ", ".join(f"{name} {version}" for name, version in (about.servers | about.versions).items())
    left_out = "".join(
        f"\n`{name}` has a run of its own." if name in found.ways else f"\nLeft out: {name}, {why}."
        for name, why in about.left_out.items()
    )
    return (
        f"`{about.command} --rounds {about.rounds}`, {about.date}, a Linux machine with {about.cores} cores"
        f" and other work (load {about.load_before:g}).\nPython {about.python}, {versions}.\n"
        f"Locks with a ttl have {about.ttl_s} s, and a holder is stopped for {about.stop_s:g} s."
        f" {about.waiters} tasks of one process wait.{left_out}"
    )


def _pooler(pooler: Pooler | None) -> str:
    if pooler is None:
        return "PgBouncer was not installed."
    rows = {
        "advisory lock of a session": pooler.session_given_twice,
        "advisory lock of a transaction": pooler.transaction_given_twice,
        "lockguard, its fence behind the pooler": pooler.lockguard_given_twice,
    }
    table = "\n".join(f"| {name} | {'both' if twice else 'one'} |" for name, twice in rows.items())
    kept = "was still held" if pooler.session_leaked else "was free"
    return (
        f"| PgBouncer {pooler.version}, transaction mode | given to, of two clients at once |\n"
        f"| --- | --- |\n{table}\n\n"
        f"After both clients had closed their connections, the lock of the session {kept}."
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        figures, *further = [json.loads(Path(name).read_text("utf-8")) for name in sys.argv[1:]]
        for one in further:
            figures["ways"] |= {name: way for name, way in one["ways"].items() if name not in figures["ways"]}
        FIGURES.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    PAGE.write_text(written(PAGE.read_text("utf-8"), FIGURES.read_text("utf-8")), "utf-8")
