"""The site of the documentation: what must fail its build, and what must be in it."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.async_api import expect
from sphinx.util.inventory import InventoryFile

from lockguard import LockGuard
from tests.integration.web_pages import chromium

ROOT = Path(__file__).parents[2]

SOUND = {
    "README.md": "# Readme\n\n[a page](docs/page.md#a-heading) and [a module](planted.py)\n",
    "planted.py": '"""A module."""\n__all__ = ["told"]\n\n\ndef told() -> None:\n    """Tell."""\n',
    "script.lua": "return 1\n",
    "integrations/lockguard_postgres/sql/rights.sql": "",
    "docs/index.md": "# Index\n\n<!-- contents page * -->\n",
    "docs/page.md": "# Page\n\n## A heading\n\n[readme](../README.md#readme), [module](../planted.py)\n\n"
    "<!-- source script.lua -->\n\n<!-- names planted -->\n",
    "docs/project/readme.md": "---\norphan: true\n---\n```{include} ../../README.md\n```\n",
    "docs/reference/api.txt": "module planted\ndef planted.told() -> None\n",
}
MISTAKES = {
    "a link to a page": ("docs/page.md", "[x](nowhere.md)", "cross-reference target not found: 'nowhere.md'"),
    "a link to a page outside": ("docs/page.md", "[x](../LICENSES.md)", "target not found: '../LICENSES.md'"),
    "a link to a file": ("docs/page.md", "[x](../nowhere.py)", "target not found: '../nowhere.py'"),
    "a link to an anchor of the page": ("docs/page.md", "[x](#nowhere)", "target not found: 'nowhere'"),
    "a link to an anchor of another page": (
        "docs/index.md",
        "[x](page.md#nowhere)",
        "local id not found in doc 'page': 'nowhere'",
    ),
    "a link of an included page": ("README.md", "[x](docs/nowhere.md)", "not found: 'docs/nowhere.md'"),
    "a link to an anchor of a page outside": (
        "docs/page.md",
        "[x](../README.md#nowhere)",
        "local id not found in doc 'project/readme': 'nowhere'",
    ),
    "an included file": ("docs/page.md", "<!-- source nowhere.lua -->", "nowhere.lua' not found"),
    "a function of the fence": (
        "docs/page.md",
        "<!-- function lockguard.nowhere -->",
        "no step of the fence's schema defines lockguard.nowhere",
    ),
    "a public name without a docstring": ("planted.py", "def bare(): ...", "planted.bare has no docstring"),
    "a public value without a docstring": ("planted.py", "VALUE = 1", "planted.VALUE is not described"),
    "a public name that a docstring makes up": (
        "planted.py",
        'def refers(): """See :func:`nowhere`."""',
        "py:func reference target not found: nowhere",
    ),
    "a module that is on no page": (None, "", "planted.unseen is on no page"),
    "a name that is not public": (
        "docs/page.md",
        "<!-- names planted: private -->",
        "what api.txt does not have",
    ),
    "a page in no list": (None, "", "document isn't included in any toctree"),
    "code that is none": ("docs/page.md", "```python\nx = $\n```", "Lexing literal_block"),
}


def checkout(place: Path) -> Path:
    """A small one whose site is made as ours is."""
    files = {**SOUND, "pyproject.toml": (ROOT / "pyproject.toml").read_text("utf-8")}
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, "utf-8")
    shutil.copy(ROOT / "docs/conf.py", place / "docs")
    shutil.copytree(ROOT / "docs/_site", place / "docs/_site", ignore=shutil.ignore_patterns("__pycache__"))
    return place


def build(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Make the site with what scripts/docs gives Sphinx."""
    script = (ROOT / "scripts/docs").read_text("utf-8")
    given = re.search(r"-m sphinx (.*) --jobs auto", script)
    assert given is not None
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            *given[1].split(),
            "-d",
            place / "trees",
            *options,
            place / "docs",
            place / "site",
        ],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def test_a_sound_site_is_built(tmp_path):
    done = build(checkout(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    page = (tmp_path / "site/page.html").read_text("utf-8")
    assert 'href="project/readme.html#readme"' in page
    assert 'href="https://github.com/lockguard/lockguard/blob/main/planted.py"' in page
    assert "Tell." in page
    readme = (tmp_path / "site/project/readme.html").read_text("utf-8")
    assert 'href="../page.html#a-heading"' in readme


async def test_the_search_puts_the_name_that_was_asked_for_above_modules_that_begin_with_it(tmp_path):
    place = checkout(tmp_path)
    (place / "planted.py").write_text(
        '"""A module."""\n__all__ = ["Planted"]\n\n\nclass Planted:\n    """It."""\n'
    )
    others = [f"planted_{number}" for number in range(3)]
    named = ["module planted", "class planted.Planted"]
    for other in others:
        (place / f"{other}.py").write_text(
            '"""Another module."""\n__all__ = ["told"]\ntold = 1\n"""A value."""\n'
        )
        (place / f"docs/{other}.md").write_text(f"# {other}\n\n<!-- names {other} -->\n", "utf-8")
        named += [f"module {other}", f"value {other}.told = 1"]
    (place / "docs/reference/api.txt").write_text("\n".join(named) + "\n", "utf-8")
    index = place / "docs/index.md"
    index.write_text(f"# Index\n\n<!-- contents page {' '.join(others)} * -->\n", "utf-8")
    done = build(place)
    assert (done.returncode, done.stderr) == (0, "")
    async with chromium() as browser:
        page = await browser.new_page()
        await page.goto(f"file://{place}/site/search.html?q=Planted")
        results = page.locator("#search-results ul.search li > a")
        await expect(results.nth(4)).to_be_visible()
        shown = await results.all_inner_texts()
    assert "planted.Planted" in shown[:2], shown


def test_each_mistake_fails_the_build(tmp_path):
    place = checkout(tmp_path)
    for path, text, _ in MISTAKES.values():
        if path is not None:
            file = place / path
            file.write_text(f"{file.read_text('utf-8')}\n{text}\n", "utf-8")
    recorded = place / "docs/reference/api.txt"
    more = ["def planted.bare()", "value planted.VALUE = 1", "def planted.refers()", "module planted.unseen"]
    recorded.write_text(recorded.read_text("utf-8") + "\n".join(more) + "\n", "utf-8")
    (place / "docs/lonely.md").write_text("# Lonely\n", "utf-8")
    index = place / "docs/index.md"
    index.write_text(index.read_text("utf-8").replace(" *", ""), "utf-8")
    done = build(place)
    assert done.returncode == 1, done.stderr
    assert [name for name, (_, _, warning) in MISTAKES.items() if warning not in done.stderr] == [], (
        done.stderr
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_has_each_public_name_and_no_other(tmp_path):
    # CI has made the site just before, and names it: a second one would cost a minute.
    made = os.environ.get("LOCKGUARD_TESTING_SITE")
    with (Path(made or made_here(tmp_path)) / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", os.path.join)
    found = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    recorded = (ROOT / "docs/reference/api.txt").read_text("utf-8")
    named = re.findall(
        r"^(?:module|class|alias|value|property|(?:async )?def) ([\w.]+)", recorded, re.MULTILINE
    )
    public = {name for name in named if not name.rpartition(".")[2].startswith("__")}
    assert len(public) > 1000
    assert sorted(found ^ public) == []


def made_here(tmp_path: Path) -> Path:
    """The part of the site that describes the code."""
    others = "_site,examples,adr,howto,tutorial,explanation,project,index.md"
    options = [
        "-Q",
        "-d",
        tmp_path / "trees",
        "-D",
        f"exclude_patterns={others}",
        "-D",
        "root_doc=reference/index",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ROOT / "docs", tmp_path / "site"],
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    return tmp_path / "site"


def test_the_page_of_the_guard_has_its_options_with_their_defaults():
    page = (ROOT / "docs/reference/guard.md").read_text("utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.MULTILINE))
    options = {
        name: option.default
        for made in (LockGuard.__init__, LockGuard.from_url)
        for name, option in inspect.signature(made).parameters.items()
        if option.kind is option.KEYWORD_ONLY
    }
    more = {"namespace", "credentials", "address_map", "store"}  # of what is made with URLs, and in memory
    assert set(told) == set(options) | more
    for name, default in options.items():
        if isinstance(default, timedelta):
            assert told[name] == f"{default.total_seconds():g} s"
        elif isinstance(default, int):
            assert told[name] == str(default)
        elif default is None and name != "observers":
            assert told[name] == "none"


@pytest.mark.parametrize(
    ("folder", "files", "mark"),
    [
        ("lockguard/lua", "**/*.lua", r"<!-- source (\S+) -->"),
        ("integrations/lockguard_postgres/sql", "*.sql", r"<!-- function lockguard\.(\w+) -->"),
    ],
)
def test_each_script_and_function_is_shown(folder, files, mark):
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    shown = set(re.findall(mark, pages))
    found = sorted((ROOT / folder).glob(files))
    if folder.endswith("sql"):
        made = r"^create (?:or replace )?function lockguard\.(\w+)"
        assert {
            name for file in found for name in re.findall(made, file.read_text("utf-8"), re.MULTILINE)
        } == shown
    else:
        assert {file.relative_to(ROOT).as_posix() for file in found} == shown
