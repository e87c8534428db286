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
    def mistake(self) -> bool:
        """Whether it has to fail."""
        return bool(self.law)


def _mistake(model: str, define: str, law: str, *bounds: str) -> Check:
    return Check(model, define.lower().replace("_", " "), (define, *bounds), law)


def _clean(model: str, name: str, *bounds: str, store: str = "exact", long: bool = False) -> Check:
    return Check(model, name, bounds, store=store, long=long)


_LOCK = "lock_and_fence"
_TWO = "GRANTS=2"
_NO_LOSS = "LOSSES=0"
_NO_FAULT = "FAULTS=0"

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
    _clean(_LOCK, "three grants and a break", "GRANTS=3", _NO_LOSS, "BREAK", store="hash-compact", long=True),
    _clean(
        _LOCK, "two grants, two losses, two faults", _TWO, "LOSSES=2", "FAULTS=2", store="collapse", long=True
    ),
)
"""All checks, the short ones first within each model."""

MODELS = tuple(dict.fromkeys(one.model for one in CHECKS))
"""The models that there are."""
