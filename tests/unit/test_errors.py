"""Errors carry their facts, wherever they are caught."""

from __future__ import annotations

import copy
import inspect
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

import lockguard_asyncpg
import lockguard_positions
from lockguard import errors
from lockguard.errors import LockguardError

FACTS: dict[str, Any] = {
    "resource": "binance:APTUSDT",
    "reason": errors.LossReason.FENCED,
    "votes": {"a": "no answer"},
}


def every_kind() -> list[type[LockguardError]]:
    found: dict[str, type[LockguardError]] = {}
    for module in (errors, lockguard_asyncpg, lockguard_positions):
        found |= {
            name: kind
            for name, kind in inspect.getmembers(module, inspect.isclass)
            if issubclass(kind, LockguardError)
        }
    return list(found.values())


def example(kind: type[LockguardError]) -> LockguardError:
    parameters = inspect.signature(kind.__init__).parameters
    if not any(p.kind is p.KEYWORD_ONLY for p in parameters.values()):
        return kind("why")
    needed = {
        n: FACTS.get(n, 7) for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty
    }
    return kind(*["why"] * ("message" in parameters), **needed)


@pytest.mark.parametrize("kind", every_kind(), ids=lambda kind: kind.__name__)
def test_an_error_is_the_same_after_a_journey(kind: type[LockguardError]) -> None:
    error = example(kind)
    error.add_note("and a note")
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(back) is kind
        assert (str(back), back.args, vars(back)) == (str(error), error.args, vars(error))


def fail() -> None:
    raise lockguard_asyncpg.CommitUnknown(resource="binance:APTUSDT", token=7, sequence=11)


def test_a_process_that_lost_a_reply_can_say_which() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        with pytest.raises(lockguard_asyncpg.CommitUnknown) as caught:
            processes.submit(fail).result(timeout=30)
    assert (caught.value.resource, caught.value.token, caught.value.sequence) == ("binance:APTUSDT", 7, 11)
