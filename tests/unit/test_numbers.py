"""The numbers of transactions: a slot is one transaction's at a time, and goes on when its end is certain."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from lockguard.testing import FakeClock
from lockguard_postgres._numbers import NUMBERS, Numbers


def slot(number: int) -> int:
    return number >> 10


def test_no_two_transactions_under_way_share_a_slot() -> None:
    numbers = Numbers()
    assert len({slot(numbers.take()) for _ in range(100)}) == 100


def test_a_slot_goes_on_once_the_end_of_its_transaction_is_certain() -> None:
    numbers = Numbers()
    first, other = numbers.take(), numbers.take()
    numbers.give_back([first])
    assert numbers.take() == first + 1
    assert slot(numbers.take()) not in {slot(first), slot(other)}


def test_a_free_slot_goes_to_the_resource_that_had_it_before() -> None:
    numbers, slots = Numbers(), set[tuple[str, int]]()
    for _ in range(900):
        taken = [(resource, numbers.take(resource)) for resource in ("APT", "BTC", "ETH", "SOL")]
        slots.update((resource, slot(number)) for resource, number in taken)
        numbers.give_back(number for _, number in reversed(taken[::2] + taken[1::2]))
    assert len(slots) == 4


def test_two_transactions_under_way_of_one_resource_share_no_slot() -> None:
    numbers = Numbers()
    numbers.give_back([numbers.take("APT")])
    assert len({slot(numbers.take("APT")) for _ in range(10)}) == 10


def test_resources_beyond_those_that_are_remembered_share_their_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lockguard_postgres._numbers._RESOURCES_MAX", 3)
    numbers, slots = Numbers(), set[int]()
    for name in "abcdefghij":
        first = numbers.take(name)
        slots.add(slot(first))
        numbers.give_back([first])
    assert len(slots) == 3 + 1
    assert slot(numbers.take("a")) in slots


def test_a_slot_whose_transaction_nobody_heard_of_is_never_used_again() -> None:
    numbers = Numbers()
    lost = numbers.take()
    for _ in range(3000):
        number = numbers.take()
        assert slot(number) != slot(lost)
        numbers.give_back([number])


def test_a_slot_is_left_after_a_thousand_transactions() -> None:
    numbers, seen = Numbers(), list[int]()
    for _ in range(2500):
        seen.append(numbers.take())
        numbers.give_back(seen[-1:])
    assert sorted(seen) == seen
    assert len({slot(number) for number in seen}) == 3
    assert {number & 1023 for number in seen} == set(range(1, 1001)), "more would be the next slot's"


def test_a_slot_is_left_after_twelve_hours_whether_it_is_used_or_not() -> None:
    clock = FakeClock()
    numbers = Numbers(clock)
    under_way, idle = numbers.take(), numbers.take()
    numbers.give_back([idle])
    clock.advance(timedelta(hours=12))
    fresh = numbers.take()
    numbers.give_back([under_way])
    later = numbers.take()
    assert slot(idle) < slot(fresh)
    assert slot(under_way) < slot(later)


def test_a_number_of_its_own_is_never_followed_by_another() -> None:
    numbers = Numbers()
    alone = numbers.alone()
    numbers.give_back([alone])
    assert slot(numbers.take()) != slot(alone)
    assert slot(numbers.alone()) != slot(alone)


def test_numbers_fit_a_bigint_and_lie_above_those_of_a_library_of_before() -> None:
    for _ in range(50):
        numbers = Numbers()
        assert 1 << 62 <= numbers.take() < numbers.alone() < 1 << 63


def test_a_forked_process_counts_in_a_range_of_its_own() -> None:
    read, write = os.pipe()
    mine = NUMBERS.take()
    NUMBERS.give_back([mine])
    child = os.fork()
    if child == 0:
        os.write(write, str(NUMBERS.take()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = int(os.read(read, 100))
    os.close(read)
    os.close(write)
    assert slot(theirs) != slot(mine)


@pytest.mark.parametrize("remembered", [4096, 0])
def test_what_a_forked_process_gives_back_of_its_parents_is_left_to_the_parent(
    monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    monkeypatch.setattr("lockguard_postgres._numbers._RESOURCES_MAX", remembered)
    for _ in range(20):  # whichever of the two ranges lies above the other
        numbers = Numbers()
        parents = numbers.take()
        numbers.begin()
        numbers.give_back([parents])
        assert slot(numbers.take()) != slot(parents)
