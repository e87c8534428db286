"""The public names as ``docs/reference/api.txt`` records them, which a test compares with the code."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

__all__ = ["RECORDED", "Public", "modules", "places"]

RECORDED = Path(__file__).resolve().parent.parent / "reference/api.txt"
LINE = re.compile(
    r"(?:(?P<typed>value|property|alias) (?P<named>[\w.]+)(?:: (?P<annotation>.*?))?(?: = (?P<value>.*))?"
    r"|(?P<kind>module|class|(?:async )?def) (?P<place>[\w.]+)(?:[( @].*)?)"
)


@dataclass
class Public:
    """A public name.

    Attributes:
        kind: ``class``, ``function``, ``value``, ``property`` or ``alias``.
        annotation: its type as it is written, or nothing.
        value: as it is written; of an alias, the name whose alias it is.
        members: of a class, without its special methods.
    """

    place: str
    kind: str
    annotation: str = ""
    value: str = ""
    members: list[Public] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.place.rpartition(".")[2]


@cache
def modules() -> dict[str, list[Public]]:
    """The public names of each module, as recorded."""
    found: dict[str, list[Public]] = {}
    listed: list[Public] = []
    for line in RECORDED.read_text("utf-8").splitlines():
        parts = LINE.fullmatch(line)
        assert parts is not None, line
        kind, place = parts["kind"] or parts["typed"], parts["place"] or parts["named"]
        annotation, value = parts["annotation"] or "", parts["value"] or ""
        if kind == "module":
            listed = found[place] = []
            continue
        kind = "function" if kind.endswith("def") else kind
        public = Public(place, kind, annotation, value)
        inside = listed and listed[-1].kind == "class" and place.startswith(f"{listed[-1].place}.")
        siblings = listed[-1].members if inside else listed
        # An overload has a line of its own.
        if not public.name.startswith("__") and not (siblings and siblings[-1].place == place):
            siblings.append(public)
    return found


@cache
def places() -> dict[str, str]:
    """Where what is public stands, by the module and the name that it was defined with."""
    found: dict[str, str] = {}
    for module, names in modules().items():
        for public in names:
            if public.kind in ("class", "function"):
                thing = getattr(importlib.import_module(module), public.name)
                found[f"{thing.__module__}.{thing.__qualname__}"] = public.place
    return found
