"""What a schedule of the flow consists of, drawn from its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

__all__ = ["FINAL_CODES", "PASSING_CODES", "FlowPlan", "Trouble"]

PASSING_CODES = (-1015, -4045, -2019, -4118, -2015, -4061, -1016, -9999)
"""Refusals that pass: rate, number of orders, margin, crowded, key, mode, maintenance, an unknown one."""
FINAL_CODES = (-1111, -4014, -4003, -4023)
"""Refusals of an order that the exchange will never take as it is."""

_STEPS = ("entry", "stop", "stop", "close", "cancel")
_LOST = ("disconnect", "timeout", "unavailable", "truncated", "hang")
_EVENTS = ("send entry", "reply entry", "send stop", "reply stop", "send close", "reply close", "send cancel",
           "reply cancel", "send read", "reply read", "commit", "commit", "commit")  # fmt: skip

_EXCHANGE = (
    "lose",
    "lose",
    "refuse passing",
    "refuse final",
    "refuse passing",
    "fail reads",
    "partial",
    "lag",
    "drop",
)
_STATES = ("maintenance", "ban", "deny", "clock", "slow exchange")
_PEOPLE = (
    *("person trades", "person closes", "person moves the stop", "person cancels the stop"),
    *("person takes profit", "price", "price"),
)
_BY_HAND = tuple(kind for kind in _PEOPLE if kind.startswith("person"))
_AT_EVENTS = {"drop": ("reply stop",), "price": ("", "reply entry", *_EVENTS)}
_PROCESSES = ("kill", "cancel", "cancel", "stop", "stop")
_SERVERS = ("database down", "lose commit answers", "slow database", "cut redis", "break", "wipe redis")
_ALL = _EXCHANGE + _STATES + _PEOPLE + _PROCESSES + _SERVERS
_RARE = ("short stop", "liquidation", "deleveraging", "hedge mode", "rest ends", "rest ends")
_RESTING = ("resting stop",)
_BY_NAME = _RARE + _RESTING
"""Drawn with dice of their own, so that the schedules without them stay what they were."""
_BY_OTHERS = {*_BY_HAND, "liquidation", "deleveraging", "hedge mode"}


_RARE_SHARE, _RESTING_SHARE = 0.4, 0.15


@dataclass(frozen=True)
class Trouble:
    """One thing that goes wrong, or one thing that a person does.

    Attributes:
        kind: what.
        at: from when on, in seconds.
        lasts: for how long, in seconds.
        on: the event after ``at`` that it waits for, such as ``send entry``; empty for none.
        turns: how many turns of the process later it comes, once the event was seen.
        detail: which of several: a step, a way of losing an answer, a code.
        number: chooses a process, a symbol, a share or a side.
    """

    kind: str
    at: float
    lasts: float = 0.0
    on: str = ""
    turns: int = 0
    detail: tuple[str, ...] = ()
    number: int = 0

    def __str__(self) -> str:
        parts = [f"at {self.at:.3f} s", f"on {self.on} + {self.turns}" if self.on else "", self.kind]
        parts += [*self.detail, f"for {self.lasts:.2f} s" if self.lasts else "", f"({self.number})"]
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class FlowPlan:
    """One schedule of the flow before it begins.

    Attributes:
        seed: its number.
        processes: how many bots trade the same account.
        symbols: how many contracts.
        ttl_s: the ttl of the leases.
        pass_s: the pause between two passes of a bot.
        until_s: when no more calls are begun.
        signals_s: the mean pause between two calls of a bot.
        adopt: what is done about a position without a row.
        troubles: what goes wrong.
    """

    seed: int
    processes: int
    symbols: int
    ttl_s: float
    pass_s: float
    until_s: float
    signals_s: float
    adopt: str
    troubles: tuple[Trouble, ...] = field(default=())

    @classmethod
    def of(cls, seed: int, theme: str | None = None) -> FlowPlan:
        """The plan of a seed.

        Args:
            seed: its number.
            theme: what goes wrong first, such as ``lose entry`` or ``kill on reply stop``; several are
                written with a plus between them.
        """
        dice = random.Random(seed ^ 0xF10)  # noqa: S311 - a simulation, not a secret
        until_s = dice.choice((8.0, 15.0, 15.0, 30.0))
        kinds: tuple[str, ...] = dice.choice(
            (
                _EXCHANGE,
                _EXCHANGE + _STATES,
                _EXCHANGE + _PEOPLE,
                _EXCHANGE + _PROCESSES,
                _PROCESSES + _SERVERS,
                _PEOPLE,
                _ALL,
            )
        )
        troubles = [_trouble(dice, kinds, until_s) for _ in range(dice.choice((0, 1, 1, 2, 2, 3, 5)))]
        for first in theme.split("+") if theme else ():
            troubles = _some(dice, first, until_s) + troubles[:3]
        rare = random.Random(seed ^ 0xF11)  # noqa: S311 - a simulation, not a secret
        if theme is None and rare.random() < _RARE_SHARE:
            troubles += [_trouble(rare, _RARE, until_s) for _ in range(rare.choice((1, 1, 2)))]
        resting = random.Random(seed ^ 0xF12)  # noqa: S311 - a simulation, not a secret
        if theme is None and resting.random() < _RESTING_SHARE:
            troubles.append(_trouble(resting, _RESTING, until_s))
        return cls(
            seed=seed,
            processes=dice.choice((1, 1, 2, 2, 3)),
            symbols=dice.choice((1, 1, 2)),
            ttl_s=dice.choice((3.0, 10.0, 10.0, 30.0)),
            pass_s=dice.choice((1.5, 4.0, 4.0, 8.0)),
            until_s=until_s,
            signals_s=dice.choice((0.7, 1.5, 4.0)),
            adopt=dice.choice(("stop", "stop", "stop", "alert", "off")),
            troubles=tuple(sorted(troubles, key=lambda one: one.at)),
        )

    @property
    def kinds(self) -> set[str]:
        """What goes wrong."""
        return {one.kind for one in self.troubles}

    @property
    def perils(self) -> tuple[Trouble, ...]:
        """All that goes wrong."""
        return self.troubles

    @property
    def calm(self) -> bool:
        """Whether nothing goes wrong."""
        return not self.troubles

    @property
    def has_others(self) -> bool:
        """Whether a person trades beside the bots, or the exchange makes positions smaller itself."""
        return bool(self.kinds & _BY_OTHERS)

    def without(self, *troubles: Trouble) -> FlowPlan:
        """The plan without some of its troubles, to shrink a failure."""
        return replace(self, troubles=tuple(one for one in self.troubles if one not in troubles))

    def __str__(self) -> str:
        first = (
            f"seed {self.seed}: {self.processes} bots, {self.symbols} contracts, ttl {self.ttl_s:g} s,"
            f" a pass each {self.pass_s:g} s, a call each {self.signals_s:g} s, {self.until_s:g} s,"
            f" adopt {self.adopt}"
        )
        return "\n".join((first, *(f"  {one}" for one in self.troubles)))


def _some(dice: random.Random, first: str, until_s: float) -> list[Trouble]:
    """Some troubles whose name, details and event begin as ``first`` says."""
    found: list[Trouble] = []
    while len(found) < 3:
        kinds = tuple(kind for kind in _ALL + _BY_NAME if first.startswith(kind.split()[0]))
        drawn = _trouble(dice, kinds, until_s)
        if " ".join((drawn.kind, *drawn.detail, "on", drawn.on, "after", str(drawn.turns))).startswith(first):
            found.append(drawn)
    return found


def _trouble(dice: random.Random, kinds: tuple[str, ...], until_s: float) -> Trouble:
    kind = dice.choice(kinds)
    at = dice.uniform(0.0, until_s * 0.9)
    number = dice.randrange(60)
    return _rare(dice, kind, at, number) if kind in _BY_NAME else _usual(dice, kind, at, number)


def _usual(dice: random.Random, kind: str, at: float, number: int) -> Trouble:
    detail: tuple[str, ...]
    match kind:
        case "lose":
            late = dice.choice(("never", "first", "first", "late"))
            detail = (dice.choice(_STEPS), dice.choice(_LOST), late)
            return Trouble(kind, at, dice.uniform(0.5, 9.0), detail=detail, number=dice.choice((1, 1, 2, 3)))
        case "refuse passing":
            detail = (dice.choice(_STEPS), str(dice.choice(PASSING_CODES)))
            return Trouble(kind, at, detail=detail, number=dice.choice((1, 1, 2, 5, 20)))
        case "refuse final":
            detail = (dice.choice(("entry", "stop", "stop", "close")), str(dice.choice(FINAL_CODES)))
            return Trouble(kind, at, detail=detail, number=dice.choice((1, 1, 3)))
        case "fail reads":
            detail = (dice.choice(("read", "look", "hold")), dice.choice(_LOST), "never")
            number = dice.choice((1, 3, 6, 12, 60, 400))
            return Trouble(kind, at, dice.uniform(0.5, 3.0), detail=detail, number=number)
        case "partial":
            detail = (dice.choice(("entry", "entry", "close")), dice.choice(("expires", "rests")))
            return Trouble(kind, at, detail=detail, number=dice.choice((0, 30, 50, 99)))
        case "lag":
            detail = (dice.choice(("orders", "positions", "both")),)
            return Trouble(kind, at, dice.uniform(2.0, 15.0), detail=detail, number=dice.choice((1, 2, 4)))
        case "kill" | "cancel" | "stop" | "break" | "cut redis":
            on = dice.choice(("", *_EVENTS))
            lasts = dice.choice((0.3, 2.0, 6.0, 15.0)) * dice.uniform(0.5, 1.5)
            return Trouble(kind, at, lasts, on, dice.choice((0, 1, 1, 2, 2, 3, 5, 8)), number=number)
        case _ if kind in ("drop", "price", *_BY_HAND):
            on = dice.choice(_AT_EVENTS.get(kind, ("", "", *_EVENTS)))
            return Trouble(kind, at, 0.0, on, dice.choice((0, 1, 2, 4)), number=number)
        case _:
            lasts = dice.choice((0.5, 2.0, 6.0, 15.0)) * dice.uniform(0.5, 1.5)
            return Trouble(kind, at, lasts, number=number)


def _rare(dice: random.Random, kind: str, at: float, number: int) -> Trouble:
    if kind == "rest ends":
        detail = (dice.choice(("entry", "entry", "close")), dice.choice(("expires", "expires", "fills")))
        lasts = dice.choice((0.1, 0.5, 2.0, 19.5, 25.0)) * dice.uniform(0.5, 1.1)
        return Trouble(kind, at, lasts, detail=detail, number=dice.choice((0, 30, 50, 99)))
    turns, on = dice.choice((0, 1, 2, 4)), dice.choice(("", "", "", *_EVENTS))
    match kind:
        case "short stop" | "resting stop":
            how = ("expires" if kind == "short stop" else "rests", dice.choice(("0", "30", "50", "99")))
            for_s = (0.1, 0.5, 3.0) if kind == "short stop" else (0.1, 0.5, 3.0, 12.0, 25.0)
            lasts = dice.choice(for_s) * dice.uniform(0.5, 1.5)
            return Trouble(kind, at, lasts, on, turns, how, number)
        case "hedge mode":
            lasts = dice.choice((0.5, 3.0, 12.0)) * dice.uniform(0.5, 1.5)
            return Trouble(kind, at, lasts, on, turns, number=number)
        case _:
            return Trouble(kind, at, 0.0, on, turns, (dice.choice(("100", "100", "60", "30")),), number)
