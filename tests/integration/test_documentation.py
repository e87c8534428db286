"""The pages lead to each other, and show their examples as they are."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from installs import NOTE, as_published, texts, untrue  # noqa: E402
from page_blocks import every_page  # noqa: E402


def test_the_front_page_leads_to_every_page():
    """By itself, or by a page that lists others."""

    def linked(page):
        there = [page.parent / link for link in re.findall(r"\]\(([^)#:]+\.md)", page.read_text("utf-8"))]
        return {found.resolve() for found in there}

    reached, lists = linked(ROOT / "README.md"), set()
    while further := {page for page in reached if page.name == "index.md"} - lists:
        lists |= further
        reached |= {found for page in further for found in linked(page)}
    rooms = [ROOT / "docs" / room for room in ("tutorial", "howto", "reference", "explanation", "evidence")]
    pages = [page for room in rooms for page in room.rglob("*.md")]
    assert [page.relative_to(ROOT).as_posix() for page in pages if page not in reached] == []


def test_a_page_shows_its_examples_as_they_are_run(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import listings

    shown = set()
    for page in listings.pages():
        text = page.read_text(encoding="utf-8")
        assert listings.written(text) == text, f"{page}: run python scripts/listings.py"
        shown |= set(listings.LISTING.findall(text))
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("docs/examples", "docs/examples/migrate")
        for path in (ROOT / folder).iterdir()
        if path.is_file()
    }
    assert shown == files
    tests = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests/integration").glob("test_*.py")
    )
    assert [name for name in files if Path(name).stem not in tests] == []


def test_the_figures_of_why_not_are_those_of_a_run(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import why_not

    page, figures = [path.read_text(encoding="utf-8") for path in (why_not.PAGE, why_not.FIGURES)]
    assert why_not.written(page, figures) == page, "run python scripts/why_not.py"
    empty = re.sub(r"(<!-- figures \w+ -->\n).*?(<!-- end -->)", r"\1\2", page, flags=re.DOTALL)
    assert empty != page
    assert why_not.written(empty, figures) == page


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


def published():
    return not NOTE.search((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", texts())
def test_a_page_says_how_to_install_lockguard_as_it_is_true_now(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert untrue(text, published=published()) == []
    if not published():
        assert untrue(as_published(text), published=True) == []


def test_an_install_text_that_is_not_true_is_found():
    text = "pip install 'lockguard[postgres]'\npip install lockguard\npip install '.[testing]'\n"
    assert len(untrue(text, published=False)) == 3
    assert untrue(as_published("pip install '.[cli]' ./lab"), published=False) == ["'lockguard[cli,testing]'"]
    assert untrue("pip install '.[cli]' ./lab", published=True) == ["'.[cli]' ./lab"]
    note = "<!-- not published yet -->\npip install 'lockguard[cli]'\n<!-- end -->\n\n"
    assert as_published(f"{note}pip install '.[testing]' ./lab") == "pip install 'lockguard[testing]'"


def test_a_link_to_elsewhere_is_one():
    """None is followed here: CI has no network."""
    for page in every_page():
        for link in re.findall(r"\]\((https?:[^)]*)\)", (ROOT / page).read_text(encoding="utf-8")):
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[^\s<>]*)?", link), f"{page}: {link}"
