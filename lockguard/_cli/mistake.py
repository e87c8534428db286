"""What a command refuses: a mistake of the user, told in one line."""

from __future__ import annotations

import click

__all__ = ["Mistake"]


class Mistake(click.ClickException):
    """Something that the user can put right."""

    exit_code = 2
