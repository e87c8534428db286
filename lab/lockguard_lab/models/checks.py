"""What is checked: each model within its bounds, and each of its mistakes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CHECKS", "MODELS", "Check"]


@dataclass(frozen=True)
class Check:
    """One run of one model.

    Attributes:
        model: the file in ``spec/``, without its ending.
        name: for people, unique in the model.
        defines: what its text is preprocessed with.
        law: of a mistake, the beginning of the law that it has to break, as a comment of the model has it;
            empty where nothing may be broken.
        store: how visited states are kept: ``exact``; ``collapse``, exact too and smaller; ``hash-compact``,
            64 bits of each, so that one in billions may be taken for another; or ``bitstate``, a few bits of
            each, so that some are not visited.
        long: whether it is left to ``--long``.
    """

    model: str
    name: str
    defines: tuple[str, ...] = ()
    law: str = ""
    store: str = "exact"
    long: bool = False

    @property
    def heavy(self) -> bool:
        """Whether it runs for seconds, so that optimizing it pays."""
        return self.model == "redlock" and bool({"LOSSES=1", "DRIFT"} & {*self.defines})

    @property
    def mistake(self) -> bool:
        """Whether it has to fail."""
        return bool(self.law)


def _mistake(model: str, define: str, law: str, *bounds: str, long: bool = False) -> Check:
    return Check(model, define.lower().replace("_", " "), (define, *bounds), law, long=long)


def _clean(model: str, name: str, *bounds: str, store: str = "exact", long: bool = False) -> Check:
    return Check(model, name, bounds, store=store, long=long)


_LOCK, _QUEUE, _REDLOCK = "lock_and_fence", "queue", "redlock"
_TWO = "GRANTS=2"
_NO_LOSS = "LOSSES=0"
_NO_FAULT = "FAULTS=0"
_ONCE = "RENEWALS=0"
_FORGETS = (_ONCE, "LOSSES=1", "SHORT_KNOWN")

CHECKS: tuple[Check, ...] = (
    _clean(_LOCK, "two grants", _TWO, _NO_FAULT),
    _clean(_LOCK, "three grants, only answers are lost", "GRANTS=3", "CALM"),
    _clean(_LOCK, "two grants, sealed with the first write", _TWO, _NO_FAULT, "FIRST_WRITE"),
    _clean(_LOCK, "two grants and a break", _TWO, _NO_LOSS, _NO_FAULT, "BREAK"),
    _mistake(_LOCK, "NO_FENCE", "S1", _TWO, _NO_LOSS),
    _mistake(_LOCK, "HIGHEST_WITHOUT_SEAL", "S1", _TWO, _NO_LOSS),
    _mistake(_LOCK, "CHECK_OUTSIDE", "S1", _TWO),
    _mistake(_LOCK, "UNSEALED_WRITE", "S2", _TWO),
    _mistake(_LOCK, "NUMBER_ONLY", "S2", _TWO),
    _mistake(_LOCK, "NO_CLOSE", "S5", _TWO),
    _mistake(_LOCK, "NO_LINE", "S5", _TWO),
    _mistake(_LOCK, "SETTLE_ANYBODY", "S3", _TWO),
    _mistake(_LOCK, "RELEASE_ANYBODY", "S1", _TWO),
    _mistake(_LOCK, "RENEW_ANYBODY", "S6", _TWO),
    _mistake(_LOCK, "RENEW_REVIVES", "S6", _TWO),
    _mistake(_LOCK, "NOT_REPEATABLE", "progress", _TWO, "CALM"),
    _mistake(_LOCK, "BREAK_LOCK_FIRST", "S3", _TWO, "BREAK", _NO_LOSS, _NO_FAULT),
    _mistake(_LOCK, "BREAK_FENCE_ONLY_ONCE", "S5", _TWO, "BREAK", _NO_LOSS, _NO_FAULT),
    _mistake(_LOCK, "BREAK_CLOSES_ONLY_THE_VICTIM", "S5", _TWO, "BREAK", _NO_LOSS, _NO_FAULT),
    _mistake(_LOCK, "BREAK_KNOWS_STORED_TOKENS_ONLY", "S5", _TWO, "BREAK", _NO_FAULT),
    _mistake(_LOCK, "BREAK_ABOVE_A_SUCCESSOR", "S3", _TWO, "BREAK", _NO_LOSS, _NO_FAULT),
    _mistake(_LOCK, "FIRST_WRITE_BESIDE_OTHERS", "S1", _TWO, "FIRST_WRITE"),
    _clean(_LOCK, "three grants and faults", "GRANTS=3", store="collapse", long=True),
    _clean(
        _LOCK,
        "three grants, sealed with the first write",
        "GRANTS=3",
        "FIRST_WRITE",
        store="collapse",
        long=True,
    ),
    _clean(_LOCK, "two grants, a break and a loss", _TWO, _NO_FAULT, "BREAK", long=True),
    _clean(_LOCK, "three grants and a break", "GRANTS=3", _NO_LOSS, "BREAK", store="hash-compact", long=True),
    _clean(
        _LOCK, "two grants, two losses, two faults", _TWO, "LOSSES=2", "FAULTS=2", store="collapse", long=True
    ),
    _clean(_QUEUE, "three waiters"),
    _clean(_QUEUE, "three waiters, a lost wake-up", "LOST=1"),
    _clean(_QUEUE, "three waiters, a process dies", "DEAD=1"),
    _mistake(_QUEUE, "WAKE_NOT_PASSED_ON", "L2"),
    _mistake(_QUEUE, "NO_WAKE", "L2"),
    _mistake(_QUEUE, "DEAD_NOT_SKIPPED", "L3", "DEAD=1"),
    _mistake(_QUEUE, "NO_POLL", "L3, L4", "LOST=1"),
    _mistake(_QUEUE, "QUEUE_NOT_ASKED", "L2", "DEAD=1", "OF_ONE=1"),
    _mistake(_QUEUE, "RESERVATION_NOT_HEEDED", "L2"),
    _mistake(_QUEUE, "GIVING_UP_IS_SILENCE", "L2"),
    _mistake(_QUEUE, "PLACE_NOT_REMOVED", "S8"),
    _mistake(_QUEUE, "RELEASE_OVERTAKES", "S8"),
    _mistake(_QUEUE, "SIGN_OF_LIFE_NOT_KEPT", "L2"),
    _clean(_QUEUE, "four waiters, a lost wake-up", "WAITERS=4", "LOST=1", store="hash-compact", long=True),
    _clean(
        _QUEUE,
        "four waiters, a lost wake-up, a process dies",
        "WAITERS=4",
        "OF_ONE=3",
        "LOST=1",
        "DEAD=1",
        store="hash-compact",
        long=True,
    ),
    _clean(_REDLOCK, "two grants, no renewals", _ONCE),
    _mistake(_REDLOCK, "NO_QUARANTINE", "S1", _ONCE, "LOSSES=1"),
    _mistake(_REDLOCK, "HALF_DECIDES", "S1", _ONCE),
    _mistake(_REDLOCK, "MINORITY_KEPT", "S8", _ONCE),
    _mistake(_REDLOCK, "NEW_BESIDE_MEMBERS", "S1", _ONCE, "LOSSES=1", long=True),
    _mistake(_REDLOCK, "QUARANTINE_BY_OWN_TTL", "S1", _ONCE, "LOSSES=1", long=True),
    _mistake(_REDLOCK, "VOTES_ACROSS_ADMISSIONS", "S1", *_FORGETS, "NOBODY_LEAVES"),
    _mistake(_REDLOCK, "DEADLINE_FROM_THE_ANSWER", "S1", _ONCE),
    _mistake(_REDLOCK, "NO_ALLOWANCE", "S1", _ONCE, "DRIFT"),
    _mistake(_REDLOCK, "SILENCE_IS_CONSENT", "S1", _ONCE),
    _clean(_REDLOCK, "two grants that renew", store="collapse", long=True),
    _clean(
        _REDLOCK, "a node forgets a long lease among short ones", *_FORGETS, store="hash-compact", long=True
    ),
    _clean(
        _REDLOCK,
        "a node forgets, clocks drift, none renews",
        _ONCE,
        "LOSSES=1",
        "DRIFT",
        "APART",
        store="hash-compact",
        long=True,
    ),
    _clean(_REDLOCK, "two nodes forget in turn", "LOSSES=2", store="hash-compact", long=True),
    _clean(
        _REDLOCK, "five nodes, a minority forgets", "NODES=5", _ONCE, "LOSSES=2", store="bitstate", long=True
    ),
)
"""All checks, the short ones first within each model."""

MODELS = tuple(dict.fromkeys(one.model for one in CHECKS))
"""The models that there are."""
