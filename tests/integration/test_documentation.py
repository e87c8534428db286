"""The tutorial's code is run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_tutorial_runs_as_printed(tmp_path, redis_server, postgres_server):
    page = (ROOT / "docs/tutorial/first-guard.md").read_text(encoding="utf-8")
    program = tmp_path / "tutorial.py"
    program.write_text("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), encoding="utf-8")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "without the guard: 2 positions" in done.stdout
    assert "with the guard: 1 position" in done.stdout
    assert re.search(r"LG001: stale token for APTUSDT: presented \d+, current \d+", done.stdout)


@pytest.mark.parametrize(
    "page", sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.md") if ".venv" not in p.parts)
)
def test_links_between_pages_lead_somewhere(page):
    here = ROOT / page
    for target, heading in re.findall(
        r"\]\(((?!https?:)[^)#]*)(?:#([^)]*))?\)", here.read_text(encoding="utf-8")
    ):
        there = here.parent / target if target else here
        assert there.exists(), target
        assert not heading or heading in headings(there), f"{target}#{heading}"


def headings(page):
    """The names by which a link leads to a heading, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
