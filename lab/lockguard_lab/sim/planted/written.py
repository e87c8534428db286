"""Mistakes in the fence that showed once bots wrote in every documented way, and their closes and seals failed."""

# ruff: noqa: E501 - the texts are those of the sources

from __future__ import annotations

from lockguard_lab.sim.planted.mistake import Change, Planted

__all__ = ["WRITTEN"]

_OURS = "our own past"
_WRAPPERS = "wrappers of a driver that miss one of its calls"
_ONCE = "calls that are made once"
_CONNECTION = "lockguard_asyncpg/_connection.py"
_STATE = "lockguard_asyncpg/_transaction_state.py"
_DROPIN = "lockguard_asyncpg/_dropin.py"
_FENCE = "lockguard_postgres/_fence.py"
_CLAIMS = "lockguard_postgres/_claims.py"


def _fenced(name: str, origin: str, file: str, old: str, new: str, law: str, *more: Change) -> Planted:
    return Planted(name, origin, file, old, new, law=law, judge="fenced", more=more)


WRITTEN: tuple[Planted, ...] = (
    _fenced(
        "a confirmation does not ask the fence",
        "is_locked() that asks the lock alone",
        "lockguard/_renewal.py",
        "            if asked is not None and not await asked:",
        "            if False:",
        "S9",
    ),
    _fenced(
        "executemany carries no check",
        _WRAPPERS,
        _CONNECTION,
        '    "executemany": True,\n    "fetch": True',
        '    "fetch": True',
        "",
    ),
    _fenced(
        "COPY carries no check",
        _WRAPPERS,
        _CONNECTION,
        '    "copy_records_to_table": False,\n',
        "",
        "",
    ),
    _fenced(
        "a prepared statement carries no check",
        _WRAPPERS,
        _CONNECTION,
        '        result = await run_parsed(con, text, send, options.get("timeout"), pipelined)',
        "        result = await send()",
        "",
    ),
    _fenced(
        "a cursor presents nothing",
        _WRAPPERS,
        _CONNECTION,
        "            await present(self._con, tx, leases)\n\n\ndef fenced",
        "            pass\n\n\ndef fenced",
        "",
    ),
    _fenced(
        "what a rollback to a savepoint by text undid is not presented again",
        "frameworks that retry inside a savepoint",
        _DROPIN,
        "        case Kind.ROLLBACK:\n            tx.forget()",
        "        case Kind.ROLLBACK:\n            pass",
        "S1",
    ),
    _fenced(
        "the record of a write is lost with its savepoint",
        _OURS,
        _STATE,
        "        if tx.doubt and leases:",
        "        if False:",
        "S15",
    ),
    _fenced(
        "the number of a COMMIT in doubt is used again",
        _OURS,
        _STATE,
        "            if (said := await self._why_no_commit(",
        "            NUMBERS.give_back(numbers)\n            if (said := await self._why_no_commit(",
        "S15",
    ),
    _fenced(
        "a transaction of before takes no number of its own",
        "every driver's connection error",
        _DROPIN,
        "    sequence = NUMBERS.alone() if tx.presentation is None else None",
        "    sequence = None",
        "S15",
    ),
    _fenced(
        "a refusal that was swallowed is forgotten",
        "errors that a caller swallows",
        _DROPIN,
        "        tx.refusal = stale(exc) or tx.refusal\n        said =",
        "        said =",
        "S10",
    ),
    _fenced(
        "what was not accepted is not told at COMMIT",
        _OURS,
        _STATE,
        'if tag == "ROLLBACK" and (presentation is not None or unaccepted):',
        'if tag == "ROLLBACK" and presentation is not None:',
        "S15",
    ),
    _fenced(
        "a close that a failed seal took along counts as made",
        _OURS,
        _FENCE,
        "                handed.finish(closed=False)",
        "                handed.finish(closed=True)",
        "S5",
    ),
    _fenced(
        "a close in the background is tried once",
        _ONCE,
        _FENCE,
        "                except FenceUnavailable:\n                    pause_s = min(2 * pause_s, _CLOSE_AGAIN_MAX_S)",
        "                except FenceUnavailable:\n                    return None",
        "S5",
    ),
    _fenced(
        "a last transaction that failed counts as closed",
        "a note before the COMMIT that it is of",
        "lockguard_asyncpg/_transaction.py",
        "        await transaction.commit()\n        if self._closes:\n            CLOSED.note(self._leases)",
        "        if self._closes:\n            CLOSED.note(self._leases)\n        await transaction.commit()",
        "S5",
    ),
    _fenced(
        "a seal is not repeated after a lost connection",
        _ONCE,
        "lockguard_postgres/_calling.py",
        "                    if not _passing(database, exc):\n                        break",
        "                    break",
        "L7",
    ),
    _fenced(
        "an eviction is tried once",
        _ONCE,
        _FENCE,
        "            await asyncio.sleep(self._grace_s)\n",
        "            await asyncio.sleep(3600)\n",
        "L6",
    ),
    _fenced(
        "claims are locked in the order of the leases",
        "locks that are taken in no order",
        _CLAIMS,
        "    claims = {_claim(lease, first=first) for lease in leases}",
        "    claims = dict.fromkeys(_claim(lease, first=first) for lease in leases)",
        "L6",
        Change(_CLAIMS, "return Presentation(tuple(sorted(claims)),", "return Presentation(tuple(claims),"),
    ),
)
