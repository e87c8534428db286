"""What the doctor finds: a stable code, the value, why it matters, and the line that mends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from lockguard.text import printable
from lockguard_ops._doctor._codes import CODES

__all__ = ["Finding", "Report", "Severity", "advice"]


class Severity(StrEnum):
    """How bad it is."""

    OK = "ok"
    """It was looked at and is sound."""
    NOTE = "note"
    """Nothing has to be done; an operator should know."""
    WARNING = "warning"
    """It works, and will hurt one day."""
    ERROR = "error"
    """Locks or writes fail, or are not safe, or may be so at any time."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        code: the stable name of the check, such as ``redis.eviction``.
        severity: how bad it is.
        server: where it was found, for display; without credentials.
        subject: what was looked at.
        found: what was found, with the value.
        why: why it matters, in one sentence; empty where all is well.
        remedy: a line that can be pasted into a shell, or begins with ``#`` where no command mends it; empty
            where nothing has to be done.
        unread: whether something could not be read, so that it is not known to be right.
    """

    code: str
    severity: Severity
    server: str
    subject: str
    found: str
    why: str = ""
    remedy: str = ""
    unread: bool = False


def advice(text: str) -> str:
    """A remedy that is no command, as a line that does nothing when it is pasted."""
    return f"# {text}"


@dataclass(slots=True)
class Report:
    """The findings so far, in the order in which they were made.

    Attributes:
        findings: all of them.
        unchecked: what was not looked at, each with the reason.
    """

    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def add(
        self,
        code: str,
        severity: Severity,
        server: str,
        found: str,
        remedy: str = "",
        *,
        unread: bool = False,
    ) -> None:
        """Add a finding; text from servers is made printable.

        Args:
            code: a code of ``_codes.py``.
            severity: how bad it is.
            server: where it was found.
            found: what was found, with the value.
            remedy: as in :class:`Finding`.
            unread: as in :class:`Finding`.
        """
        known = CODES[code]
        sound = severity is Severity.OK
        self.findings.append(
            Finding(
                code,
                severity,
                printable(server),
                known.subject,
                printable(found),
                "" if sound else known.why,
                printable(remedy),
                unread,
            )
        )

    def skip(self, what: str) -> None:
        """Note that something was not looked at, with the reason."""
        self.unchecked.append(printable(what))

    def has(self, code: str, server: str) -> bool:
        """Whether a check found something amiss at a server."""
        return any(
            one.code == code and one.server == printable(server) and one.severity is not Severity.OK
            for one in self.findings
        )

    @property
    def worst(self) -> Severity:
        """The worst severity; what could not be read does not count."""
        order = list(Severity)
        counted = (one.severity for one in self.findings if not one.unread)
        return max(counted, key=order.index, default=Severity.OK)

    @property
    def unread(self) -> bool:
        """Whether something could not be read."""
        return any(one.unread for one in self.findings)
