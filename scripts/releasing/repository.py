"""The checkout's git: what stands against a release, a clone to make it in, and the commit brought back."""

from __future__ import annotations

from pathlib import Path

from packaging.version import InvalidVersion, Version

from releasing.tools import Refused, ToolFailed, run

BRANCH = "main"
# What a database goes through once, of the fence and of the positions.
STEPS = (
    "integrations/lockguard_postgres/sql/0*.sql",
    "integrations/lockguard_positions/sql/migrations/*.sql",
)
# What makes a commit of the clone one like those of the checkout.
COMMITTING = (
    "user.name",
    "user.email",
    "user.signingkey",
    "commit.gpgsign",
    "gpg.format",
    "gpg.program",
    "gpg.ssh.program",
)


def git(checkout: Path, *words: str | Path) -> str:
    """Run git in a checkout."""
    return run("git", "-C", checkout, *words, cwd=checkout).strip()


def refuse_unless_clean_main(checkout: Path) -> None:
    """Refuse a checkout whose head is not what was committed on the branch of releases."""
    # By name as it is, whatever letters it has, and new files too, whatever git is set to show.
    asked = ("status", "--porcelain", "-z", "--no-renames", "--untracked-files=normal")
    changed = run("git", "-C", checkout, *asked, cwd=checkout).split("\0")[:-1]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise Refused(f"{changed[0][3:]}{more} not committed: commit or remove what is there")
    try:
        branch = git(checkout, "symbolic-ref", "--quiet", "--short", "HEAD")
    except ToolFailed:
        raise Refused(f"no branch is checked out: git switch {BRANCH}") from None
    if branch != BRANCH:
        raise Refused(f"the branch is {branch}: git switch {BRANCH}")
    try:
        git(checkout, "var", "GIT_COMMITTER_IDENT")
    except ToolFailed:
        raise Refused("git does not know who commits: git config user.name and user.email") from None


def refuse_shallow(checkout: Path) -> None:
    """Refuse a clone without its history: it lacks the tags by which a released version is known."""
    if git(checkout, "rev-parse", "--is-shallow-repository") == "true":
        raise Refused("this clone is shallow and may lack released tags: git fetch --unshallow --tags")


def released_versions(checkout: Path) -> dict[str, Version]:
    """The versions that are tagged, by tag."""
    found = {}
    for tag in git(checkout, "tag", "--list", "v*").splitlines():
        try:
            found[tag] = Version(tag[1:])
        except InvalidVersion:
            continue
    return found


def refuse_changed_steps(checkout: Path) -> None:
    """Refuse a step of a schema that has changed since it was released: who has it never gets it again."""
    for tag in sorted(released_versions(checkout)):
        changes = git(
            checkout, "diff", "--name-only", "--diff-filter=MDR", "--no-renames", tag, "HEAD", "--", *STEPS
        )
        for name in changes.splitlines()[:1]:
            raise Refused(
                f"{name} has changed since {tag} released it: restore it, and add a step behind the last"
            )


def clone(checkout: Path, target: Path, tag: str | None = None) -> Path:
    """Clone the checkout's head, or a tag of it, with what it commits as."""
    if tag is not None and tag not in released_versions(checkout):
        raise Refused(f"{tag!r} is no tag of a version here: git fetch --tags, or see git tag --list 'v*'")
    run("git", "clone", "--quiet", "--shared", "--no-tags", "--no-checkout", checkout, target, cwd=checkout)
    commit = git(checkout, "rev-parse", f"refs/tags/{tag}^{{commit}}" if tag else "HEAD")
    git(target, "checkout", "--quiet", "--detach", commit)
    for key in COMMITTING:
        try:
            value = git(checkout, "config", "--get", key)
        except ToolFailed:
            continue
        git(target, "config", key, value)
    return target


def commit_of(checkout: Path) -> tuple[str, int]:
    """The head's id, and its time in seconds since 1970."""
    commit, when = git(checkout, "show", "--no-patch", "--format=%H %ct", "HEAD").split()
    return commit, int(when)


def commit_all(checkout: Path, message: str) -> None:
    """Commit what has changed, if anything has."""
    if git(checkout, "status", "--porcelain"):
        git(checkout, "commit", "--quiet", "--all", "--message", message)


def bring_in(checkout: Path, source: Path, *, before: str, tag: str, message: str) -> None:
    """Tag the clone's commit here and move the branch on to it; on failure the checkout is as it was."""
    refuse_unless_clean_main(checkout)
    if git(checkout, "rev-parse", "HEAD") != before:
        raise Refused("the branch has moved on while the release was made: begin anew")
    git(checkout, "fetch", "--quiet", "--no-tags", source, "HEAD")
    commit, _ = commit_of(source)
    git(checkout, "tag", "--annotate", "--message", message, tag, commit)
    try:
        git(checkout, "merge", "--quiet", "--ff-only", commit)
    except BaseException:
        git(checkout, "tag", "--delete", tag)
        # A merge writes the files before it moves the branch. What somebody changed meanwhile is left alone.
        git(checkout, "read-tree", "-m", "-u", commit, before)
        raise
