"""Which leases the running code has, and when it may have lost sight of one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lockguard import current_lease, detached
from lockguard._context import (
    LeaseScope,
    current_leases,
    enter_scope,
    exit_scope,
    lost_sight,
    note_task,
    outlived_lease,
    scope_for,
)
from lockguard._lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard.testing import FakeClock

GUARD, OTHER_GUARD = object(), object()


def scope_of(name: str, guard: object = GUARD) -> LeaseScope:
    grant = Grant(Resource(name), new_grant_id(), Token(7), "h", "o", 60_000)
    clock = FakeClock()
    task = asyncio.current_task()
    assert task is not None
    return LeaseScope(Lease(grant, deadline=clock.now() + 60, clock=clock), task, guard)


@contextmanager
def held(name: str, guard: object = GUARD) -> Iterator[LeaseScope]:
    scope = enter_scope(scope_of(name, guard))
    try:
        yield scope
    finally:
        exit_scope(scope)


async def test_the_leases_of_the_bodies_around_are_current_and_none_that_was_released() -> None:
    with held("a:1") as outer, held("a:2") as inner:
        assert current_leases() == (outer.lease, inner.lease)
        inner.lease.mark_released()
        assert current_leases() == (outer.lease,)
        assert current_lease() is outer.lease


async def test_a_body_that_is_left_before_an_inner_one_is_left_and_the_inner_one_goes_on() -> None:
    outer, inner = enter_scope(scope_of("a:1")), enter_scope(scope_of("a:2"))
    exit_scope(outer)
    assert current_leases() == (inner.lease,)
    exit_scope(inner)
    assert current_leases() == ()


async def test_a_hold_is_entered_again_only_inside_the_innermost_of_its_own_guard_while_that_goes_on() -> (
    None
):
    resource = Resource("a:1")
    with held("a:1"), held("a:1") as inner, held("a:1", OTHER_GUARD), held("a:2"):
        assert scope_for(resource, GUARD) is inner
        assert scope_for(resource, object()) is None
        inner.lease.mark_released()
        assert scope_for(resource, GUARD) is None


async def test_what_is_detached_sees_no_lease_and_the_body_around_it_has_it_still() -> None:
    async def seen() -> tuple[Lease, ...]:
        return current_leases()

    with held("a:1") as scope:
        assert await asyncio.create_task(seen()) == (scope.lease,)
        with detached():
            assert current_leases() == ()
            task = asyncio.create_task(seen())
        assert await task == ()
        assert current_leases() == (scope.lease,)


async def test_who_outlived_a_body_is_told_so_unless_it_has_a_lease_of_its_own() -> None:
    assert outlived_lease() is None
    with held("a:1") as outer:
        outer.lease.mark_released()
        assert outlived_lease() is outer.lease
        with held("a:2"):
            assert outlived_lease() is None


class Helper:
    """A task that enters a hold and ends, or goes on, without having left it."""

    def __init__(self, *, ends: bool = True) -> None:
        self.scope: LeaseScope | None = None
        self._ends = ends

    async def run(self) -> None:
        self.scope = enter_scope(scope_of("a:1"))
        if not self._ends:
            await asyncio.Event().wait()

    async def entered(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self.run())
        while self.scope is None or (self._ends and not task.done()):
            await asyncio.sleep(0)
        return task

    def left(self) -> None:
        assert self.scope is not None
        exit_scope(self.scope)


async def parent(helper: Helper, *, ends: bool) -> tuple[Lease | None, Lease | None]:
    """What the task sees that started the helper, and what a detached one sees."""
    note_task()
    task = await helper.entered()
    seen = lost_sight()
    with detached():
        apart = asyncio.create_task(sight())
    told = seen, await apart
    if not ends:
        task.cancel()
    return told


async def sight(held_too: str = "") -> Lease | None:
    if not held_too:
        return lost_sight()
    with held(held_too):
        return lost_sight()


@pytest.mark.parametrize("ends", [True, False])
async def test_who_entered_a_hold_through_a_task_that_has_ended_has_lost_sight_of_it(*, ends: bool) -> None:
    helper = Helper(ends=ends)
    seen, apart = await asyncio.create_task(parent(helper, ends=ends))
    assert helper.scope is not None
    assert seen is (helper.scope.lease if ends else None)
    assert apart is None, "a detached task knows nothing of it"
    helper.left()


async def test_a_task_of_before_the_hold_that_started_nobody_is_not_in_its_body() -> None:
    helper, entered = Helper(), asyncio.Event()

    async def beside() -> Lease | None:
        note_task()
        await entered.wait()
        return lost_sight()

    other = asyncio.create_task(beside())
    await asyncio.sleep(0)
    await helper.entered()
    entered.set()
    assert await other is None
    helper.left()


@pytest.mark.parametrize(
    ("held_too", "stops"), [("", True), ("a:2", False), ("a:1", False)], ids=["none", "another", "the same"]
)
async def test_a_task_with_a_lease_of_its_own_is_stopped_only_if_it_started_who_entered_the_hold(
    held_too: str, *, stops: bool
) -> None:
    helper = Helper()

    async def starts_both() -> Lease | None:
        note_task()
        await helper.entered()
        return await asyncio.create_task(sight(held_too))

    told = await asyncio.create_task(starts_both())
    assert helper.scope is not None
    assert told is (helper.scope.lease if stops else None)
    helper.left()
