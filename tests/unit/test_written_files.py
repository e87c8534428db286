"""A command that writes a file finds out whether it can before it does anything else."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from lockguard import _interrupt as interrupt
from lockguard._cli import app
from lockguard._private_files import require_writable
from lockguard.errors import ConfigurationError

WRITTEN = {
    "bench --json": ["bench"],
    "fence load --json": ["fence", "load"],
    "bench --plot": ["bench"],
    "chaos --json": ["chaos"],
    "race --json": ["race"],
    "race --logs": ["race"],
    "demo --json": ["demo"],
    "demo --picture": ["demo"],
    "logs analyze --export": ["logs", "analyze", "LOG"],
    "logs analyze --html": ["logs", "analyze", "LOG"],
    "scoreboard --json": ["scoreboard"],
    "servers --env-file": ["servers"],
    "sim --json": ["sim"],
}
OTHERS = {
    "chaos --history",  # is a directory, and must be empty or new
    "exchange serve --tls",  # is read
    "positions cleanup --backup",  # is made before a row is touched, and must be new
}


def options_for_files(command: click.Command, words: tuple[str, ...] = ()) -> set[str]:
    """All options that take a path of something that need not be there."""
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        found = [(name, command.get_command(ctx, name)) for name in command.list_commands(ctx)]
        return {o for name, sub in found if sub for o in options_for_files(sub, (*words, name))}
    return {
        f"{' '.join(words)} {parameter.opts[0]}"
        for parameter in command.params
        if isinstance(parameter.type, click.Path) and not parameter.type.exists
    }


def test_every_option_that_names_a_file_is_known_here():
    assert options_for_files(app.lockguard) == {*WRITTEN, *OTHERS}


@pytest.fixture
def nothing_starts(monkeypatch, tmp_path):
    def never(work, **_options):
        work.close()
        raise AssertionError("it started")

    monkeypatch.setattr(interrupt, "run", never)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LOG").touch()
    return tmp_path


@pytest.mark.parametrize("option", sorted(WRITTEN))
def test_what_cannot_be_written_is_refused_before_anything_starts(option, nothing_starts, capsys):
    (nothing_starts / "a-file").touch()
    place = "a-file/x"  # also root cannot write there
    assert app.run([*WRITTEN[option], option.split()[-1], place]) == 2
    out, err = capsys.readouterr()
    assert place in err
    assert err.startswith("lockguard: ")
    assert len(err.splitlines()) == 1
    assert out == ""
    assert sorted(path.name for path in nothing_starts.iterdir()) == ["LOG", "a-file"]


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("absent/x", "there is no directory .*absent; make it first"),
        (".", "it is a directory; name a file in it"),
        ("x" * 300, "file name too long; name another place"),
    ],
)
def test_the_remedy_is_told_along(place, remedy, nothing_starts):
    with pytest.raises(ConfigurationError, match=remedy):
        require_writable(None, Path(place))
    assert list(nothing_starts.iterdir()) == [nothing_starts / "LOG"]


def test_a_check_leaves_what_is_there(nothing_starts):
    there = nothing_starts / "there"
    there.write_text("before")
    require_writable(there, Path("/dev/stdout"), Path("/dev/null"))
    assert there.read_text() == "before"
    assert sorted(path.name for path in nothing_starts.iterdir()) == ["LOG", "there"]
