"""The texts that are sent to the servers are made of the files, each thing written once."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from lockguard._scripts import ACQUIRE, BREAK, RELEASE, SCRIPTS

FOLDER = files("lockguard") / "lua"


def test_a_waiter_is_woken_by_one_text_in_each_script_that_wakes():
    texts = {file.name: file.read_text() for file in FOLDER.iterdir() if file.name.endswith(".lua")}
    assert [name for name, text in texts.items() if "'PUBLISH'" in text] == ["wake.lua"]
    for script in SCRIPTS:
        wakes = script in (ACQUIRE, BREAK, RELEASE)
        assert (texts["wake.lua"] in script.source) is wakes, script.name
        assert script.source.count("'PUBLISH'") == wakes, script.name


def test_every_script_is_known_by_the_text_that_is_sent_and_has_no_line_left_to_replace():
    names = {file.name.removesuffix(".lua") for file in FOLDER.iterdir() if file.name.endswith(".lua")}
    assert {script.name for script in SCRIPTS} == names - {"wake"}
    for script in SCRIPTS:
        assert script.sha == hashlib.sha1(script.source.encode(), usedforsecurity=False).hexdigest()
        assert "\n-- include" not in script.source
