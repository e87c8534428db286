"""The group of all commands, and how each outcome becomes one line and an exit code.

=====  ==================================================================================
0      done
1      it could not be done: the resource is held, a server does not answer, a check failed
2      the user's mistake: an argument, a URL, a password, a missing package
3      something could not be read, so it is not known to be right (ls, show, some of positions and logs)
4      the resource is free (show)
130    interrupted, by Ctrl-C or by SIGTERM; see ``lockguard/_interrupt.py``
=====  ==================================================================================
"""

from __future__ import annotations

import io
import re
import sys
from typing import TYPE_CHECKING

import click

from lockguard import __version__
from lockguard._cli.ending import ask, break_
from lockguard._cli.functions import functions
from lockguard._cli.history import history
from lockguard._cli.ls import ls
from lockguard._cli.plugins import COMMANDS, OpenGroup
from lockguard._cli.run import run as run_command
from lockguard._cli.show import inspect, show
from lockguard._cli.unseen import unseen
from lockguard._interrupt import interrupted
from lockguard._private_files import is_of_the_output
from lockguard.errors import ConfigurationError, LockguardError
from lockguard.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["run"]

_FAILED = 1
_MISTAKE = 2

_MAY_BE_A_URL = re.compile(r""": (['"]).*(?:://|@).*\1""", re.DOTALL)
"""A value that click quotes in its own error: a URL given to the wrong option would show its password."""


@click.group(cls=OpenGroup, contributed_by=COMMANDS, invoke_without_command=True)
@click.version_option(__version__, message="lockguard %(version)s")
@click.pass_context
def lockguard(ctx: click.Context) -> None:
    """Lease locks in Redis, with fencing tokens that Postgres checks itself."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


lockguard.add_command(inspect)
lockguard.add_command(history)
lockguard.add_command(ask)
lockguard.add_command(functions)
lockguard.add_command(ls)
lockguard.add_command(show)
lockguard.add_command(break_)
lockguard.add_command(run_command)


def run(arguments: Sequence[str]) -> int:
    """Run a command; returns the exit code. Every failure that is not a bug is one line on stderr."""
    _escape_what_the_terminal_lacks()
    try:
        code = lockguard.main(list(arguments), prog_name="lockguard", standalone_mode=False)
    except click.ClickException as exc:
        return _refuse(exc, arguments)
    except (KeyboardInterrupt, click.Abort):
        return interrupted()
    except ConfigurationError as exc:
        return _complain(unseen(str(exc), arguments), _MISTAKE)
    except LockguardError as exc:
        return _complain(unseen(str(exc), arguments), _FAILED)
    except OSError as exc:
        if not is_of_the_output(exc):  # errors of our own files name the file
            raise
        return _complain(f"the output could not be written: {exc.strerror}", _FAILED)
    except ImportError as exc:
        if "pip install" not in str(exc):
            raise
        return _complain(unseen(str(exc), arguments), _MISTAKE)
    return code if isinstance(code, int) else 0


def _escape_what_the_terminal_lacks() -> None:
    """A holder's name must not end a command with an error because the locale is Latin-1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refuse(exc: click.ClickException, arguments: Sequence[str]) -> int:
    if type(exc).__name__ == "NoArgsIsHelpError":  # its text is the help; click 8.2 and newer
        exc.show()
        return exc.exit_code
    ctx = getattr(exc, "ctx", None)
    hint = f"; see '{ctx.command_path} --help'" if ctx is not None else ""
    told = exc.format_message()
    if isinstance(exc, click.BadParameter):
        told = _MAY_BE_A_URL.sub(": what was given (not shown, as it may be a URL)", told)
    return _complain(unseen(told, arguments).rstrip(".") + hint, exc.exit_code)


def _complain(text: str, code: int) -> int:
    # Also without a standard error; and what a server said can neither begin a line nor control the terminal.
    click.echo(f"lockguard: {printable(' '.join(text.split()))}", err=True)
    return code
