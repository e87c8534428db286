"""The statements that begin and end transactions and their parts."""

from __future__ import annotations

import re

from lockguard_lab.sim.fenced.database import Level, PgError, Result, Session, Steps, Transaction

__all__ = ["control"]


def control(session: Session, verb: str, text: str) -> Steps:
    """The steps of a statement of a transaction, such as COMMIT, which give a :class:`Result`."""
    transaction = session.transaction
    words = text.lower().split()
    match verb:
        case "begin" | "start":
            if transaction is None or transaction.implicit:
                _begin(session, text)
            return Result("BEGIN")
        case "commit" | "end":
            if transaction is None:
                return Result("COMMIT")
            if transaction.failed:
                session.roll_back()
                return Result("ROLLBACK")
            session.commit()
            return Result("COMMIT")
        case "rollback" if "to" not in words:
            session.roll_back()
            return Result("ROLLBACK")
    if transaction is None or transaction.implicit:
        raise PgError("25P01", f"{verb.upper()} can only be used in transaction blocks")
    if verb != "rollback" and transaction.failed:
        raise PgError("25P02", "current transaction is aborted")
    _savepoint(session, transaction, verb, words[-1])
    yield from ()
    return Result(verb.upper())


def _begin(session: Session, text: str) -> None:
    found = re.search(r"isolation level (read committed|repeatable read|serializable)", text.lower())
    isolation = found[1] if found else session.isolation
    if session.transaction is not None:  # in a text of several statements
        session.transaction.implicit = False
        session.transaction.isolation = isolation
    else:
        session.transaction = session.database.begin(session, isolation, implicit=False)


def _savepoint(session: Session, transaction: Transaction, verb: str, name: str) -> None:
    levels = transaction.levels
    if verb == "savepoint":
        levels.append(Level(name))
        return
    place = next((number for number in range(len(levels) - 1, 0, -1) if levels[number].name == name), None)
    if place is None:
        raise PgError("3B001", f'savepoint "{name}" does not exist')
    undone = levels[place:]
    transaction.levels = levels[:place]
    if verb == "release":
        for level in undone:
            transaction.levels[-1].locks += level.locks
            transaction.levels[-1].writes |= level.writes
        return
    session.database.unlock(transaction, undone)
    transaction.levels.append(Level(name))
    transaction.failed = False
