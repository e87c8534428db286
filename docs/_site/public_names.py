"""The reference: each public name that ``docs/reference/api.txt`` lists, from its docstring.

A page has ``<!-- names lockguard.events -->`` where the names of a module are to stand, or ``<!-- names
lockguard: LockGuard exclusive -->`` for some of them; a module's own page then has the others. A public name
that stands on no page, or is not described, is a warning, and so an error.
"""

# ruff: noqa: ARG001 - Sphinx gives more than each handler needs
from __future__ import annotations

import importlib
import inspect
import re
import sys
from enum import EnumType
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recorded import RECORDED, Public, modules
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

DOCS = Path(__file__).resolve().parent.parent
MARK = re.compile(r"^<!-- names ([\w.]+)(?:: ([\w ]+))? -->$", re.MULTILINE)
LONGEST_VALUE = 60

GOOGLE = Config(napoleon_use_rtype=False)

log = logging.getLogger(__name__)


@cache
def taken() -> dict[str, set[str]]:
    """The names that a page has picked from a module."""
    found: dict[str, set[str]] = {}
    for page in DOCS.rglob("*.md"):
        for module, picked in MARK.findall(page.read_text("utf-8")):
            found.setdefault(module, set()).update(picked.split())
    return found


def write_names(app: Sphinx, docname: str, content: list[str]) -> None:
    """Put the names where the page has a mark for them."""
    if not MARK.search(content[0]):
        return
    app.env.note_dependency(str(RECORDED))

    def written(mark: re.Match[str]) -> str:
        module, picked = mark[1], (mark[2] or "").split()
        names = {public.name: public for public in modules().get(module, [])}
        if module not in modules() or not set(picked) <= set(names):
            log.warning("%s names what api.txt does not have", mark[0], location=docname)
            return ""
        chosen = picked or [name for name in names if name not in taken()[module]]
        text = [f".. currentmodule:: {module}", ""] if picked else [f".. automodule:: {module}", ""]
        described = [names[name] for name in chosen if names[name].kind != "alias"]
        for public in sorted(described, key=lambda public: _rank(module, public)):
            text += _described(module, public)
        aliases = [names[name] for name in chosen if names[name].kind == "alias"]
        if aliases:
            text += ["These are importable from here too:", ""]
            text += [f"* :py:obj:`{public.name} <{public.value}>`" for public in aliases] + [""]
        return "\n".join(["```{eval-rst}", *text, "```"])

    content[0] = MARK.sub(written, content[0])


def _rank(module: str, public: Public) -> int:
    thing = getattr(importlib.import_module(module), public.name)
    if isinstance(thing, type):
        return 2 if issubclass(thing, BaseException) else 0
    return 1 if public.kind == "function" else 3


def _described(module: str, public: Public) -> list[str]:
    thing = getattr(importlib.import_module(module), public.name)
    if public.kind == "value":
        return _value(public, "data", _comment(module, "", public.name))
    if not inspect.getdoc(thing):
        log.warning("%s has no docstring", public.place)
    if public.kind == "function":
        return [f".. autofunction:: {public.place}", ""]
    error = issubclass(thing, BaseException)
    text = [f".. auto{'exception' if error else 'class'}:: {public.place}"]
    text += ["   :show-inheritance:", ""] if thing.__bases__ != (object,) else [""]
    # In the order of the source: what is made with it first, and neighbours together.
    order = [
        name
        for kind in reversed(thing.__mro__)
        for name in (*vars(kind).get("__annotations__", ()), *vars(kind))
    ]
    placed = {name: place for place, name in reversed([*enumerate(order)])}
    for member in sorted(public.members, key=lambda member: placed.get(member.name, -1)):
        text += [f"   {line}" for line in _member(thing, member)]
    return text


def _member(owner: type, member: Public) -> list[str]:
    if member.kind in ("function", "property"):
        if not inspect.getdoc(getattr(owner, member.name)):
            log.warning("%s has no docstring", member.place)
        directive = "automethod" if member.kind == "function" else "autoproperty"
        return [f".. {directive}:: {member.place}", ""]
    told = _attributes(owner).get(member.name) or _comment(owner.__module__, owner.__qualname__, member.name)
    for base in owner.__mro__[1:]:
        told = told or _attributes(base).get(member.name)
        told = told or _comment(base.__module__, base.__qualname__, member.name)
    if not member.annotation and not member.value:
        parameter = inspect.signature(owner).parameters.get(member.name)
        if parameter is not None and parameter.annotation is not parameter.empty:
            member.annotation = str(parameter.annotation)
    return _value(member, "attribute", told or [])


def _value(public: Public, directive: str, told: list[str]) -> list[str]:
    text = [f".. py:{directive}:: {public.name}"]
    if public.annotation and public.annotation != "TypeAlias":
        text.append(f"   :type: {public.annotation}")
    if public.value and len(public.value) <= LONGEST_VALUE:
        text.append(f"   :value: {public.value}")
    if not told:
        log.warning(
            "%s is not described: write what it is, with its unit, in a docstring below it", public.place
        )
    return [*text, "", *(f"   {line}" for line in told), ""]


@cache
def _attributes(owner: type) -> dict[str, list[str]]:
    """What the section Attributes of a class's docstring tells of each."""
    docstring = vars(owner).get("__doc__") or ""
    section = re.search(r"^Attributes:\n((?: {4}.*\n|\n)+)", f"{inspect.cleandoc(docstring)}\n", re.MULTILINE)
    found: dict[str, list[str]] = {}
    for line in (section[1] if section else "").splitlines():
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            found[start[1]] = [start[2]]
        elif found and line.strip():
            next(reversed(found.values())).append(line.strip())
    return found


@cache
def _comments(module: str) -> dict[tuple[str, str], list[str]]:
    try:
        return ModuleAnalyzer.for_module(module).find_attr_docs()
    except Exception:  # of a module in C
        return {}


def _comment(module: str, owner: str, name: str) -> list[str]:
    """The docstring below an attribute or a value, also where another module defines it."""
    found = _comments(module).get((owner, name))
    if found is None and not owner:
        top = module.partition(".")[0]
        for other in [*sys.modules]:
            if found is None and (other == top or other.startswith((f"{top}.", "lockguard"))):
                found = _comments(other).get((owner, name))
    return list(GoogleDocstring(found, GOOGLE, what="method").lines()) if found else []


def leave_value_out(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """An enumeration is not called."""
    return ("", None) if isinstance(thing, EnumType) else None


def read_google_style(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a docstring, as napoleon does, but for two things.

    Each attribute has an entry of its own, see ``_member``. And the first words of a property, up to a colon,
    are no type, for types stand in annotations here.
    """
    if what in ("class", "exception") and "Attributes:" in lines:
        start = lines.index("Attributes:")
        end = start + 1
        while end < len(lines) and (not lines[end] or lines[end].startswith(" ")):
            end += 1
        del lines[start:end]
    lines[:] = GoogleDocstring(lines, GOOGLE, what="method" if what == "property" else what).lines()


def note_aliases(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Have an alias lead to what it is an alias of; forget the modules in which public names are defined."""
    objects = env.domains.python_domain.objects
    for names in modules().values():
        for public in names:
            target = objects.get(public.value) if public.kind == "alias" else None
            if target is not None:
                objects[public.place] = target._replace(aliased=True)
    public_places = {public.place for names in modules().values() for public in names}
    for place in [place for place, entry in objects.items() if entry.aliased]:
        if place not in public_places:
            del objects[place]
    return []


def ask_for_all(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of each public name that is on no page."""
    objects = env.domains.python_domain.objects
    for module, names in modules().items():
        if module not in objects:
            log.warning(
                "%s is on no page; one in docs/reference/api needs: <!-- names %s -->", module, module
            )
            continue
        for public in [one for name in names for one in (name, *name.members)]:
            if public.place not in objects:
                log.warning("%s is on no page", public.place)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", write_names)
    app.connect("autodoc-process-signature", leave_value_out)
    app.connect("autodoc-process-docstring", read_google_style)
    app.connect("env-updated", note_aliases)
    app.connect("env-check-consistency", ask_for_all)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
