"""What a database error means to a holder, decided in one place by SQLSTATE, whatever driver raised it.

Three questions matter after a failure: was the work done, may the same call be made again, and whose fault is
it. A driver's :class:`Errors` answers them for every error that the driver can raise:

STALE              the fence refused: never retry (LG001, LG002)
RETRY              nothing was done; a new attempt of the whole transaction may succeed
LOST               the connection is gone: nothing was done unless a COMMIT was under way
UNAVAILABLE        the server cannot do it now (starting, full, read only, timed out)
CONFIGURATION      it will fail until an operator changes something
STATEMENT          the statement's own error: the caller gets it unchanged
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from lockguard.errors import (
    ConfigurationError,
    FenceUnavailable,
    LockguardError,
    OutcomeUnknown,
    StaleToken,
)
from lockguard.text import first_line
from lockguard_postgres._refusals import REFUSALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lockguard._lease import Lease

__all__ = [
    "LOGIN_REMEDY",
    "CommitUnknown",
    "Errors",
    "Meaning",
    "NotCommitted",
    "Said",
    "SealUnknown",
    "VersionConflict",
    "meaning_of_state",
]


class CommitUnknown(OutcomeUnknown):
    """A COMMIT was sent and its reply was lost; ``resolve`` of the driver's package finds out the outcome.

    Attributes:
        resource: the resource of the lease under which the transaction wrote.
        token: the token that the write carried.
        sequence: the transaction's number, which together with resource and token identifies it.
        first: whether it also carried the seal of its lease, see ``PostgresFence(seal_with_first_write=)``.
    """

    def __init__(self, *, resource: str, token: int, sequence: int, first: bool = False) -> None:
        super().__init__(
            f"the reply to a COMMIT under {resource!r} (token {token}, sequence {sequence}) was lost:"
            " it may have committed or not; ask resolve(pool, error) of lockguard_asyncpg or"
            " lockguard_psycopg before going on",
            resource=resource,
            token=token,
        )
        self.sequence = sequence
        self.first = first


class NotCommitted(LockguardError):
    """The body of a transaction ended without an error, yet nothing was committed.

    Postgres rolled it back because an error inside was swallowed, or the connection was lost before COMMIT.
    """


class SealUnknown(FenceUnavailable):
    """The database does not know the last seal of the resource, though this fence has confirmed it.

    It is an old primary, or it has lost commits in a failover or a restore. No lease of the resource can be
    taken there until an operator has decided: ``lockguard fence recover``, or the URL of another server.
    """

    retryable = False


class VersionConflict(LockguardError):
    """The row has changed since it was read, or is gone: nothing was written. Read it and decide again.

    Attributes:
        expected: the version that the caller had read.
        found: the version of the row a moment after; ``None`` if there was none.
    """

    def __init__(self, message: str, *, expected: int, found: int | None) -> None:
        super().__init__(message)
        self.expected = expected
        self.found = found


class Meaning(Enum):
    """What an error says about the work; each is described in the module's docstring."""

    STALE = "stale"
    RETRY = "retry"
    LOST = "lost"
    UNAVAILABLE = "unavailable"
    CONFIGURATION = "configuration"
    STATEMENT = "statement"


_BY_STATE = {
    "LG001": Meaning.STALE,
    "LG002": Meaning.STALE,
    "LG003": Meaning.STATEMENT,
    "LG004": Meaning.CONFIGURATION,
    "LG005": Meaning.STATEMENT,
    "LG006": Meaning.STATEMENT,  # handled where it can arise, see _unsealed.py
    "LG007": Meaning.STATEMENT,
    "40001": Meaning.RETRY,  # serialization failure
    "40P01": Meaning.RETRY,  # deadlock
    "40003": Meaning.LOST,  # statement completion unknown
    "57014": Meaning.UNAVAILABLE,  # query canceled
    "57P01": Meaning.LOST,  # admin shutdown
    "57P02": Meaning.LOST,  # crash shutdown
    "57P05": Meaning.LOST,  # idle session timeout
    "25P03": Meaning.LOST,  # idle in transaction session timeout
    "25P04": Meaning.LOST,  # transaction timeout
    "25006": Meaning.UNAVAILABLE,  # read only: a standby, or not yet promoted
    "55P03": Meaning.UNAVAILABLE,  # lock timeout
    "57P03": Meaning.UNAVAILABLE,  # cannot connect now
    "42501": Meaning.CONFIGURATION,  # insufficient privilege
    "42883": Meaning.CONFIGURATION,  # undefined function
    "42P01": Meaning.CONFIGURATION,  # undefined table
    "57P04": Meaning.CONFIGURATION,  # database dropped
    "08P01": Meaning.LOST,  # protocol violation
}
_BY_CLASS = {
    "08": Meaning.LOST,  # connection
    "28": Meaning.CONFIGURATION,  # authorization
    "3D": Meaning.CONFIGURATION,  # no such database
    "3F": Meaning.CONFIGURATION,  # no such schema
    "53": Meaning.UNAVAILABLE,  # resources: disk, memory, connections
    "57": Meaning.UNAVAILABLE,  # operator intervention
    "58": Meaning.UNAVAILABLE,  # system error
    "XX": Meaning.UNAVAILABLE,  # internal error, corruption
}

# PgBouncer's own text; it ends the session, and would end the session of each further attempt.
LOGIN_REMEDY = "check the user and the password of the database URL, and the server's pg_hba.conf"
_STATEMENT_POOLING = "statement pooling"
_ENDS_SESSION = {"FATAL", "PANIC"}
# Unless commits are lost, a token that was sealed is never higher than the one in force.
_BACKWARDS = (
    "; a lower token is in force than was presented: this is an old primary, has lost commits in a failover"
    " or a restore (then run `lockguard fence recover`), or is not the database of the guard's fence"
)


def meaning_of_state(state: str, text: str) -> Meaning:
    """What the server said with the SQLSTATE ``state`` and the error's ``text``."""
    if _STATEMENT_POOLING in text:
        return Meaning.CONFIGURATION
    return _BY_STATE.get(state) or _BY_CLASS.get(state[:2], Meaning.STATEMENT)


@dataclass(frozen=True, slots=True)
class Said:
    """The fields of an error that the server sent; empty where it sent none."""

    state: str
    message: str = ""
    detail: str = ""
    hint: str = ""
    severity: str = ""


class Errors:
    """What the errors of one driver mean.

    Args:
        heard: the fields of an error that the server sent; ``None`` for the driver's own errors.
        meaning_of: what an error says about the work.
    """

    def __init__(
        self,
        heard: Callable[[BaseException], Said | None],
        meaning_of: Callable[[BaseException], Meaning],
    ) -> None:
        self._heard = heard
        self.meaning_of = meaning_of

    def leaves_in_doubt(self, exc: BaseException) -> bool:
        """Whether a COMMIT that failed with ``exc`` may have taken effect all the same.

        Only an error after which the session goes on rules that out. One that ends it may come from a server
        that died after the commit, or from a pooler that lost its server; poolers do not agree on a SQLSTATE
        for that.
        """
        said = self._heard(exc)
        if said is not None and said.severity in _ENDS_SESSION:
            return True
        return self.meaning_of(exc) is Meaning.LOST or isinstance(exc, TimeoutError)

    def unreachable(self, exc: BaseException) -> bool:
        """Whether an attempt to connect failed for a passing reason: no server answers there now."""
        return self.meaning_of(exc) in {Meaning.LOST, Meaning.UNAVAILABLE, Meaning.RETRY}

    def stale(self, exc: BaseException) -> StaleToken | None:
        """The fence's refusal as a :class:`StaleToken` with its facts, or ``None`` for anything else."""
        said = self._heard(exc)
        if said is None or self.meaning_of(exc) is not Meaning.STALE:
            return None
        facts = _facts(said)
        presented, current = facts.get("presented"), facts.get("current")
        backwards = presented is not None and current is not None and presented > current
        return StaleToken(
            (said.message or str(exc)) + (_BACKWARDS if backwards else ""),
            resource=facts.get("resource") or "",
            presented=presented,
            current=current,
        )

    def ended(self, exc: BaseException, leases: Iterable[Lease]) -> LockguardError | None:
        """What a failed statement says about the leases under which it was sent; ``None`` if nothing.

        A refusal that names a lease's own resource, token and grant ends that lease at once, whatever becomes
        of the error: a caller that swallows it must not go on to act on the exchange. If the connection is
        gone and a lease has ended (a stalled event loop, a server that ended an idle session), it is that
        lease's loss.

        Call it last, when the connection is in order again: ending a lease cancels its body.

        Returns:
            The error to raise in place of ``exc``.
        """
        if (refusal := self.stale(exc)) is not None:
            said = self._heard(exc)
            assert said is not None, f"a refusal comes from Postgres, and this is {exc!r}"
            facts, leases = _facts(said), tuple(leases)
            REFUSALS.note(exc, facts, leases)
            for lease in leases:
                # An older schema does not name the grant; then lost_to_fence compares resource and token.
                if facts.get("grant") in (None, lease.grant.id) and facts.get("reason") != "voided":
                    lease.lost_to_fence(refusal)
            return refusal
        if self.meaning_of(exc) is Meaning.LOST:
            for lease in leases:
                if (reason := lease.loss) is not None:
                    return lease.lost_error(reason)
        return None

    def note_on_check(self, exc: BaseException, leases: Iterable[Lease]) -> None:
        """Add a note to an error that Postgres itself raised in a check: what it means there."""
        said = self._heard(exc)
        if self.meaning_of(exc) is Meaning.RETRY:
            exc.add_note("the transaction's snapshot may be older than its lease: begin it inside the body")
        elif said is not None and said.state == "55P03":
            names = " or ".join(repr(str(lease.resource)) for lease in leases)
            exc.add_note(
                f"the check of the lease stood in line at the gate of {names}, behind a seal, a close or a"
                " break, or a session that stays there; the function lockguard.at_the_gate(resource) shows"
                " which"
            )
        elif said is not None and said.state == "25006":
            exc.add_note(
                "the check of a lease locks a row of the fence: this connection is a standby's, or has"
                " default_transaction_read_only on"
            )

    def set_up_error(self, exc: BaseException) -> ConfigurationError:
        """For an error that means CONFIGURATION, the error that tells in one line what to change."""
        said = self._heard(exc) or Said("")
        state, first = said.state, first_line(exc)
        if state == "LG004":
            return ConfigurationError(f"{first}; {said.hint or 'see the reference of the fence'}")
        if state in {"3F000", "42P01"}:
            remedy = "the database has no lockguard schema: run `lockguard fence install` on it"
        elif state == "42883":
            remedy = (
                "the lockguard schema is missing or older than this library: run `lockguard fence upgrade`"
            )
        elif state == "42501":
            remedy = (
                "this role may not do that: run `GRANT lockguard_app TO <role>` for a bot, or as the schema's"
                " owner `lockguard fence install --grant-to <role>`; one that only looks gets"
                " lockguard_viewer (--viewer), one that breaks locks lockguard_operator (--operator)"
            )
        elif _STATEMENT_POOLING in first:
            remedy = (
                "a check and its write are one transaction, which a pooler in statement mode does not have:"
                " give it pool_mode = transaction or session"
            )
        elif state.startswith("28"):
            remedy = LOGIN_REMEDY
        else:
            remedy = "check the database URL and the schema"
        return ConfigurationError(f"{first}; {remedy}")

    def fence_error(self, exc: BaseException) -> LockguardError | None:
        """The error to raise for a failed call of the fence's own; ``None`` if it is ``exc`` itself."""
        if (refusal := self.stale(exc)) is not None:
            return refusal
        return self.set_up_error(exc) if self.meaning_of(exc) is Meaning.CONFIGURATION else None

    def translate(self, exc: BaseException) -> BaseException:
        """The :class:`StaleToken` for a refusal of the fence; any other error is returned unchanged."""
        return self.stale(exc) or exc


def _facts(said: Said) -> dict[str, Any]:
    try:
        facts = json.loads(said.detail or "{}")
    except ValueError:  # an error of other code that uses our SQLSTATE
        return {}
    if not isinstance(facts, dict):
        return {}
    if isinstance(facts.get("grant"), str):
        facts["grant"] = facts["grant"].replace("-", "")
    return facts
