"""``lockguard run``: a command under a lease."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lockguard import _interrupt as interrupt
from lockguard._cli.command import Command, Outcome
from lockguard._cli.durations import Duration
from lockguard._cli.numbers import WholeNumber
from lockguard._cli.servers import Servers, with_servers
from lockguard._cli.unseen import unseen
from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import parse_resource
from lockguard._times import checked_at_least, checked_ttl, checked_wait
from lockguard.errors import ConfigurationError, LeaseLost, LockguardError, ResourceBusy
from lockguard.events import Event, Renewed
from lockguard.text import printable

if TYPE_CHECKING:
    from lockguard._guard import GuardOptions, LockGuard
    from lockguard._lease import Lease

__all__ = ["run"]

_LOST = 123
_BUSY = 124
_FAILED = 125
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127

_SHORT = 1 / 20
"""The share of the ttl that a command has after TERM when its lease is lost already."""

_SHORT_OF = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""What a system says that has no process, memory or open file left to give."""

_LENGTH = Duration("length of time", "smhd", "write a whole number and its unit, such as 30s, 5m or 2h")


class _BehindDashes(click.Command):
    """What stands behind ``--`` is the command alone: without its RESOURCE, its first word would be taken."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments as click does."""
        before = args[: args.index("--")] if "--" in args else args
        found, _, _ = self.make_parser(ctx).parse_args(list(before))
        return super().parse_args(ctx, args if isinstance(found.get("resource"), str) else before)


@click.command(
    cls=_BehindDashes, short_help="Run a command under a lease, and end it when the lease is lost."
)
@click.argument("resource")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND [ARGUMENT]...")
@click.option("--wait", type=_LENGTH, help="How long to wait while the resource is busy; 10s by default.")
@click.option("--skip", is_flag=True, help="Do not wait: exit with 0 while the resource is busy or closed.")
@click.option("--ttl", type=_LENGTH, help="How long the lease lasts without renewal; 10s by default.")
@click.option(
    "--at-least",
    type=_LENGTH,
    help="Keep the resource closed for this time from the grant on, however soon and however the command"
    " ends: once per period.",
)
@click.option(
    "--operation", help="What it is for, shown to callers that wait; the command's name by default."
)
@click.option("--name", help="Who runs it, shown in front of host and process; LOCKGUARD_NAME by default.")
@click.option(
    "--stop-within",
    type=_LENGTH,
    help="How long before the lease's deadline the command gets TERM if the lease cannot be renewed; at most"
    " half of the ttl, a third by default.",
)
@click.option(
    "--busy-code",
    type=WholeNumber(0, 255),
    help="The exit code while the resource is busy; by default 0 with --skip and 124 without.",
)
@with_servers
def run(
    resource: str,
    command: tuple[str, ...],
    servers: Servers,
    *,
    skip: bool,
    busy_code: int | None,
    **rest: Any,
) -> int:
    """Run a command under a lease, and end it when the lease is lost.

    RESOURCE is the name as in the code, such as backup:db1. The command has LOCKGUARD_RESOURCE,
    LOCKGUARD_TOKEN, LOCKGUARD_GRANT, LOCKGUARD_DEADLINE and LOCKGUARD_STOP_WITHIN in its environment. When
    the lease ends, it and all that it started get TERM, and then KILL before another holder can begin.

    Exit code: that of the command; 128 + N if signal N killed it. 127: it was not found. 126: it cannot be
    executed. 125: it was not run, because a server does not answer. 124: it was not run, because the
    resource is busy. 123: the lease was lost, and the command was ended or has ended without it. 2: a
    mistake in the call.
    """
    _check(resource, command, skip=skip, **rest)
    servers.require_named()
    if (code := _unexecutable(command[0])) is not None:
        return code
    if busy_code is None:
        busy_code = 0 if skip else _BUSY
    try:
        return interrupt.run(_run(resource, command, servers, skip=skip, busy_code=busy_code, **rest))
    except ConfigurationError:
        raise
    except (LockguardError, click.ClickException, OSError) as exc:
        return _not_run(exc, command[0])


def _check(
    resource: str,
    command: tuple[str, ...],
    *,
    skip: bool,
    wait: timedelta | None,
    ttl: timedelta | None,
    at_least: timedelta | None,
    **_: object,
) -> None:
    """Refuse a mistake in the call before anything is started."""
    if not hasattr(os, "fork"):
        raise ConfigurationError("a command is run under a lease on POSIX systems only, and this is none")
    if not any(command[:1]):
        raise ConfigurationError(
            "no command is given; write it behind --, as in: lockguard run x -- ./backup"
        )
    if skip and wait is not None:
        raise ConfigurationError("--skip does not wait, and --wait says for how long to wait; leave one out")
    parse_resource(resource)
    if wait is not None:
        checked_wait(wait, "--wait")
    if ttl is not None:
        checked_ttl(ttl, "--ttl")
    checked_at_least(at_least, "--at-least")


def _not_run(exc: Exception, name: str) -> int:
    """The exit code for a command that was not run for want of a server, or of room for a process."""
    if isinstance(exc, LockguardError):
        return _told(str(exc), _FAILED)
    if isinstance(exc, click.ClickException) and exc.exit_code == 1:  # the fence's
        return _told(exc.format_message(), _FAILED)
    if isinstance(exc, OSError) and exc.errno in _SHORT_OF:
        return _told(f"{_shown(name)} cannot be executed: {exc.strerror}", _NOT_EXECUTABLE)
    raise exc


async def _run(
    resource: str,
    words: tuple[str, ...],
    servers: Servers,
    *,
    skip: bool,
    busy_code: int,
    wait: timedelta | None,
    ttl: timedelta | None,
    at_least: timedelta | None,
    operation: str | None,
    name: str | None,
    stop_within: timedelta | None,
) -> int:
    outcome = None
    program = Path(words[0]).name
    async with AsyncExitStack() as stack:
        fence = None if servers.database is None else await stack.enter_async_context(servers.fence())
        renewals = _Renewals()
        options: GuardOptions = {"fence": fence, "observers": [renewals]}
        if name is not None:
            options["name"] = name
        guard = servers.guard(**options)
        max_hold_s = guard._core.max_hold_s
        stop_within_s = _stop_within_s(stop_within, ttl or guard._ttl, max_hold_s)
        command = renewals.command = stack.enter_context(Command(words))
        await stack.enter_async_context(guard)
        await _require_other(resource, guard)
        try:
            async with guard.hold(
                resource,
                wait=wait,
                ttl=ttl,
                operation=program if operation is None else operation,
                on_busy="raise" if skip else "wait",
                at_least=at_least,
            ) as lease:
                renewals.lease = lease
                short_s = lease.grant.ttl_ms / 1000 * _SHORT
                outcome = await command.run(
                    _environment(lease, stop_within_s),
                    deadline=lease.deadline,
                    stop_within_s=stop_within_s,
                    short_s=short_s,
                )
                too_long = lease.deadline < lease.kept_until  # it could have been renewed
        except ResourceBusy as busy:
            if skip and not sys.stderr.isatty():  # a job that is skipped each minute must not send mail
                return busy_code
            return _told(str(busy), busy_code)
        except LeaseLost as lost:
            if renewals.lease is None:  # before the command was started
                return _told(str(lost), _FAILED)
            return _told(f"{_ended(outcome)}: {lost}", _LOST)
    if outcome.why == "deadline" and too_long:
        told = f"it may hold {printable(resource)!r} for {max_hold_s:g} s and no longer (max_hold)"
        return _told(f"{_ended(outcome)}: {told}; give a longer max_hold if it needs more", _LOST)
    return _code(outcome, resource, program)


async def _require_other(resource: str, guard: LockGuard) -> None:
    """A command that runs under the lock itself would wait for its own end."""
    if os.environ.get("LOCKGUARD_RESOURCE") != resource:
        return
    if (await guard.inspect(resource)).grant == os.environ.get("LOCKGUARD_GRANT", "-"):
        raise ConfigurationError(
            f"this runs under the lock of {printable(resource)} already, in a command of `lockguard run`, and"
            " would wait for itself; run the command without another lockguard run"
        )


class _Renewals:
    """Tells the command's watchdog of each renewal."""

    def __init__(self) -> None:
        self.command: Command | None = None
        self.lease: Lease | None = None

    def on(self, event: Event) -> None:
        """Take one event of the guard, which has one lease."""
        if isinstance(event, Renewed) and self.command is not None and self.lease is not None:
            self.command.until(self.lease.deadline)


def _stop_within_s(given: timedelta | None, ttl: timedelta, max_hold_s: float) -> float:
    """How long before the deadline the command gets TERM: not at its start, and not before a renewal."""
    if given is not None and given > ttl / 2:
        raise ConfigurationError(
            f"--stop-within {given.total_seconds():g}s cannot work with a ttl of {ttl.total_seconds():g} s: a"
            f" renewal would come too late; give at most half of the ttl, or a longer --ttl"
        )
    ttl_s = ttl.total_seconds()
    stop_within_s = ttl_s / 3 if given is None else max(ttl_s * _SHORT, given.total_seconds())
    if max_hold_s <= stop_within_s:
        raise ConfigurationError(
            f"max_hold={max_hold_s:g} s cannot work with --stop-within {stop_within_s:.3g} s: the command"
            " would get TERM at its start; give a shorter --stop-within (or --ttl, a third of which it is by"
            " default), or a longer LOCKGUARD_MAX_HOLD"
        )
    return stop_within_s


def _environment(lease: Lease, stop_within_s: float) -> dict[str, str]:
    return {
        "LOCKGUARD_RESOURCE": lease.resource,
        "LOCKGUARD_TOKEN": str(lease.token),
        "LOCKGUARD_GRANT": lease.grant.id,
        "LOCKGUARD_DEADLINE": f"{SYSTEM_CLOCK.wall() + lease.remaining.total_seconds():.3f}",
        "LOCKGUARD_STOP_WITHIN": f"{stop_within_s:.3f}",
    }


def _unexecutable(name: str) -> int | None:
    """The exit code for a command that can be seen not to be one, before the lock is taken; else ``None``."""
    if shutil.which(name) is not None:
        return None
    if os.path.dirname(name) and os.path.exists(name):
        return _told(f"{_shown(name)} cannot be executed", _NOT_EXECUTABLE)
    return _told(f"{_shown(name)} was not found", _NOT_FOUND)


def _shown(name: str) -> str:
    """A command's name for messages; a URL in its place may have a password."""
    return printable(unseen(name, [name]))


def _code(outcome: Outcome, resource: str, name: str) -> int:
    """The exit code for a command whose lease was not lost, as far as the lock knows."""
    if outcome.errno:
        code = _NOT_FOUND if outcome.errno == errno.ENOENT else _NOT_EXECUTABLE
        return _told(f"{_shown(name)} cannot be executed: {os.strerror(outcome.errno)}", code)
    if outcome.why:
        told = f"the lease on {printable(resource)!r} could not be renewed in time"
        return _told(f"{_ended(outcome)}: {told}", _LOST)
    if not outcome.watched or outcome.status is None:
        return _told("the watchdog of the command was killed, so the command was killed too", _LOST)
    return outcome.status if outcome.status >= 0 else 128 - outcome.status


def _ended(outcome: Outcome | None) -> str:
    if outcome is None or outcome.why or outcome.status is None:
        return "the command was ended"
    return f"the command has ended by itself ({_by(outcome.status)}), when its lease was lost"


def _by(status: int) -> str:
    return f"exit code {status}" if status >= 0 else f"by {signal.Signals(-status).name}"


def _told(text: str, code: int) -> int:
    """Write one line on the standard error; returns ``code``."""
    click.echo(f"lockguard: {' '.join(text.split())}", err=True)
    return code
