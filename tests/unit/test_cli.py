"""The command itself: listing, loading, and how failures are told. No server is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint, PathDistribution

import click
import pytest

import lockguard
from lockguard._cli import app, plugins
from lockguard._lease import parse_resource
from lockguard.errors import ConfigurationError, LockguardError

BLOCKED = """
import sys
for name in {names!r}:
    sys.modules[name] = None
from lockguard._cli import main
sys.argv = {argv!r}
main()
"""


def without(packages: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command on a machine that lacks these packages."""
    program = BLOCKED.format(names=packages, argv=["lockguard", *arguments])
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    return text


@pytest.fixture
def points(monkeypatch):
    """Contribute commands: points(name=value, ...)."""

    def contribute(**values: str) -> None:
        found = {n: EntryPoint(n, v, plugins.COMMANDS) for n, v in values.items()}
        monkeypatch.setattr(plugins, "contributed", lambda _group: found)

    return contribute


def test_the_version_is_the_package_s(capsys):
    assert app.run(["--version"]) == 0
    assert capsys.readouterr().out == f"lockguard {lockguard.__version__}\n"


def test_without_arguments_it_helps(capsys):
    assert app.run([]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_help_lists_every_command_with_its_line_and_imports_none_of_them():
    program = (
        "import sys; from lockguard._cli.app import run; code = run(['--help']);"
        "sys.exit(code or [m for m in sys.modules if m.startswith(('lockguard_', 'ccxt', 'asyncpg'))] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = {
        line.split()[0]: line.split()[1:] for line in done.stdout.partition("Commands:")[2].splitlines()[1:]
    }
    for name in ("break", "demo", "exchange", "fence", "inspect"):
        assert listed[name], f"{name} has no line"


def test_a_command_that_cannot_be_loaded_is_listed_all_the_same(points, capsys):
    points(ghost="no_such_package.cli:ghost")
    assert app.run(["--help"]) == 0
    assert "ghost" in capsys.readouterr().out
    assert app.run(["ghost"]) == 2
    assert "no_such_package" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("extras", ["", " [demo]"])
def test_a_command_of_another_version_than_ours_is_told_as_that(
    points, capsys, monkeypatch, tmp_path, extras
):
    old = tmp_path / "lab_of_old-0.0.9.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Name: lab-of-old\nVersion: 0.0.9\nRequires-Dist: lockguard==0.0.9\n")
    (old / "entry_points.txt").write_text(f"[lockguard.commands]\nold = lockguard._cli.gone:old{extras}\n")
    (point,) = PathDistribution(old).entry_points
    monkeypatch.setattr(plugins, "contributed", lambda _group: {"old": point})
    assert app.run(["old"]) == 2
    told = one_line(capsys.readouterr().err)
    assert f"lab-of-old 0.0.9 needs lockguard==0.0.9, and {lockguard.__version__} is installed" in told
    assert "pip install --upgrade lockguard lab-of-old" in told


def test_what_is_no_command_is_refused(points, capsys):
    points(odd="json:dumps", none="json:absent")
    assert app.run(["odd"]) == 2
    assert "no click command" in one_line(capsys.readouterr().err)
    assert app.run(["none"]) == 2
    assert "absent" in one_line(capsys.readouterr().err)


def test_a_plugin_cannot_take_a_core_command_s_place(points, capsys):
    points(inspect="json:dumps")
    assert app.run(["inspect", "--help"]) == 0
    assert "who waits" in capsys.readouterr().out


@pytest.mark.parametrize("package", ["click", "rich"])
def test_a_missing_cli_extra_is_one_line(package):
    done = without([package], "--help")
    assert done.returncode == 2
    assert "pip install 'lockguard[cli]'" in one_line(done.stderr)


@pytest.mark.parametrize("package", ["ccxt", "aiohttp", "psutil", "asyncpg"])
def test_a_missing_demo_extra_is_one_line(package):
    done = without([package], "demo", "--opens", "1")
    assert done.returncode == 2
    assert "pip install 'lockguard[demo]'" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["fence", "sql"], 0, ""),
        (["fence", "status", "--url", "postgresql://127.0.0.1:1/x"], 1, "cannot connect to 127.0.0.1:1/x"),
        (["fence", "race"], 2, "pip install 'lockguard[testing]'"),
        (["chaos"], 2, "pip install 'lockguard[testing]'"),
        (["fence", "bench"], 2, "pip install 'lockguard[testing]'"),
        (["bot", "run", "--help"], 0, ""),
        (["positions", "diagnose", "--help"], 0, ""),
        (["logs", "analyze", "--help"], 0, ""),
    ],
)
def test_what_starts_no_servers_needs_no_package_for_tests(arguments, code, told):
    """A bot's machine has ``lockguard[positions,cli]``; ``break`` loads the fence's part too."""
    done = without(["psutil", "fakeredis"], *arguments)
    assert told in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (code, 1 if told else 0)


def test_the_remedy_for_the_absent_exchange_brings_all_that_it_needs(points, capsys):
    points()
    assert app.run(["exchange", "serve"]) == 2
    assert "pip install 'lockguard[testing,ccxt]'" in one_line(capsys.readouterr().err)


def test_a_missing_extra_does_not_hide_the_other_commands():
    done = without(["ccxt", "asyncpg", "aiohttp"], "--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("break", "demo", "exchange", "fence", "inspect"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nonsense"], "No such command 'nonsense'; see 'lockguard --help'"),
        (["--nonsense"], "--nonsense"),
        (["inspect"], "Missing argument 'RESOURCE'; see 'lockguard inspect --help'"),
        (["break", "a:b"], "Missing option '--reason'; see 'lockguard break --help'"),
        (["inspect", "a{b}"], "brace"),
        (["show", "a{b}"], "brace"),
        (["show", "a", "--lines", "-1"], "'--lines': -1 is not in the range"),
        (["ls", ""], "the pattern is empty"),
        (["ls", "--older-than", "soon"], "'soon' is no age; write a whole number and a unit"),
        (["ls", "--watch", "--every", "0s"], "'0s' is no pause"),
        (["ls", "a", "b"], "unexpected extra argument (b)"),
        (["inspect", "x" * 300], "300 bytes long; the limit is 200"),
        (["inspect", "a", "--redis", "http://h"], "begins with http://, which is none of a Redis"),
        (["break", "a:b", "--reason", " "], "--reason is empty"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, told, capsys):
    assert app.run(arguments) == 2
    assert told in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ConfigurationError("two\nlines"), 2, "lockguard: two lines\n"),
        (LockguardError("no"), 1, "lockguard: no\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ImportError("needs x; pip install 'lockguard[x]'"), 2, "pip install"),
        (click.ClickException("bad"), 1, "lockguard: bad\n"),
    ],
)
def test_each_way_to_fail_has_its_exit_code(error, code, told, monkeypatch, capfd):
    def fail() -> None:
        raise error

    monkeypatch.setitem(app.lockguard.commands, "fail", click.Command("fail", callback=fail))
    assert app.run(["fail"]) == code
    assert told in capfd.readouterr().err


def test_a_bug_is_not_dressed_up(monkeypatch):
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(app.lockguard.commands, "fail", click.Command("fail", callback=fail))
    with pytest.raises(ZeroDivisionError):
        app.run(["fail"])


def test_a_password_in_a_url_is_not_shown(capsys):
    assert app.run(["inspect", "a", "--redis", "http://:hunter2@127.0.0.1:1/x"]) == 2
    assert app.run(["inspect", "a", "--redis", "redis://:hunter2@127.0.0.1:1/0"]) == 1
    assert "hunter2" not in capsys.readouterr().err


def test_json_of_an_inspection_is_plain(monkeypatch, capsys):
    from lockguard._cli import show
    from lockguard._cli.seen import Seen
    from lockguard.ports import Inspection, Waiter

    async def read(resource: str, *_: object) -> show._Story:
        waiters = (Waiter("ab", "inbox", 7, 10),)
        found = Inspection(parse_resource(resource), True, "ab", 5, "me", "open", 61_000, 20, 30, 1, waiters)
        return show._Story(Seen(found), (), ())

    monkeypatch.setattr(show, "_read", read)
    assert app.run(["inspect", "a:b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["token"] == 5
    assert found["waiters"][0]["ticket"] == 7
    assert app.run(["show", "a:b"]) == 0
    assert "0:01:01" in capsys.readouterr().out


NOBODY = "127.0.0.1:1"
OUT_OF_REACH = [
    ["inspect", "x:y", "--redis", f"redis://:hunter2@{NOBODY}"],
    ["show", "x:y", "--redis", f"redis://:hunter2@{NOBODY}"],
    ["ls", "--redis", f"redis://:hunter2@{NOBODY}"],
    ["ls", "--watch", "--redis", f"redis://:hunter2@{NOBODY}"],
    ["break", "x:y", "--reason", "r", "--yes", "--no-fence", "--redis", f"redis://:hunter2@{NOBODY}"],
    *(
        ["fence", *words, "--url", f"postgresql://bot:hunter2@{NOBODY}/x"]
        for words in (["status"], ["install"], ["upgrade"], ["protect", "t", "--resource", "{a}"], ["bench"])
    ),
    *(
        ["positions", *words, "--database", f"postgresql://bot:hunter2@{NOBODY}/x"]
        for words in (["diagnose", "--no-exchange"], ["migrate"])
    ),
    *(
        ["positions", *words, "--redis", "redis://x", "--database", f"postgresql://bot:hunter2@{NOBODY}/x"]
        for words in (["cleanup"], ["recover"], ["close", "APTUSDT"])
    ),
]


@pytest.mark.parametrize("arguments", OUT_OF_REACH, ids=lambda arguments: " ".join(arguments[:2]))
def test_a_server_that_does_not_answer_is_no_mistake_of_the_callers(arguments, capsys, monkeypatch):
    """The page on commands tells the two apart: who asks again in a minute needs the code for it."""
    monkeypatch.setenv("LOCKGUARD_EXCHANGE_URL", f"http://{NOBODY}")
    assert app.run(arguments) == 1
    told = capsys.readouterr().err
    assert NOBODY in one_line(told.removeprefix(f"measuring on {NOBODY}/x\n"))
    assert "hunter2" not in told
