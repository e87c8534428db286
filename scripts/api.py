"""Prints the public API: every public name of the packages with its kind and signature, one a line.

docs/reference/api.txt holds what it prints, so that a change of the API is seen in review. The sources are
read and never imported: neither the Python that runs this nor what is installed beside it changes the output.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

CHECKOUT = Path(__file__).resolve().parent.parent
SOURCES = (CHECKOUT, CHECKOUT / "integrations", CHECKOUT / "lab")

MODULES = (
    "lockguard",
    "lockguard.errors",
    "lockguard.events",
    "lockguard.observe",
    "lockguard.ports",
    "lockguard.redlock",
    "lockguard.sync",
    "lockguard.testing",
    "lockguard.testing.pytest_plugin",
    "lockguard.text",
    "lockguard_asyncpg",
    "lockguard_asyncpg.sqlalchemy",
    "lockguard_bot",
    "lockguard_ccxt",
    "lockguard_ccxt.lean_import",
    "lockguard_command",
    "lockguard_logs",
    "lockguard_metrics",
    "lockguard_ops",
    "lockguard_positions",
    "lockguard_positions.alerts",
    "lockguard_postgres",
    "lockguard_postgres.testing",
    "lockguard_psycopg",
    "lockguard_tenacity",
    # What lockguard.testing offers by these names.
    "lockguard_lab.servers",
)
"""What users may import. Any other module of the shipped packages begins with an underscore."""

# Called by Python, or the same for every class.
UNSEEN = {"__post_init__", "__repr__", "__str__", "__hash__"}


def load() -> griffe.ModulesCollection:
    """The packages' syntax, with what one imports from another resolved."""
    loader = griffe.GriffeLoader(search_paths=SOURCES, allow_inspection=False)
    for package in dict.fromkeys(name.partition(".")[0] for name in MODULES):
        loader.load(package)
    loader.resolve_aliases(implicit=True, external=False)
    return loader.modules_collection


def lines() -> Iterator[str]:
    """The API, in order."""
    collection = load()
    listed: dict[str, str] = {}
    for name in sorted(MODULES, key=lambda name: (name.partition(".")[0], -name.count("."), name)):
        for path in _names_of(collection[name]):
            listed.setdefault(collection[path].canonical_path, path)
    for name in MODULES:
        yield f"module {name}"
        for path in _names_of(collection[name]):
            found = collection[path]
            place = listed[found.canonical_path]
            if place == path:
                yield from _described(path, found.final_target if found.is_alias else found, set(listed))
            else:
                yield f"alias {path} = {place}"


def _names_of(module: griffe.Module) -> list[str]:
    """Where the names that a module exports are found."""
    return [f"{module.path}.{name}" for name in sorted(str(name) for name in module.exports or ())]


def _described(path: str, found: griffe.Object, public: set[str]) -> Iterator[str]:
    if found.is_class:
        yield from _class(path, found, public)
    elif found.is_function:
        yield from _function(path, found, found.parent.overloads.get(found.name))
    else:
        yield _attribute(path, found)


def _class(path: str, found: griffe.Class, public: set[str]) -> Iterator[str]:
    bases = f"({', '.join(str(base) for base in found.bases)})" if found.bases else ""
    yield f"class {path}{bases}{_decorators(found)}"
    # A base that is public has lines of its own.
    line = [*(base for base in reversed(found.mro()) if base.canonical_path not in public), found]
    members = {name: member for one in line for name, member in one.members.items()}
    overloads = {name: found for one in line for name, found in one.overloads.items()}
    for name, member in sorted(members.items()):
        if name in UNSEEN or (name.startswith("_") and not (name.startswith("__") and member.is_function)):
            continue
        if member.is_function or name in overloads:
            yield from _function(f"{path}.{name}", member, overloads.get(name))
        else:
            yield from _described(f"{path}.{name}", member, public)


def _function(path: str, found: griffe.Object, overloads: list[griffe.Function] | None) -> Iterator[str]:
    for one in overloads or [found]:
        kind = "async def" if "async" in one.labels else "def"
        yield f"{kind} {path}{_signature(one)}{_decorators(one)}"


def _decorators(found: griffe.Class | griffe.Function) -> str:
    return "".join(f" @{one.value}" for one in found.decorators if str(one.value) != "overload")


def _signature(function: griffe.Function) -> str:
    """The parameters and what is returned."""
    parts: list[str] = []
    kinds = griffe.ParameterKind
    before = None
    parameters = [parameter for parameter in function.parameters if parameter.name not in ("self", "cls")]
    for parameter in parameters:
        if before is kinds.positional_only and parameter.kind is not before:
            parts.append("/")
        if parameter.kind is kinds.keyword_only and before not in (kinds.keyword_only, kinds.var_positional):
            parts.append("*")
        stars = {kinds.var_positional: "*", kinds.var_keyword: "**"}.get(parameter.kind, "")
        annotation = f": {parameter.annotation}" if parameter.annotation is not None else ""
        default = f" = {parameter.default}" if parameter.default is not None and not stars else ""
        parts.append(f"{stars}{parameter.name}{annotation}{default}")
        before = parameter.kind
    if before is kinds.positional_only:
        parts.append("/")
    returns = f" -> {function.returns}" if function.returns is not None else ""
    return f"({', '.join(parts)}){returns}"


def _attribute(path: str, found: griffe.Attribute) -> str:
    kind = "property" if "property" in found.labels else "value"
    annotation = f": {found.annotation}" if found.annotation is not None else ""
    # What an instance is given stands in its __init__.
    value = f" = {found.value}" if found.value is not None and found.labels != {"instance-attribute"} else ""
    return f"{kind} {path}{annotation}{value}"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in lines())
