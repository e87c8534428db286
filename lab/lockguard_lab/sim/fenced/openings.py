"""How a generated sequence may begin: steps that chance seldom puts one behind the other."""

from __future__ import annotations

__all__ = ["COPIES", "RARE", "Opening"]

Opening = tuple[tuple[int, str, int], ...]
"""Each step with its session, and how far its token is ahead of the one in force."""

RARE: tuple[Opening, ...] = (
    # A snapshot from before the first seal of all.
    ((0, "begin repeatable read", 0), (0, "read", 0), (1, "seal", 0), (0, "check", 0)),
    # A writer that stops between Parse and Bind is no idle one, and is ended all the same.
    ((0, "seal", 0), (1, "begin with a check", 0), (1, "prepare", 0), (2, "seal", 1), (3, "evict", 1)),
)
"""What a snapshot and a parsed statement are to the fence."""

COPIES: dict[str, Opening] = {
    "what is copied is committed by itself": (
        (0, "copy", 0),
        (1, "copy entries out", 0),
        (0, "copy rows", 0),
        (1, "copy entries out", 0),
    ),
    "a transaction sees what it has copied, and the others do once it commits": (
        (0, "begin", 0),
        (0, "copy", 0),
        (0, "copy rows", 0),
        (0, "copy entries out", 0),
        (1, "copy entries out", 0),
        (0, "commit", 0),
        (1, "copy entries out", 0),
    ),
    "a rollback to a savepoint undoes what was copied since": (
        (0, "begin", 0),
        (0, "copy", 0),
        (0, "copy rows", 0),
        (0, "savepoint", 0),
        (0, "copy", 0),
        (0, "copy rows", 0),
        (0, "rollback to", 0),
        (0, "copy entries out", 0),
        (0, "commit", 0),
    ),
    "of rows with a bad one none is kept": (
        (0, "copy", 0),
        (0, "copy a bad row", 0),
        (0, "copy entries out", 0),
        (0, "begin", 0),
        (0, "copy", 0),
        (0, "copy a bad row", 0),
        (0, "copy", 0),
        (0, "commit", 0),
    ),
    "a COPY that is given up fails its transaction": (
        (0, "copy", 0),
        (0, "copy is given up", 0),
        (0, "begin", 0),
        (0, "write", 0),
        (0, "copy", 0),
        (0, "copy is given up", 0),
        (0, "copy out", 0),
        (0, "commit", 0),
    ),
    "behind a refusal nothing is copied": (
        (0, "seal", 0),
        (1, "begin with a check", -1),
        (1, "copy", 0),
        (1, "copy entries out", 0),
        (1, "commit", 0),
        (2, "begin", 0),
        (2, "copy", 0),
        (2, "copy rows", 0),
        (2, "check", -1),
        (2, "copy out", 0),
        (2, "commit", 0),
        (2, "copy entries out", 0),
    ),
    "who copies keeps a newer seal waiting": (
        (0, "seal", 0),
        (1, "begin with a number", 0),
        (1, "copy", 0),
        (2, "seal", 1),
        (1, "copy rows", 0),
        (1, "commit", 0),
        (1, "copy entries out", 0),
    ),
    "who copies is ended as any writer": (
        (0, "seal", 0),
        (1, "begin with a check", 0),
        (1, "copy", 0),
        (2, "seal", 1),
        (3, "evict", 1),
        (0, "copy entries out", 0),
    ),
    "who copies alone at the gate waits for its client, and so overstays": (
        (0, "seal", 0),
        (1, "begin", 0),
        (1, "close", 0),
        (1, "copy", 0),
        (2, "evict", 1),
        (2, "copy entries out", 0),
    ),
    "a COPY takes the snapshot of its transaction": (
        (0, "begin repeatable read", 0),
        (0, "copy", 0),
        (1, "write", 0),
        (1, "copy", 0),
        (1, "copy rows", 0),
        (0, "copy rows", 0),
        (0, "copy out", 0),
        (0, "copy entries out", 0),
        (0, "commit", 0),
    ),
}
"""What a COPY does, each by what it shows."""
