"""What ``scripts/first-hour`` walks is on the pages, and what it does in a box is shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def first_hour(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(CHECKOUT / "scripts")
    import first_hour

    return first_hour


def test_each_walk_is_what_a_page_shows(first_hour: ModuleType, tmp_path: Path) -> None:
    steps = first_hour.steps(tmp_path)
    for name in ("first-steps", "tutorial"):
        program = (tmp_path / f"{name}.py").read_text()
        compile(program, name, "exec")
        assert "LockGuard" in program
    for step in steps.values():
        subprocess.run(["sh", "-n", "-c", step.command], check=True)
    shown = "".join(path.read_text() for path in [CHECKOUT / "README.md", *(CHECKOUT / "docs").rglob("*.md")])
    for words in (
        "scripts/demo",
        "scripts/test",
        "lockguard servers --exchange --fence -- python docs/examples/first_bot.py",
        "python -m lockguard_lab.own_bot",
    ):
        assert f"$ {words}" in shown
        assert any(words in step.command for step in steps.values())


def test_what_is_done_in_a_box_is_shell_that_mounts_nothing_before_it_has_its_own_mounts(
    first_hour: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount of this machine that was left behind in the box's folder would be emptied with it."""
    started = []
    monkeypatch.setattr(
        first_hour.subprocess,
        "run",
        lambda words, **_: (
            started.append((list(map(str, words)), Path(words[-1]).read_text()))
            or subprocess.CompletedProcess(words, 0)
        ),
    )
    assert first_hour.in_debootstrap("bookworm", ["python3"], [tmp_path], ["demo"]) == 0
    ((words, script),) = started
    assert words[:2] == ["unshare", "--mount"]
    assert script.index("debootstrap ") < script.index("mount --bind")
    monkeypatch.undo()
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_an_unknown_walk_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/first_hour.py", "dmeo"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("scripts/first-hour: 'dmeo' is no walk: name one of install, demo, ")
