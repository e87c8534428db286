"""Where a name in a docstring or a signature leads.

A name is looked up as the module that uses it would. What is public leads to its entry; what is not, or is of
Python or another project, stays text if it exists, as there is no network to ask. What does not exist is a
warning.
"""

# ruff: noqa: ARG001 - Sphinx gives more than each handler needs
from __future__ import annotations

import ast
import builtins
import importlib
import re
import sys
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from recorded import modules, places
from sphinx import addnodes
from sphinx.util.nodes import make_refnode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

CODE = re.compile(r"([\w.]+)(?:\(.*\))?")
"""A name, perhaps as it is called."""

ONLY_IN_STUBS = {
    # asyncpg-stubs names what asyncpg calls otherwise.
    "asyncpg.connect_utils.ConnectionConfiguration",
    "asyncpg.connect_utils.ConnectionParameters",
}
"""Names of others that exist for type checkers only."""


def prefer_what_is_meant(app: Sphinx, doctree: nodes.document) -> None:
    """Have a name lead to what it means in its module, where two modules have one of that name."""
    for node in doctree.findall(addnodes.pending_xref):
        if node.get("refdomain") == "py":
            _, thing = _found(node["reftarget"], node.get("py:module"), node.get("py:class"))
            place = _place_of(thing)
            if place:
                node["reftarget"], node["refspecific"] = place, False


def lead_from_code(app: Sphinx, doctree: nodes.document) -> None:
    """Have a public name that a page writes as code lead to its entry, where it means one thing."""
    for code in list(doctree.findall(nodes.literal)):
        called = CODE.fullmatch(code.astext())
        place = _named().get(called[1]) if called else None
        if place is None or isinstance(code.parent, nodes.reference | nodes.title | addnodes.pending_xref):
            continue
        if any(isinstance(parent, nodes.reference | addnodes.pending_xref) for parent in _parents(code)):
            continue
        link = addnodes.pending_xref(
            "",
            refdomain="py",
            reftype="obj",
            reftarget=place,
            refdoc=app.env.current_document.docname,
            refspecific=False,
            refexplicit=True,
        )
        code.replace_self(link)
        link += code


def _parents(node: nodes.Node) -> Iterator[nodes.Node]:
    while node.parent is not None:
        node = node.parent
        yield node


@cache
def _named() -> dict[str, str]:
    """Public names as pages write them: in full, or without the module where one module alone has it.

    ``LockGuard`` is that of ``lockguard``; a page about ``lockguard.sync`` says so.
    """
    short: dict[str, set[str]] = {}
    full: dict[str, str] = {}
    for module, names in modules().items():
        for public in names:
            place = public.value if public.kind == "alias" else public.place
            full[public.place] = place
            if public.name[0].isupper() and module != "lockguard.sync":
                short.setdefault(public.name, set()).add(place)
            for member in public.members:
                full[member.place] = member.place
                if module != "lockguard.sync" and public.name[0].isupper():
                    short.setdefault(f"{public.name}.{member.name}", set()).add(member.place)
    return {name: places.pop() for name, places in short.items() if len(places) == 1} | full


def _place_of(thing: Any) -> str | None:
    return places().get(f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}")


def refer(app: Sphinx, env: BuildEnvironment, node: Any, content: nodes.Element) -> nodes.Element | None:
    """Resolve a reference that names a thing as the module does that defines it.

    What is public leads to its page; what is not, or another project's, stays text if it exists.
    """
    if node.get("refdomain") != "py":
        return None
    if node["reftarget"] in ONLY_IN_STUBS:
        return content
    exists, thing = _found(node["reftarget"], node.get("py:module"), node.get("py:class"))
    if not exists:
        return None
    place = _place_of(thing)
    entry = env.domains.python_domain.objects.get(place) if place else None
    if entry is None:
        return content
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, [content], place)


def _found(target: str, module: str | None, owner: str | None) -> tuple[bool, Any]:
    """Whether there is such a thing, and the thing, looked for from the module's names outwards."""
    first, *rest = target.split(".")
    for space in _spaces(module or "lockguard", owner):
        if first in space:
            exists, thing = _inside(space[first], rest)
            if exists:
                return exists, thing
    for length in range(len(rest), -1, -1):
        try:
            found = importlib.import_module(".".join([first, *rest][: length + 1]))
        except ImportError:
            continue
        return _inside(found, rest[length:])
    return False, None


def _spaces(module: str, owner: str | None) -> Iterator[dict[str, Any]]:
    """Names by what is nearest: of the class, its module, Python itself, and the modules around."""
    home = importlib.import_module(module)
    for kind in getattr(getattr(home, owner or "", None), "__mro__", ()):
        yield vars(kind)
        yield _names_of(kind.__module__)
    yield _names_of(module)
    yield vars(builtins)
    yield from map(_names_of, _around(module))


@cache
def _around(module: str) -> list[str]:
    """Our modules, those first whose names begin as this one's."""

    def distance(other: str) -> tuple[int, str]:
        same = zip(module.split("."), other.split("."), strict=False)
        return -sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], same)), other

    return sorted((name for name in sys.modules if name.startswith("lockguard")), key=distance)


@cache
def _names_of(module: str) -> dict[str, Any]:
    """A module's names, with those that it imports for its annotations only."""
    home = importlib.import_module(module)
    names = dict(vars(home))
    path = getattr(home, "__file__", None)
    if not module.startswith("lockguard") or path is None:
        return names
    for block in ast.walk(ast.parse(Path(path).read_text("utf-8"))):
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for line in block.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    kept = {one.asname or one.name: one.name for one in line.names}
                    source = _imported(line.module)
                    names |= {name: getattr(source, it) for name, it in kept.items() if hasattr(source, it)}
                elif isinstance(line, ast.ClassDef | ast.Assign | ast.AnnAssign):
                    names |= dict.fromkeys(_defined(line))
    return names


def _defined(line: ast.ClassDef | ast.Assign | ast.AnnAssign) -> list[str]:
    if isinstance(line, ast.ClassDef):
        return [line.name]
    targets = line.targets if isinstance(line, ast.Assign) else [line.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _inside(thing: Any, path: list[str]) -> tuple[bool, Any]:
    for name in path:
        if not hasattr(thing, name):
            return name in getattr(thing, "__annotations__", {}), None
        thing = getattr(thing, name)
    return True, thing


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", prefer_what_is_meant)
    app.connect("doctree-read", lead_from_code)
    app.connect("missing-reference", refer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
