# Sourced by the other scripts, from the checkout's top directory. `use_environment demo` (or dev) makes
# .venv if need be; afterwards .venv/bin holds the commands. POSIX sh.

# What a user has exported for other Pythons must not reach ours. The last one would have each of the many processes
# of a test compile all modules again.
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP VIRTUAL_ENV PYTHONDONTWRITEBYTECODE || true

# Prints nothing if $1 is a Python that can make the environment, otherwise why it cannot.
why_not() {
    command -v "$1" >/dev/null 2>&1 || {
        echo "is not there"
        return
    }
    answer=$(
        "$1" - 2>/dev/null <<'CHECK'
import sys
if sys.version_info < (3, 11):
    print("is Python %d.%d, too old" % sys.version_info[:2])
else:
    import importlib.util as there, shutil
    # Where ensurepip is split off, as on Debian, scripts/bringing_pip.py does without.
    other_ways = there.find_spec("pip") or (shutil.which("apt-get") and shutil.which("dpkg-deb"))
    if shutil.which("uv") or there.find_spec("venv") and (there.find_spec("ensurepip") or other_ways):
        print("usable")
    else:
        print("cannot make environments (it lacks venv or ensurepip: install uv)")
CHECK
    ) || true
    case $answer in
    usable) ;;
    *) echo "${answer:-does not run}" ;;
    esac
}

# Prints the first usable Python.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        reason=$(why_not "$PYTHON")
        [ -z "$reason" ] || {
            echo "PYTHON=$PYTHON $reason: name a Python 3.11 or newer, or unset PYTHON" >&2
            return 1
        }
        echo "$PYTHON"
        return
    fi
    reasons=""
    for candidate in python3.13 python3.12 python3.11 python3 python3.14; do
        reason=$(why_not "$candidate")
        [ -n "$reason" ] || {
            echo "$candidate"
            return
        }
        [ "$reason" = "is not there" ] || reasons="$reasons; $candidate $reason"
    done
    echo "no usable Python 3.11 or newer on PATH${reasons}: install one, or name one with PYTHON=/path/to/python3" >&2
    return 1
}

# $1: demo or dev, the name of a file in requirements/.
use_environment() {
    if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && .venv/bin/python scripts/environment.py --check "$1"; then
        return
    fi
    python=$(find_python) || exit 2
    "$python" scripts/environment.py "$1" || exit 2
}
