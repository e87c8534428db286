"""Finds duplicates and races in a bot's log: ``lockguard logs analyze``, and the same from Python."""

from __future__ import annotations

from lockguard_logs._analysis import Analysis, Finding, FindingKind, analyze
from lockguard_logs._records import LogFile, NothingToRead, Record, read_log, read_logs
from lockguard_logs._sightings import Sighting, SightingKind

__all__ = [
    "Analysis",
    "Finding",
    "FindingKind",
    "LogFile",
    "NothingToRead",
    "Record",
    "Sighting",
    "SightingKind",
    "analyze",
    "read_log",
    "read_logs",
]
