"""The house style, where a program can check it and ruff does not."""

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
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
SHIPPED = ("lockguard", "integrations")

MODULE_LINES_MAX = 600
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


def name_of(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


shipped = pytest.mark.parametrize("path", python_files(*SHIPPED), ids=name_of)
written = pytest.mark.parametrize("path", python_files("tests"), ids=name_of)
lua = pytest.mark.parametrize(
    "path", sorted((CHECKOUT / "lockguard/lua").glob("*.lua")), ids=lambda path: path.name
)


@shipped
def test_a_module_can_be_read_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MODULE_LINES_MAX, f"{lines} lines: split it"


@shipped
def test_a_function_fits_a_screen(path: Path) -> None:
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    }
    assert not long


@shipped
def test_a_module_tells_what_it_is_for_and_defers_its_annotations(path: Path) -> None:
    module = parsed(path)
    if not module.body:
        return
    assert ast.get_docstring(module), "the docstring is missing"
    deferred = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in module.body)
    only_docstring = len(module.body) == 1
    assert deferred or only_docstring, "from __future__ import annotations is missing"


@shipped
def test_a_module_has_a_telling_name_and_no_relative_imports(path: Path) -> None:
    assert path.name not in VAGUE_NAMES
    relative = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative


@pytest.mark.parametrize("path", python_files("lockguard"), ids=name_of)
def test_the_core_reads_time_through_its_clock(path: Path) -> None:
    if path == CHECKOUT / "lockguard/clock.py":
        return
    imported = {
        name
        for node in ast.walk(parsed(path))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert "time" not in imported


@written
def test_a_test_waits_for_conditions_and_does_not_sleep(path: Path) -> None:
    """A pause between two looks at a condition is allowed, and one whose line says what it is good for."""
    lines = path.read_text().splitlines()
    offending = [
        node.lineno
        for node in sleeps_outside_loops(parsed(path))
        if not re.search(r"\)\s+# \w", lines[node.lineno - 1])
    ]
    assert not offending, f"sleeps in lines {offending}"


def sleeps_outside_loops(module: ast.Module) -> Iterator[ast.Call]:
    polled = {
        id(inner) for loop in ast.walk(module) if isinstance(loop, ast.While) for inner in ast.walk(loop)
    }
    for node in ast.walk(module):
        if not isinstance(node, ast.Call) or id(node) in polled or not node.args:
            continue
        function = node.func
        called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        yields_only = isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
        if called == "sleep" and not yields_only:
            yield node


@lua
def test_a_script_opens_with_the_contract_that_it_keeps(path: Path) -> None:
    """Each key and argument that it uses is in the header, and the other way round."""
    lines = path.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    header, body = "\n".join(lines[:end]), "\n".join(lines[end:])
    for table in ("KEYS", "ARGV"):
        pattern = re.compile(rf"{table}\[(\d+)\]")
        assert set(pattern.findall(header)) == set(pattern.findall(body)), table
    assert "Returns" in header


@lua
def test_a_script_works_on_a_full_server_and_asks_no_client_for_the_time(path: Path) -> None:
    text = path.read_text()
    assert not text.startswith("#!"), "a script with a shebang is refused when the server is out of memory"
    assert not re.search(r"ARGV\[\d+\]\s+now", text), "the time is TIME, never an argument"


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


@pytest.mark.parametrize("kind", FOREIGN)
def test_no_file_names(kind: str) -> None:
    found = [
        f"{name_of(path)}: {word}"
        for path in tracked_text_files()
        for word in FOREIGN[kind]
        if word in path.read_text(errors="replace")
    ]
    assert not found
