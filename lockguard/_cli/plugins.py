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
from typing import Any

import click

from lockguard import __version__
from lockguard._cli.mistake import Mistake

__all__ = ["COMMANDS", "OpenGroup", "contributed", "load", "summary"]

COMMANDS = "lockguard.commands"
"""The entry point group of ``lockguard`` itself."""

_BROUGHT_BY = {
    "bench": "bench",
    "chaos": "testing,postgres",
    "demo": "demo",
    "exchange": "testing,ccxt",
    "load": "testing",
    "race": "demo",
    "scoreboard": "bench",
    "servers": "testing",
    "sim": "testing",
}
"""The extras that bring a command which is not installed: the documentation names all commands."""


class OpenGroup(click.Group):
    """A group of commands that installed packages extend; what they add is loaded when it is used."""

    def __init__(self, *args: Any, contributed_by: str, **attrs: Any) -> None:
        """Make a group.

        Args:
            *args: as of ``click.Group``.
            contributed_by: the entry point group by which other packages name their commands.
            **attrs: as of ``click.Group``.
        """
        super().__init__(*args, **attrs)
        self._group = contributed_by

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, sorted."""
        return sorted({*super().list_commands(ctx), *contributed(self._group)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name; ``None`` if there is none.

        Raises:
            Mistake: it, or a package that it needs, is not installed, or it is not a click command.
        """
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        point = contributed(self._group).get(cmd_name)
        if point is None and cmd_name in _BROUGHT_BY:
            raise Mistake(f"{cmd_name!r} is not installed; pip install 'lockguard[{_BROUGHT_BY[cmd_name]}]'")
        return None if point is None else load(point)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """List each command with one line about it, without loading those of other packages."""
        own = {name: command.get_short_help_str(200).rstrip(".") for name, command in self.commands.items()}
        others = {name: summary(point) for name, point in contributed(self._group).items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted({**others, **own}.items()))


def contributed(group: str) -> dict[str, EntryPoint]:
    """The commands that installed packages add to a group, by name."""
    return {point.name: point for point in entry_points(group=group)}


def load(point: EntryPoint) -> click.Command:
    """Import a command.

    Raises:
        Mistake: a package that it needs is missing, or it is not a click command.
    """
    try:
        command = point.load()
    except (ImportError, AttributeError) as exc:
        raise Mistake(_why(point, exc)) from exc
    if not isinstance(command, click.Command):
        raise Mistake(f"'lockguard {point.name}' is {point.value}, which is no click command")
    return command


def summary(point: EntryPoint) -> str:
    """The first line of a command's docstring; empty if its source cannot be found or read."""
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
    """The source file of a module, looked up by path: finding a submodule by spec imports its parents."""
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
    text = _of_another_version(point)
    if text:
        return f"{name}: {text}"
    text = str(exc)
    if point.extras:
        missing = getattr(exc, "name", None) or text.partition(";")[0]
        brought_by = _BROUGHT_BY.get(
            point.name, point.extras[0]
        )  # an extra of lockguard, whosever its own is
        remedy = f"pip install 'lockguard[{brought_by}]'"
        return f"{name} needs packages that are not installed ({missing}); {remedy}"
    return f"{name}: {text}" if "pip install" in text else f"{name} cannot be loaded: {text}"


def _of_another_version(point: EntryPoint) -> str:
    """How a command's distribution and this lockguard fail to fit, with the remedy; empty if they may fit."""
    dist = point.dist
    if dist is None:
        return ""
    for line in dist.requires or ():
        requirement = line.partition(";")[0].replace(" ", "")
        package, pinned, version = requirement.partition("==")
        if pinned and package == "lockguard" and version != __version__:
            found = f"{dist.name} {dist.version} needs {requirement}, and {__version__} is installed"
            return f"{found}; pip install --upgrade lockguard {dist.name}"
    return ""
