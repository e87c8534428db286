"""Walks the first hour of a new user, on this machine or on a fresh Debian, and prints what each step took.

A box holds Python, git and certificates, and no python3-venv unless ``--with`` names it. In it an ordinary
user clones this checkout's last commit and does what the pages say. The box has the network's settings of
this machine (name servers, certificates, pip's configuration); ``--share`` shares a folder that these name.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = ("python3", "git", "ca-certificates")
# What a user of this machine has for reaching a package index; copied into a box where it is there.
SETTINGS = ("/etc/hosts", "/etc/resolv.conf", "/etc/pip.conf", "/etc/xdg/pip", "/etc/ssl/certs")
HANDED_ON = re.compile(r"^(PIP_|SSL_CERT_|REQUESTS_CA_BUNDLE$|(https?|no)_proxy$)", re.IGNORECASE)
USER = "newcomer"


@dataclass(frozen=True)
class Step:
    """A thing to do, in the words of its page, and the seconds that the page states."""

    name: str
    command: str
    stated_s: float | None = None


def blocks(page: str, language: str, section: str = "") -> str:
    """The code of a page's blocks, or of those of one section, in order."""
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    if section:
        text = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


def steps(work: Path) -> dict[str, Step]:
    """The walks, each with its commands."""
    programs = {
        "first-steps": blocks("README.md", "python", "First steps"),
        "tutorial": blocks("docs/tutorial/first-guard.md", "python"),
    }
    for name, program in programs.items():
        assert program, name
        (work / f"{name}.py").write_text(program, encoding="utf-8")
    activated = ". .venv/bin/activate;"
    return {
        "install": Step("README: scripts/demo, the first time", f"scripts/demo --picture {work}/first.html"),
        "demo": Step("README: scripts/demo", f"scripts/demo --picture {work}/second.html", 60),
        "first-steps": Step("README: First steps", f"{activated} {_in_two_terminals(work)}", 60),
        "tutorial": Step("tutorial: a bot in ten minutes", f"{activated} python {work}/tutorial.py", 600),
        "bot": Step(
            "tutorial: a bot of 60 lines",
            f"{activated} lockguard servers --exchange --fence -- python docs/examples/first_bot.py",
            1200,
        ),
        "guide": Step("guide: what it is worth", f"{activated} python -m lockguard_lab.own_bot", 60),
        "environment": Step("CONTRIBUTING: what the tests need", "scripts/test --version"),
        "quick": Step("README: scripts/test --quick", "scripts/test --quick -q", 120),
    }


def _in_two_terminals(work: Path) -> str:
    """Shell for a page that has servers in one terminal and a program in another."""
    return f"""lockguard servers >{work}/servers & servers=$!
        until grep -q DATABASE_URL= {work}/servers; do kill -0 $servers || exit 1; sleep 0.1; done
        eval "$(grep ^export {work}/servers)"
        code=0; python {work}/first-steps.py || code=$?
        kill -TERM $servers; wait $servers || true; exit $code"""


def take(step: Step, log: Path) -> bool:
    """Do one step and print what it took; returns whether it went well."""
    began = time.monotonic()
    with log.open("w") as output:
        code = subprocess.run(
            ["/bin/sh", "-c", step.command],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    took = time.monotonic() - began
    load = f"{os.getloadavg()[0]:.1f}"
    stated = "" if step.stated_s is None else f"{step.stated_s:.0f} s"
    ended = "ok" if code == 0 else f"exit code {code}"
    print(f"{step.name:40} {took:7.1f} s {stated:>8}  load {load:>5}  {ended}")
    if code != 0:
        print(f"--- {step.command}\n{log.read_text()[-3000:]}")
    sys.stdout.flush()
    return code == 0


def walk(names: list[str]) -> int:
    """Walk here; returns the exit code."""
    print(f"Python {'.'.join(map(str, sys.version_info[:3]))}, {os.cpu_count()} cores")
    print(f"{'step':40} {'took':>9} {'stated':>8}")
    with tempfile.TemporaryDirectory() as work:
        found = steps(Path(work))
        went = [take(found[name], Path(work) / "log") for name in names or found]
    return 0 if all(went) else 1


def inside(names: list[str]) -> str:
    """What the user does in a box, whose /src is this checkout."""
    walks = " ".join(map(shlex.quote, names))
    return f"""set -eu; cd
        git config --global --add safe.directory '*'
        git clone --quiet file:///src lockguard
        exec lockguard/scripts/first-hour {walks}"""


def settings() -> dict[str, str]:
    """The environment's part of how this machine reaches a package index."""
    return {key: value for key, value in os.environ.items() if HANDED_ON.search(key)}


def pip_settings() -> list[Path]:
    """This user's own configuration of pip."""
    home = Path.home()
    return [path for path in (home / ".config/pip/pip.conf", home / ".pip/pip.conf") if path.is_file()]


def in_docker(image: str, packages: list[str], shares: list[Path], names: list[str]) -> int:
    """Walk in a container; returns the exit code."""
    # An engine has name servers of its own, and a mounted folder of certificates could not be installed into.
    given = [Path(one) for one in SETTINGS if one not in {"/etc/hosts", "/etc/resolv.conf"}]
    given = [path for path in (*given, *pip_settings()) if path.exists()]
    mounts = [f"{CHECKOUT}:/src:ro", *(f"{path}:/host{path}:ro" for path in given)]
    mounts += [f"{share}:{share}:ro" for share in shares]
    user = f"HOME=$(getent passwd {USER} | cut -d: -f6); export HOME; {inside(names)}"
    prepare = [
        "set -eu; export DEBIAN_FRONTEND=noninteractive; apt-get update -qq",
        f"apt-get install -y -qq --no-install-recommends {' '.join(packages)} >/dev/null",
        f"useradd --create-home --shell /bin/bash {USER}",
        *copies("", [path for path in given if str(path) in SETTINGS], "/host"),
        *pip_copies("/", "/host"),
        f"exec su --preserve-environment --command {shlex.quote(user)} {USER}",
    ]
    words = ["docker", "run", "--rm", "--shm-size=1g", *(f"--volume={mount}" for mount in mounts)]
    words += [f"--env={key}={value}" for key, value in settings().items()]
    return subprocess.run([*words, image, "sh", "-c", "\n".join(prepare)], check=False).returncode


def copies(root: str, paths: list[Path], origin: str = "") -> list[str]:
    """Shell that copies settings of this machine into a box."""
    return [
        f"mkdir -p {root}{path.parent}; cp -rL {origin}{path} {root}{path.parent}/ 2>/dev/null || true"
        for path in paths
    ]


def pip_copies(root: str, origin: str = "") -> list[str]:
    """Shell that gives the user of a box this user's configuration of pip."""
    return [
        f"home=$(chroot {root} getent passwd {USER} | cut -d: -f6); own={root}$home/.config/pip;"
        f' mkdir -p "$own"; cp {origin}{shlex.quote(str(path))} "$own/pip.conf";'
        f" chroot {root} chown -R {USER} $home/.config"
        for path in pip_settings()
    ]


def in_debootstrap(suite: str, packages: list[str], shares: list[Path], names: list[str]) -> int:
    """Walk in a folder that debootstrap makes, with mounts of its own; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="lockguard-first-hour-") as place:
        script = Path(place) / "box.sh"
        make = f"debootstrap --variant=minbase --include={','.join(packages)} {shlex.quote(suite)}"
        script.write_text(box_script(Path(place) / "root", make, shares, inside(names)), encoding="utf-8")
        print(f"making a Debian {suite} with {', '.join(packages)}", flush=True)
        # Mounts and processes, debootstrap's too, go with this one however it ends: a mount that was left
        # behind would be emptied with the folder.
        own = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            script,
        ]
        return subprocess.run(own, check=False).returncode


def box_script(root: Path, make: str, shares: list[Path], command: str) -> str:
    """Shell that makes a box and walks in it."""
    at = shlex.quote(str(root))
    mounts = [(CHECKOUT, "/src"), *((share, str(share)) for share in shares)]
    own = {"HOME": "$home", "USER": USER, "LANG": "C.UTF-8", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    given = {key: shlex.quote(value) for key, value in settings().items()}
    environment = " ".join(f"{key}={value}" for key, value in (own | given).items())
    lines = [
        "set -eu",
        f"{make} {at} >{at}.log 2>&1 || {{ tail -n 20 {at}.log >&2; exit 1; }}",
        f"chroot {at} useradd --create-home --shell /bin/bash {USER}",
        *copies(at, [Path(one) for one in SETTINGS if Path(one).exists()]),
        *pip_copies(at),
        *(
            f"mkdir -p {at}{there}; mount --bind {shlex.quote(str(path))} {at}{there}"
            for path, there in mounts
        ),
        f"mount -t proc proc {at}/proc",
        f"mount -t tmpfs -o mode=1777 tmpfs {at}/dev/shm",
        f"home=$(chroot {at} getent passwd {USER} | cut -d: -f6)",
        f"exec chroot --userspec={USER}: {at} env -i {environment} bash -c {shlex.quote(command)}",
    ]
    return "\n".join(lines)


def main() -> int:
    """Walk where the arguments say; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/first-hour", description=__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--docker", metavar="IMAGE", help="in a container, as debian:12")
    where.add_argument(
        "--debootstrap", metavar="SUITE", help="in a folder, as bookworm; needs root and debootstrap"
    )
    parser.add_argument(
        "--with", dest="more", metavar="PACKAGE", action="append", default=[], help="in the box too"
    )
    parser.add_argument("--share", metavar="DIR", type=Path, action="append", default=[], help="with the box")
    parser.add_argument(
        "walk", nargs="*", help="install, demo, first-steps, tutorial, bot, guide, environment, quick; or all"
    )
    arguments = parser.parse_args()
    packages = [*PACKAGES, *arguments.more]
    if arguments.debootstrap and (os.geteuid() != 0 or shutil.which("debootstrap") is None):
        print("scripts/first-hour: --debootstrap needs root, and debootstrap on PATH", file=sys.stderr)
        return 2
    if arguments.docker and shutil.which("docker") is None:
        print("scripts/first-hour: --docker needs docker on PATH", file=sys.stderr)
        return 2
    if arguments.docker:
        return in_docker(arguments.docker, packages, arguments.share, arguments.walk)
    if arguments.debootstrap:
        return in_debootstrap(arguments.debootstrap, packages, arguments.share, arguments.walk)
    known = steps_named()
    if unknown := [name for name in arguments.walk if name not in known]:
        print(
            f"scripts/first-hour: {unknown[0]!r} is no walk: name one of {', '.join(known)}", file=sys.stderr
        )
        return 2
    return walk(arguments.walk)


def steps_named() -> list[str]:
    """The names of the walks."""
    with tempfile.TemporaryDirectory() as work:
        return list(steps(Path(work)))


if __name__ == "__main__":
    sys.exit(main())
