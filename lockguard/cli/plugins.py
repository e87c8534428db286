"""The commands that installed packages contribute, without importing them before they are used.

``lockguard --help`` lists every command with one line about it. Importing each for that would take seconds
(ccxt alone takes three), and one whose extra is missing could not be listed at all. So the line is the first
one of the command's docstring, read from its source.
"""

from __future__ import annotations

import ast
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

import click

__all__ = ["Unavailable", "contributed", "load", "summary"]

GROUP = "lockguard.commands"


class Unavailable(click.ClickException):
    """A command that is listed and cannot be loaded."""

    exit_code = 2


def contributed() -> dict[str, EntryPoint]:
    """The commands of all installed packages, by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load(point: EntryPoint) -> click.Command:
    """Import a command.

    Raises:
        Unavailable: a package that it needs is missing, or it is no command.
    """
    try:
        command = point.load()
    except (ImportError, AttributeError) as exc:
        raise Unavailable(_why(point, exc)) from exc
    if not isinstance(command, click.Command):
        raise Unavailable(f"'lockguard {point.name}' is {point.value}, which is no click command")
    return command


def summary(point: EntryPoint) -> str:
    """The first line of a command's docstring; empty if its source is not to be found."""
    try:
        function = next(
            node
            for node in ast.parse(_source(point.module).read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef) and node.name == point.attr
        )
    except (OSError, SyntaxError, ValueError, ImportError, StopIteration):
        return ""
    return (ast.get_docstring(function) or "").partition("\n")[0].rstrip(".")


def _source(module: str) -> Path:
    """The file of a module; only looked for, since finding a sub-module by spec imports its parents."""
    package, *rest = module.split(".")
    spec = find_spec(package)
    for location in (spec.submodule_search_locations if spec is not None else None) or ():
        path = Path(location, *rest)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    raise FileNotFoundError(module)


def _why(point: EntryPoint, exc: Exception) -> str:
    name = f"'lockguard {point.name}'"
    text = str(exc)
    if point.extras:
        missing = getattr(exc, "name", None) or text.partition(";")[0]
        remedy = f"pip install 'lockguard[{point.extras[0]}]'"
        return f"{name} needs packages that are not installed ({missing}); {remedy}"
    return f"{name}: {text}" if "pip install" in text else f"{name} cannot be loaded: {text}"
