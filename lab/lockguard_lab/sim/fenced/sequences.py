"""Generated sequences of several sessions, on a real Postgres and on the model: the outcomes are the same.

After each step both are looked at: what every session was answered, which one waits for a lock, and what is
committed. So the model is what the schedules take it for, and a mistake in the fence's SQL is convicted by
the first sequence that it changes.
"""

from __future__ import annotations

import asyncio
import atexit
import random
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from lockguard import _interrupt as interrupt
from lockguard._clock import SYSTEM_CLOCK
from lockguard_asyncpg import install
from lockguard_lab.servers import PostgresServer
from lockguard_lab.sim.fenced.database import Database
from lockguard_lab.sim.fenced.functions import COPY_ENTRY, Fence, account, entries, fence_key
from lockguard_lab.sim.fenced.openings import COPIES, RARE, Opening
from lockguard_lab.sim.fenced.sessions import Modelled, Real
from lockguard_lab.sim.judge import Violation

__all__ = ["differences", "run_sequences", "violations"]

_SESSIONS, _GRANTS, _STEPS = 4, 10, 24
_AHEAD_US = 365 * 86_400 * 1_000_000
_NUMBERED = 1 << 62
_SETTLE_S = 3.0
_TABLES = """
create table account (resource text primary key, version bigint, token bigint, op text);
create table entry (resource text, token bigint, op text);
"""
_SEEN = """
select (select string_agg(pid::text, ',') from pg_locks
         where not granted and pid::text = any (string_to_array($2, ','))) as waiting,
       (select string_agg(pid::text, ',') from pg_stat_activity
         where state = 'active' and wait_event = 'ClientRead'
           and pid::text = any (string_to_array($2, ','))) as copying,
       array(select e.op from entry e where e.resource = $1 order by e.op collate "C") as entries,
       s.token, s.grant_id, s.is_open, a.version
  from account a left join lockguard.status($1) s on true where a.resource = $1
"""
_IS_THERE = "select count(*) from pg_stat_activity where pid = $1"
_servers: list[PostgresServer] = []


@dataclass
class _Time:
    """The model's time, which the sequence moves."""

    at: float = 0.0

    def __post_init__(self) -> None:
        self._due: list[tuple[float, Any]] = []

    def now(self) -> float:
        return self.at

    def wall(self) -> float:
        return SYSTEM_CLOCK.wall()

    def after(self, seconds: float, action: Any) -> None:
        self._due.append((self.at + seconds, action))

    def move(self, seconds: float) -> None:
        self.at += seconds
        due = sorted((one for one in self._due if one[0] <= self.at), key=lambda one: one[0])
        self._due = [one for one in self._due if one[0] > self.at]
        for _, action in due:
            action()


@dataclass(frozen=True)
class _Step:
    """One statement of one session, or what befalls it."""

    session: int
    kind: str
    text: str = ""


class _Sequence:
    def __init__(self, seed: int, url: str, opening: Opening | None) -> None:
        self.opening = opening
        self.dice = random.Random(seed)  # noqa: S311 - a simulation, not a secret
        self.url = url
        self.resource = f"sequence:{seed}"
        self.base = int(SYSTEM_CLOCK.wall() * 1_000_000) + _AHEAD_US
        self.grants = [UUID(int=self.dice.getrandbits(128)) for _ in range(_GRANTS)]
        self.time = _Time()
        self.database = Database(self.time)
        self.model: list[Modelled] = []
        self.real: list[Real] = []
        self.steps: list[str] = []
        self.numbers = [0] * _GRANTS
        self.numbered = 0
        self.ops = 0

    async def run(self) -> Violation | None:
        look = await asyncpg.connect(self.url)
        try:
            await look.execute(f"insert into account values ('{self.resource}', 0, 0, '')")  # noqa: S608
            for _ in range(_SESSIONS):
                await self._connect()
            opening = list(self.dice.choice(_OPENINGS) if self.opening is None else self.opening)
            for _ in range(_STEPS if self.opening is None else len(opening)):
                step = self._opened(*opening.pop(0)) if opening else self._drawn()
                self.steps.append(f"{step.session} {step.kind}")
                await self._take(step)
                if any(one.answer == "40P01" for one in self.model):
                    return None  # which session of a deadlock Postgres ends, or lets go first, is chance
                if (found := await self._differs(look, step)) is not None:
                    return found
        finally:
            for one in self.real:
                one.terminate()
                if one.task is not None:
                    await asyncio.wait([one.task])
            await look.close()
        return None

    async def _connect(self) -> None:
        conn = await asyncpg.connect(self.url, server_settings={"deadlock_timeout": "20ms"})
        self.real.append(Real(conn))
        self.model.append(Modelled(self.database))

    # What is drawn

    def _drawn(self) -> _Step:
        free = [number for number, one in enumerate(self.model) if not one.is_pending]
        if not free:
            return _Step(self.dice.randrange(_SESSIONS), "kill")
        session = self.dice.choice(free)
        found = self.model[session].session
        kinds = _COPYING if found.copying else _OUTSIDE if found.status == "I" else _INSIDE
        barred = _NUMBERING if self._is_a_number_under_way() else frozenset[str]()
        kind = self.dice.choice([kind for kind in kinds if kind not in barred])
        return _Step(session, kind, self._text(kind, self._near()))

    def _is_a_number_under_way(self) -> bool:
        """Whether a statement waits that may have to insert the row of its number.

        Postgres has no line for a row that is not there yet, nor for those that a gate lets in together:
        which of two is first there is chance.
        """
        waiting = [one.session.waits_for for one in self.model if one.is_pending and one.is_numbering]
        keys = [wait.key for wait in waiting if wait is not None]
        return any(key[0] != "row" or self.database.latest(key[1:]) is None for key in keys)

    def _opened(self, session: int, kind: str, ahead: int) -> _Step:
        row = self.database.latest(fence_key(self.resource))
        known = row.token - self.base if isinstance(row, Fence) else 1
        return _Step(session, kind, self._text(kind, known + ahead))

    def _near(self) -> int:
        """A grant: mostly the one in force, or one that comes soon after or was before it."""
        row = self.database.latest(fence_key(self.resource))
        known = row.token - self.base if isinstance(row, Fence) and row.token >= self.base else -1
        return min(max(known + self.dice.choice((-1, -1, 0, 0, 0, 0, 0, 1, 1, 2)), 0), _GRANTS - 1)

    def _text(self, kind: str, which: int) -> str:
        if kind in ("numbered check", "begin with a number"):
            self.numbers[which] += self.dice.choice((0, 1, 1))
            self.numbered = which
        elif kind == "resolve" and self.dice.random() < 0.7:
            which = self.numbered
        self.ops += 1
        return _TEXTS[kind].format(
            resource=self.resource,
            token=self.base + which,
            grant=self.grants[which],
            number=_NUMBERED + (which << 20) + self.numbers[which],
            which=which,
            op=self.ops,
        )

    # What is done

    async def _take(self, step: _Step) -> None:
        model, real = self.model[step.session], self.real[step.session]
        match step.kind:
            case "kill" | "leave":
                if real.conn.is_closed():
                    real.answer = "gone"
                elif step.kind == "leave":
                    real.terminate()
                else:
                    await self._terminate(real.pid)
                model.session.close()
                await self._again(step.session)
            case "prepare":
                await real.prepare()
                model.session.parsed()
            case "copy rows" | "copy a bad row" | "copy is given up":
                rows = [line.split("\t") for line in step.text.splitlines()] or None
                real.end_copy(rows)
                model.end_copy(rows)
            case _:
                real.send(step.text)
                model.is_numbering = step.kind in _NUMBERING
                model.send(step.text)
                if step.text == COPY_ENTRY and not model.session.copying:
                    await asyncio.sleep(0)  # until it is sent
                    real.end_copy([])  # it was refused, which asyncpg tells behind the last row
        self.time.move(1.0)
        for number, one in enumerate(self.model):
            if one.answer.startswith("ended"):
                await self._again(number)

    async def _terminate(self, pid: int) -> None:
        conn = await asyncpg.connect(self.url)
        try:
            await conn.execute(f"select pg_terminate_backend({pid}, 1000)")
        finally:
            await conn.close()

    async def _again(self, number: int) -> None:
        """A new session in the place of one that has ended; the old one must be seen to end."""
        real = self.real[number]
        conn = await asyncpg.connect(self.url, server_settings={"deadlock_timeout": "20ms"})
        async with asyncio.timeout(_SETTLE_S):
            while await conn.fetchval(_IS_THERE, real.pid):  # noqa: ASYNC110 - the server does not tell
                await asyncio.sleep(0.002)
        real.end_copy([])  # not before: it would not be in its COPY any more when it is ended
        if real.task is not None:
            await asyncio.wait([real.task], timeout=_SETTLE_S)
        real.terminate()
        self.real[number] = Real(conn)
        self.model[number] = Modelled(self.database)

    # What is seen

    async def _differs(self, look: asyncpg.Connection[Any], step: _Step) -> Violation | None:
        until = SYSTEM_CLOCK.now() + _SETTLE_S
        while (told := await self._difference(look)) and SYSTEM_CLOCK.now() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.003)
        if not told:
            return None
        return Violation(f"the fence's functions: {step.kind}", f"{told}; after {', '.join(self.steps)}")

    async def _difference(self, look: asyncpg.Connection[Any]) -> str:
        seen = await look.fetchrow(_SEEN, self.resource, ",".join(str(one.pid) for one in self.real))
        assert seen is not None, "its account was made when it began"
        waiting, copying = _pids(seen["waiting"]), _pids(seen["copying"])
        for number, (model, real) in enumerate(zip(self.model, self.real, strict=True)):
            expected = "waits" if model.is_pending else self._normal(model.answer)
            found = self._normal(real.answer)
            if real.is_pending and real.pid in waiting | copying:
                found = "waits" if real.pid in waiting else "copies"
            if expected != found:
                return f"session {number}: {found or 'nothing yet'}, and the model says {expected}"
        known = self.database.latest(fence_key(self.resource))
        there = "none"
        if seen["token"] is not None:
            there = self._row(seen["token"], seen["grant_id"], is_open=seen["is_open"])
        right = "none"
        if isinstance(known, Fence):
            right = self._row(known.token, known.grant, is_open=known.is_open)
        if there != right:
            return f"the fence has {there}, and the model says {right}"
        row_known = self.database.latest(account(self.resource))
        expected_version = row_known[0] if isinstance(row_known, tuple) else 0
        if seen["version"] != expected_version:
            return f"version {seen['version']}, and the model says {expected_version}"
        if seen["entries"] != (expected_entries := entries(self.database, self.resource)):
            return f"the entries {seen['entries']}, and the model says {expected_entries}"
        return ""

    def _row(self, token: int, grant: object, *, is_open: bool) -> str:
        whose = str(grant).replace("-", "")
        named = whose if whose in [one.hex for one in self.grants] else "a break"
        return f"{token - self.base if token >= self.base else 'now'} {named[:7]} {is_open}"

    def _normal(self, answer: str) -> str:
        """Tokens count from the sequence's own; one that a break makes of the clock is now."""
        words = []
        for word in answer.replace("[[", "[[ ").replace("]]", " ]]").split():
            bare = word.rstrip(",")
            if bare.isdecimal() and len(bare) > 15:
                words.append(str(int(bare) - self.base) if int(bare) >= self.base else "now")
            else:
                words.append(word)
        return " ".join(words)


def _pids(told: str | None) -> set[int]:
    return {int(pid) for pid in (told or "").split(",") if pid}


# A close has its transaction ended after a second without a statement, which is what a step may take on a
# slow machine. The model does not end it, so that limit is lifted at once.
_UNBOUND = "set_config('idle_in_transaction_session_timeout','0',true)"
_PAIR = "E'{resource}'::text,{token}::bigint,'{grant}'::uuid"
_TEXTS = {
    "seal": f"select accepted, token from lockguard.seal({_PAIR},E'h'::text,E'o'::text,60000)",  # noqa: S608
    "check": f"select lockguard.check({_PAIR},null::bigint)",
    "numbered check": f"select lockguard.check({_PAIR},{{number}}::bigint)",
    "close": f"select lockguard.close({_PAIR},60000),{_UNBOUND}",
    "last check": f"select lockguard.check_last({_PAIR},null::bigint)",
    "first check": f"select lockguard.check_first({_PAIR},E'h'::text,E'o'::text,null::bigint)",
    "break": "select lockguard.break_(E'{resource}'::text,E'r'::text,60000)",
    "evict": "select lockguard.evict(E'{resource}'::text,{token}::bigint)",
    "resolve": "select where lockguard.resolve(E'{resource}'::text,{token}::bigint,{number}::bigint,60000)",
    "write": (
        "update account set version = version + 1, token = {which}, op = 'o{op}'"
        " where resource = '{resource}'"
    ),
    "read": "select version from account where resource = '{resource}'",
    "checked write": (
        f"select lockguard.check({_PAIR},null::bigint);"  # noqa: S608
        "insert into entry (resource, token, op) values ('{resource}', {which}, 'o{op}')"
    ),
    "begin with a check": f"begin;select lockguard.check({_PAIR},null::bigint)",
    "begin with a number": f"begin;select lockguard.check({_PAIR},{{number}}::bigint)",
    "begin": "begin",
    "begin repeatable read": "begin isolation level repeatable read",
    "commit": "commit",
    "rollback": "rollback",
    "savepoint": "savepoint s",
    "rollback to": "rollback to s",
    "release": "release s",
    "error": "select 1/0",
    "copy": COPY_ENTRY,
    "copy rows": "{resource}\t{which}\to{op}\n{resource}\t{which}\to{op}b",
    "copy a bad row": "{resource}\t{which}\to{op}\n{resource}\tnone\to{op}b",
    "copy is given up": "",
    "copy out": "copy (select version from account where resource = '{resource}') to stdout",
    "copy entries out": (
        "copy (select op from entry where resource = '{resource}' order by op collate \"C\") to stdout"
    ),
    "kill": "",
    "leave": "",
    "prepare": "",
}
_OUTSIDE = (
    *("seal",) * 5,
    *("begin with a check", "begin with a check", "begin with a number", "begin with a number"),
    *("begin", "begin repeatable read"),
    *(
        "close",
        "break",
        "evict",
        "resolve",
        "resolve",
        "last check",
        "first check",
        "checked write",
        "checked write",
    ),
    *("read", "copy", "copy", "copy entries out", "kill"),
)
_INSIDE = (
    *("check",) * 5,
    *("numbered check", "numbered check", "write", "write", "read"),
    *("commit", "commit", "commit", "rollback"),
    *("savepoint", "rollback to", "release", "error"),
    *("copy", "copy", "copy out", "copy entries out"),
    *("close", "last check", "prepare", "prepare", "kill", "leave"),
)
_NUMBERING = frozenset({"numbered check", "begin with a number", "resolve"})
"""What writes the row of a number."""
_COPYING = (*("copy rows",) * 3, "copy a bad row", "copy is given up", "kill", "leave")
_OPENINGS: tuple[Opening, ...] = (*((),) * 14, *RARE * 2, *COPIES.values())
"""How a sequence begins; then its steps are drawn."""


async def differences(url: str, seeds: range, opening: Opening | None = None) -> dict[int, Violation]:
    """Run sequences on a database with the fence's schema; what differed, by seed.

    Args:
        url: the database.
        seeds: the sequences.
        opening: all their steps; ``None`` to draw how they begin, and go on.
    """
    found: dict[int, Violation] = {}
    for seed in seeds:
        try:
            violation = await _Sequence(seed, url, opening).run()
        except TimeoutError:
            violation = Violation("the fence's functions: an end", "a session that was ended is still there")
        if violation is not None:
            found[seed] = violation
    return found


def run_sequences(seeds: range, opening: Opening | None = None) -> dict[int, Violation]:
    """As :func:`differences`, on a server that ends with the process."""
    if not _servers:
        server = PostgresServer(max_connections=50).start()
        atexit.register(server.stop)
        interrupt.run(_prepare(server.url))
        _servers.append(server)
    return interrupt.run(differences(_servers[0].url, seeds, opening))


async def _prepare(url: str) -> None:
    conn = await asyncpg.connect(url)
    try:
        await install(conn)
        await conn.execute(_TABLES)
    finally:
        await conn.close()


def violations(seed: int, topology: str | None) -> tuple[Violation, ...]:
    """What differs in one sequence."""
    del topology
    return tuple(run_sequences(range(seed, seed + 1)).values())
