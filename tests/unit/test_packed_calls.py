"""The call of a script in bytes: what is kept of it between two calls changes nothing."""

from __future__ import annotations

import hiredis
import pytest

from lockguard.lua import ACQUIRE, RELEASE
from lockguard.nodes.scripted import keys_of
from lockguard.nodes.standalone import _packed

ARGUMENTS = [
    ("f" * 32,),
    ("f" * 32, 10_000, "host:1/Task-1", "open long", "", 0, 0),
    ("", "", -1),
    ("\r\n*3\r\n", "Größe", 2**62),
    tuple("abcdefghijkl"),
]


@pytest.mark.parametrize("script", [ACQUIRE, RELEASE], ids=lambda script: script.name)
@pytest.mark.parametrize("args", ARGUMENTS, ids=len)
@pytest.mark.parametrize("resource", ["binance:APTUSDT", "bybit:Größe"])
def test_a_call_is_packed_as_hiredis_packs_its_words_the_first_time_and_later(script, args, resource):
    for name in ("acquire", "release", "extend"):
        keys = getattr(keys_of("lockguard", resource), name)
        words = hiredis.pack_command(("EVALSHA", script.sha, len(keys), *keys, *args))
        assert [_packed(script.sha, keys, args) for _ in range(2)] == [words, words]
