"""A mistake of the user, which a command refuses in one line."""

from __future__ import annotations

import click

__all__ = ["Mistake"]


class Mistake(click.ClickException):
    """An error that the user can correct; the exit code is 2."""

    exit_code = 2
