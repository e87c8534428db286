"""A password in a URL that cannot be read, or cannot be reached, is shown by no command and no option."""

from __future__ import annotations

import io
import os
import traceback
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import click
import pytest

from lockguard._cli import app, plugins
from lockguard.errors import ConfigurationError
from lockguard_lab.race import cli

CANARY = "hunter2"
"""Stands in the place of a password, whole and in pieces that a raw character cuts off."""
SCHEMES = ("redis", "postgresql", "mysql", "")
SHAPES = (
    "{s}://bot:hunter2@127.0.0.1:1/0",
    "{s}://bot:hunter2@127.0.0.1:port/0",
    "{s}://bot:1/hunter2@127.0.0.1:1/0",
    "{s}://bot:hunter2/x@127.0.0.1:1/0",
    "{s}://bot:1?hunter2@127.0.0.1:1/0",
    "{s}://bot:x#hunter2@127.0.0.1:1/0",
    "{s}://bot:x@hunter2@127.0.0.1:1/0",
    "{s}://bot:%zzhunter2@127.0.0.1:1/0",
    "{s}://bot:[hunter2@127.0.0.1:1/0",
    "{s}://bot:hunter2 @127.0.0.1:1/0",
    "{s}://bot:hunter2\n@127.0.0.1:1/0",
    "{s}:/bot:hunter2@127.0.0.1:1/0",
    "bot:hunter2@127.0.0.1:1",
    "{s}://127.0.0.1:1/0?password=hunter2&sslmode=hunter2",
    "{s}://127.0.0.1:1/0?hunter2=hunter2",
    "{s}://bot:hunter2@[::1/0",
)
VARIABLES = (
    "LOCKGUARD_REDIS_URL",
    "LOCKGUARD_DATABASE_URL",
    "LOCKGUARD_EXCHANGE_URL",
    "LOCKGUARD_STREAM_REDIS_URL",
    "LOCKGUARD_ALERT_URLS",
    "LOCKGUARD_RACE_REDIS_URL",
    "LOCKGUARD_RACE_DATABASE_URL",
    "LOCKGUARD_RACE_EXCHANGE_URL",
)
COMMANDS = (
    ("inspect", "x:y"),
    ("break", "x:y", "--reason", "r", "--yes"),
    ("fence", "status"),
    ("fence", "install"),
    ("fence", "upgrade"),
    ("fence", "uninstall"),
    ("fence", "protect", "t", "--resource", "{a}"),
    ("fence", "unprotect", "t"),
    ("fence", "bench"),
    ("fence", "race"),
    ("positions", "diagnose"),
    ("positions", "migrate"),
    ("positions", "recover"),
    ("positions", "cleanup"),
    ("race", "--opens", "1"),
    ("bot", "run"),
)


def url_options(command: click.Command) -> list[str]:
    """Those that take a URL."""
    found = []
    for parameter in command.params:
        names = [name for name in parameter.opts if name.startswith("--")]
        if isinstance(parameter, click.Option) and names and not parameter.is_flag:
            text = f"{names[0]} {parameter.metavar} {parameter.help} {parameter.envvar}".lower()
            if any(word in text for word in ("url", "redis", "database", "--alert", "--exchange")):
                found.append(names[0])
    return found


def resolved(words: tuple[str, ...]) -> click.Command:
    group: click.Command = app.lockguard
    for word in words:
        if not isinstance(group, click.Group):
            break
        command = group.get_command(click.Context(group), word)
        assert command is not None, words
        group = command
    return group


def said(arguments: list[str]) -> str:
    """All that a run says, its traceback as well if it is a bug."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            app.run(arguments)
        except SystemExit:
            pass
        except BaseException:
            traceback.print_exc(file=err)
            err.write("TRACEBACK")
    return out.getvalue() + err.getvalue()


def told_by(command: tuple[str, ...], option: str | None, url: str) -> str:
    options = [] if option is None else [option, url]
    if option is None and ("race" in command or "bench" in command):
        return ""  # no variable names where they run: they would start servers
    return said([*command, *options])


async def _never(*_: object, **__: object) -> None:
    raise ConfigurationError("stopped")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_shows_a_url_that_it_cannot_use(
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Each command reads the entry points of all that is installed, and the settings of the directory: for two
    # thousand commands that is nearly all of the time. Neither changes here.
    monkeypatch.setattr(plugins, "entry_points", cache(plugins.entry_points))
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("LOCKGUARD_", "PG"))]:
        monkeypatch.delenv(name)
    # A race that gets as far as its servers would try to reach them for half a minute.
    monkeypatch.setattr(cli, "_run", _never)
    options = url_options(resolved(command))
    assert options or command[0] == "bot"
    for shape in SHAPES:
        for scheme in SCHEMES:
            url = shape.format(s=scheme)
            for option in options:
                text = told_by(command, option, url)
                assert CANARY not in text, (option, url, text)
                assert "TRACEBACK" not in text, (option, url, text)
    for shape in SHAPES:
        url = shape.format(s="postgresql" if "fence" in command else "redis")
        for name in VARIABLES:
            monkeypatch.setenv(name, url)
        text = told_by(command, None, url)
        assert CANARY not in text, (url, text)
        assert "TRACEBACK" not in text, (url, text)
    assert CANARY not in caplog.text
