"""The page on the models names every action of theirs, and code that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lockguard_lab.models.checks import MODELS

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs/explanation/models.md"


def rows(model: str) -> list[tuple[list[str], str]]:
    """Of the model's table: the actions of each row, and its cell on the code."""
    _, _, section = PAGE.read_text("utf-8").partition(f"\n## `{model}`\n")
    found = re.findall(r"^\| (`.*?) \| (.*) \|$", section.partition("\n## ")[0], re.MULTILINE)
    return [(re.findall(r"`(\w+)`", actions), code) for actions, code in found]


@pytest.mark.parametrize("model", MODELS)
def test_the_page_has_every_action_of_a_model_once(model: str) -> None:
    text = (CHECKOUT / "spec" / f"{model}.pml").read_text("utf-8")
    named = [action for actions, _ in rows(model) for action in actions]
    assert sorted(named) == sorted(re.findall(r"^inline (\w+)\(", text, re.MULTILINE))


@pytest.mark.parametrize("model", MODELS)
def test_the_code_that_the_page_names_is_there(model: str) -> None:
    for actions, code in rows(model):
        if code.startswith("nothing: "):
            continue
        places = re.findall(r"((?:`[\w.]+`(?: and )?)+) in \[[^\]]+\]\(\.\./\.\./([^)]+)\)", code)
        assert places, f"{actions}: {code}"
        for names, file in places:
            text = (CHECKOUT / file).read_text("utf-8")
            for name in re.findall(r"`([\w.]+)`", names):
                assert re.search(rf"(?<![\w.]){re.escape(name)}\b", text), f"{actions}: {name} in {file}"
