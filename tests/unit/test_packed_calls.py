"""The call of a script in bytes: what is kept of it between two calls changes nothing."""

from __future__ import annotations

import hiredis
import pytest

from lockguard._nodes.address import Address
from lockguard._nodes.scripted import keys_of
from lockguard._nodes.standalone import StandaloneNode
from lockguard._scripts import EXTEND, RELEASE

ARGUMENTS = [
    ("f" * 32,),
    ("f" * 32, 10_000, "host:1/Task-1", "open long", "", 0, 0),
    ("", "", -1),
    ("\r\n*3\r\n", 2**40, "Größe"),
    ("f" * 32, 5_000, *"abcdefghij"),
]


@pytest.mark.parametrize("args", ARGUMENTS, ids=len)
@pytest.mark.parametrize("resource", ["binance:APTUSDT", "bybit:Größe"])
async def test_a_call_is_packed_as_hiredis_packs_its_words_the_first_time_and_later(
    args, resource, monkeypatch
):
    node = StandaloneNode(Address.parse("redis://127.0.0.1:1"), inbox="inbox")
    sent: list[bytes] = []
    monkeypatch.setattr(node._connection, "send_packed", lambda _, packed, *, lone: sent.append(packed))
    keys = keys_of("lockguard", resource)
    calls = [(RELEASE, keys.release), (RELEASE, keys.inspect)]
    if len(args) > 1 and isinstance(args[1], int):
        calls.append((EXTEND, keys.extend))
    for script, on in calls:
        words = hiredis.pack_command(("EVALSHA", script.sha, len(on), *on, *args))
        for _ in range(2):
            node.run(script, int, on, *args)
        assert sent[-2:] == [words, words]
