#!/bin/sh
# Make the training environment in FOLDER, or bring it up to date: docker/install-train.sh FOLDER [PART ...]
# Parts: torch; packages (what else running needs); tools (what only checks and tests need); project (this code,
# editable). All of them by default. PYTHON is the interpreter: Python 3.11.
set -eu
[ $# -ge 1 ] || {
    echo "usage: sh docker/install-train.sh FOLDER [torch] [packages] [tools] [project]" >&2
    exit 2
}
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$1
shift
[ $# -ge 1 ] || set -- torch packages tools project
for part in "$@"; do
    case $part in torch | packages | tools | project) ;; *)
        echo "docker/install-train.sh: no part $part; there are torch, packages, tools, project" >&2
        exit 2
        ;;
    esac
done

install() {
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

# Prints the lines of requirements.txt that sed's program $1 selects.
lines() {
    sed -n "$1" "$root/requirements.txt"
}

[ -x "$folder/bin/python" ] || "${PYTHON:-python3.11}" -m venv "$folder"
for part in "$@"; do
    case $part in
    torch) lines '/^torch==/p' | install -r /dev/stdin ;;
    packages) lines '/^# tools/q; /^torch==/!p' | install -r /dev/stdin ;;
    tools) lines '/^# tools/,$p' | install -r /dev/stdin ;;
    project) install --no-deps --editable "$root" ;;
    esac
done
