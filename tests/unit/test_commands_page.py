"""The page of commands and ``--help`` say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lockguard._cli import app
from lockguard._interrupt import INTERRUPTED

PAGE = (Path(__file__).parents[2] / "docs/reference/commands.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (`--.*?`) \| (.*?) ?\|$", re.MULTILINE)


def every_command(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield " ".join(words), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from every_command(found, (*words, name))


COMMANDS = dict(every_command(app.lockguard, ("lockguard",)))


def test_the_page_has_every_command_and_no_other() -> None:
    headings = re.findall(r"^### `(lockguard[a-z -]*[a-z])", PAGE, re.MULTILINE)
    assert sorted(headings) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_has_each_option_and_its_variable(name: str) -> None:
    command = COMMANDS[name]
    (section,) = re.findall(rf"^### `{name}[` ].*?(?=^### |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert command.get_short_help_str(300).rstrip(".") in section
    told = dict(ROW.findall(section))
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert told == {
        ", ".join(f"`{text}`" for text in (*each.opts, *each.secondary_opts)): (
            f"`{each.envvar}`" if each.envvar else ""
        )
        for each in options
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_names_servers_names_their_namespace_too(name: str) -> None:
    options = {option for each in COMMANDS[name].params for option in each.opts}
    ours = name.split()[1] not in ("bench", "demo", "race", "exchange")  # which start servers of their own
    assert not ours or ("--redis" in options) == ("--namespace" in options)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_each_option_and_names_its_variable(name: str) -> None:
    options = [each for each in COMMANDS[name].params if isinstance(each, click.Option)]
    assert [each.name for each in options if not each.help] == []
    assert [
        each.envvar for each in options if each.envvar and str(each.envvar) not in (each.help or "")
    ] == []


def test_the_page_has_every_exit_code_that_a_command_ends_with() -> None:
    codes = {int(found) for found in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    root, ends = Path(__file__).parents[2], {INTERRUPTED}
    for path in [*root.glob("lockguard/_cli/*.py"), *root.glob("integrations/**/*.py")]:
        source = path.read_text(encoding="utf-8")
        named = set(re.findall(r"(?:SystemExit|_complain)\(.*?\b(_[A-Z_]+)\b", source))
        ends |= {
            int(code)
            for name, code in re.findall(r"^(_[A-Z_]+) = (\d+)", source, re.MULTILINE)
            if name in named
        }
        ends |= {int(code) for code in re.findall(r"^    exit_code = (\d+)", source, re.MULTILINE)}
    assert ends >= {1, 2, 3, 130}
    assert codes == ends | {0}
