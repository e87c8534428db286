"""The exchange's refusals, in its own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Rejection", "illegal", "malformed", "unwanted"]


class Rejection(Exception):
    """The exchange says no.

    Attributes:
        code: the exchange's error code, negative.
        message: its text.
        status: the HTTP status it comes with.
        headers: the HTTP headers that it comes with.
        outcome: how the record has it: the code, unless it is called something else.
    """

    def __init__(
        self,
        code: int,
        message: str,
        status: int = 400,
        *,
        headers: Mapping[str, str] | None = None,
        outcome: str | None = None,
    ) -> None:
        super().__init__(f"{code} {message}")
        self.headers = headers
        self.outcome = outcome or str(code)
        self.code = code
        self.message = message
        self.status = status


def malformed(name: str) -> Rejection:
    """A parameter that must be there is not."""
    return Rejection(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")


def illegal(name: str, legal: str) -> Rejection:
    """A parameter has characters that it must not have."""
    return Rejection(-1100, f"Illegal characters found in parameter '{name}'; legal range is '{legal}'.")


def unwanted(name: str) -> Rejection:
    """A parameter that must not be there is."""
    return Rejection(-1106, f"Parameter '{name}' sent when not required.")
