"""The exchange's refusals, in its own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Rejection", "illegal", "malformed", "unwanted"]


class Rejection(Exception):
    """A refusal by the exchange.

    Attributes:
        code: the exchange's error code, negative.
        message: the exchange's error text.
        status: the HTTP status of the answer.
        headers: further HTTP headers of the answer.
        outcome: the outcome that the record notes: the code, unless another is given.
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
    """The refusal of a request that lacks a required parameter."""
    return Rejection(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")


def illegal(name: str, legal: str) -> Rejection:
    """The refusal of a parameter with illegal characters."""
    return Rejection(-1100, f"Illegal characters found in parameter '{name}'; legal range is '{legal}'.")


def unwanted(name: str) -> Rejection:
    """The refusal of a parameter that must not be sent."""
    return Rejection(-1106, f"Parameter '{name}' sent when not required.")
