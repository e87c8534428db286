"""The exchange's refusals, in its own words."""

from __future__ import annotations

__all__ = ["Rejection", "illegal", "malformed"]


class Rejection(Exception):
    """The exchange says no.

    Attributes:
        code: the exchange's error code, negative.
        message: its text.
        status: the HTTP status it comes with.
    """

    def __init__(self, code: int, message: str, status: int = 400) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.message = message
        self.status = status


def malformed(name: str) -> Rejection:
    """A parameter that must be there is not."""
    return Rejection(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")


def illegal(name: str, legal: str) -> Rejection:
    """A parameter has characters that it must not have."""
    return Rejection(-1100, f"Illegal characters found in parameter '{name}'; legal range is '{legal}'.")
