"""The kinds of runs that leave evidence: the command of each, and the code that it tries."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KINDS", "Kind"]

_PRODUCT = ("lockguard", "integrations")
_LOCK = ("lockguard", "!lockguard/_cli", "!lockguard/sync")  # no schedule runs the commands, or threads
_SIM = ("lab/lockguard_lab/sim", "!lab/lockguard_lab/sim/planted")


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    Attributes:
        title: for people.
        command: what is run; ``--json FILE`` and the caller's arguments follow.
        sources: the files and folders whose code decides what a run finds, less those with a ``!``.
        counted: the number of ``counts`` that says how much was tried, with its name in a table.
        seeds_at_once: of a kind that is collected over several sittings, how many seeds one command runs; 0
            for a kind of which each run leaves a file of its own.
        columns: of ``rows``, those that the page shows; all if there is none.
        joined: the column by which the rows of all runs on the newest code become one table; empty where each
            run has a table of its own.
    """

    title: str
    command: str
    sources: tuple[str, ...]
    counted: tuple[str, str]
    seeds_at_once: int = 0
    columns: tuple[str, ...] = ()
    joined: str = ""


KINDS = {
    "sim": Kind(
        "Simulated schedules of the lock",
        "lockguard sim",
        (*_LOCK, *_SIM, "!lab/lockguard_lab/sim/flow", "!lab/lockguard_lab/sim/fenced"),
        ("schedules", "schedules"),
        seeds_at_once=2_000,
    ),
    "fence": Kind(
        "Simulated schedules of the fence",
        "lockguard sim --layer fence",
        (*_PRODUCT, *_SIM, "!lab/lockguard_lab/sim/flow"),
        ("schedules", "schedules"),
        seeds_at_once=1_000,
    ),
    "flow": Kind(
        "Simulated schedules of positions",
        "lockguard sim --layer flow",
        (*_PRODUCT, *_SIM, "!lab/lockguard_lab/sim/fenced", "lab/lockguard_lab/exchange"),
        ("schedules", "schedules"),
        seeds_at_once=500,
    ),
    "planted": Kind(
        "Planted mistakes",
        "lockguard sim --planted",
        (*_PRODUCT, "lab/lockguard_lab/sim"),
        ("planted", "mistakes"),
        columns=("name", "origin", "layer", "law", "seed", "seconds"),
        joined="name",
    ),
    "chaos": Kind(
        "Recorded chaos on real servers",
        "lockguard chaos",
        (*_PRODUCT, *(f"lab/lockguard_lab/{part}" for part in ("chaos", "fence_race", "servers"))),
        ("operations", "operations"),
    ),
    "models": Kind("Models", "scripts/models", ("spec", "lab/lockguard_lab/models"), ("states", "states")),
    "mutants": Kind(
        "Mutants",
        "scripts/mutants",
        (*_PRODUCT, "tests", "lab/lockguard_lab/mutants"),
        ("mutants", "mutants"),
    ),
    "scoreboard": Kind(
        "Scoreboard",
        "lockguard scoreboard",
        (*_PRODUCT, "lab/lockguard_lab/scoreboard", "lab/lockguard_lab/bench/holders"),
        ("cases", "cases"),
    ),
}
"""By name, in the order of the pages."""
