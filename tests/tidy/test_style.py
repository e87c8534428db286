"""The house style, where a program can check it and neither ruff nor import-linter does."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
SHIPPED = ("lockguard", "integrations", "lab")

MODULE_LINES_WISHED = 300
MODULE_LINES_MAX = 600
"""The wish is for the reader; the limit allows for what a split would cut in two."""

FUNCTION_LINES_MAX = 60
VAGUE_NAMES = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}

# In pieces, since this file is searched as well.
FOREIGN = {
    "a path of somebody's machine": [
        "/" + "work/",
        "/tmp/" + "dev",
        "/opt/" + "pypi",
        "/" + "root/",
        "/" + "Users/",
    ],
    "a package registry's host": ["pypi" + ".org", "python" + "hosted", "registry." + "npmjs"],
    "an absolute home": ["/home" + "/"],
}


def python_files(*places: str) -> list[Path]:
    return sorted(path for place in places for path in (CHECKOUT / place).rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All of a module's syntax."""
    return tuple(ast.walk(parsed(path)))


def name_of(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def modules_that(finding: Callable[[Path], str], *places: str) -> list[str]:
    """The Python files in which something is found, each with what it is.

    One test looks at all files: a case for each file and law would be a fifth of the whole suite's cases.
    """
    files = python_files(*places)
    assert files
    return [f"{name_of(path)}: {found}" for path in files if (found := finding(path))]


def scripts_that(finding: Callable[[Path], str]) -> list[str]:
    """The same for the Lua scripts."""
    files = sorted((CHECKOUT / "lockguard/lua").glob("*.lua"))
    assert files
    return [f"{path.name}: {found}" for path in files if (found := finding(path))]


def test_a_module_can_be_read_in_one_sitting() -> None:
    remedy = f"move one of its concerns to a module of its own, so that each has about {MODULE_LINES_WISHED}"

    def too_long(path: Path) -> str:
        lines = len(path.read_text().splitlines())
        return f"{lines} lines: {remedy}" if lines > MODULE_LINES_MAX else ""

    assert modules_that(too_long, *SHIPPED) == []


def test_a_function_fits_a_screen() -> None:
    def too_long(path: Path) -> str:
        return ", ".join(
            f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
            for node in nodes(path)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.end_lineno is not None
            and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
        )

    assert modules_that(too_long, *SHIPPED) == []


def test_a_module_tells_what_it_is_for() -> None:
    """Of modules whose names begin with an underscore, ruff asks no docstring."""

    def untold(path: Path) -> str:
        module = parsed(path)
        return "" if not module.body or ast.get_docstring(module) else "the docstring is missing"

    assert modules_that(untold, *SHIPPED) == []


def test_a_module_has_a_telling_name() -> None:
    vague = [name_of(path) for path in python_files(*SHIPPED) if path.name in VAGUE_NAMES]
    assert vague == []


def test_a_test_waits_for_conditions_and_does_not_sleep() -> None:
    """A pause between two looks at a condition is allowed, and one whose line says what it is good for."""

    def sleeps(path: Path) -> str:
        lines = path.read_text().splitlines()
        offending = [
            node.lineno
            for node in sleeps_outside_loops(nodes(path))
            if not re.search(r"\)\s+# \w", lines[node.lineno - 1])
        ]
        return f"sleeps in lines {offending}" if offending else ""

    assert modules_that(sleeps, "tests") == []


def sleeps_outside_loops(module: tuple[ast.AST, ...]) -> Iterator[ast.Call]:
    polled = {id(inner) for loop in module if isinstance(loop, ast.While) for inner in ast.walk(loop)}
    for node in module:
        if not isinstance(node, ast.Call) or id(node) in polled or not node.args:
            continue
        function = node.func
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        yields_only = isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
        if called == "sleep" and not yields_only:
            yield node


def test_a_script_opens_with_the_contract_that_it_keeps() -> None:
    """Each key and argument that it uses is in the header, and the other way round."""

    def broken(path: Path) -> str:
        lines = path.read_text().splitlines()
        end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
        header, body = "\n".join(lines[:end]), "\n".join(lines[end:])
        for table in ("KEYS", "ARGV"):
            pattern = re.compile(rf"{table}\[(\d+)\]")
            if set(pattern.findall(header)) != set(pattern.findall(body)):
                return f"{table} of the header are not those of the body"
        return "" if "Returns" in header else "the header does not tell what it returns"

    assert scripts_that(broken) == []


def test_a_script_works_on_a_full_server_and_asks_no_client_for_the_time() -> None:
    def unfit(path: Path) -> str:
        text = path.read_text()
        if text.startswith("#!"):
            return "a script with a shebang is refused when the server is out of memory"
        return "the time is TIME, never an argument" if re.search(r"ARGV\[\d+\]\s+now", text) else ""

    assert scripts_that(unfit) == []


def tracked_text_files() -> list[Path]:
    if not (CHECKOUT / ".git").exists() or shutil.which("git") is None:
        return python_files(*SHIPPED, "tests", "scripts")
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = [CHECKOUT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:1024]]


def test_decisions_are_numbered_one_by_one() -> None:
    records = sorted((CHECKOUT / "docs/adr").glob("*.md"))
    numbers = [int(record.name[:4]) for record in records]
    assert numbers == list(range(1, len(records) + 1))
    for number, record in zip(numbers, records, strict=True):
        assert record.read_text(encoding="utf-8").startswith(f"# {number}. ")


@pytest.mark.parametrize("kind", FOREIGN)
def test_no_file_names(kind: str) -> None:
    found = [
        f"{name_of(path)}: {word}"
        for path in tracked_text_files()
        for word in FOREIGN[kind]
        if word in path.read_text(errors="replace")
    ]
    assert not found


def test_the_page_of_keys_gives_the_times_that_the_scripts_set() -> None:
    page = (CHECKOUT / "docs/reference/redis-keys.md").read_text(encoding="utf-8")
    told = dict(
        re.findall(
            r"^\| `lockguard:\{binance:APTUSDT\}:(\w+)` .* \| ([\d.]+ \w+)[^|]*\|$", page, re.MULTILINE
        )
    )
    scripts = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((CHECKOUT / "lockguard/lua").glob("*.lua"))
    )
    for name, keys, unit_ms, unit in (
        ("FLOOR_TTL_MS", ("token", "history"), 86_400_000, "days"),
        ("SEAL_TTL_MS", ("seal",), 86_400_000, "days"),
        ("QUEUE_TTL_MS", ("queue", "inboxes"), 1000, "s"),
        ("RESERVED_MS", ("next",), 1000, "s"),
    ):
        set_ms = {int(ms) for ms in re.findall(rf"^local {name} = (\d+)", scripts, re.MULTILINE)}
        assert {f"{ms / unit_ms:g} {unit}" for ms in set_ms} == {told[key] for key in keys}, name
