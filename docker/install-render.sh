#!/bin/sh
# Make the render environment (Blender as a Python module) in FOLDER, or bring it up to date:
# docker/install-render.sh FOLDER. PYTHON is the interpreter: Python 3.11.
set -eu
[ $# -eq 1 ] || {
    echo "usage: sh docker/install-render.sh FOLDER" >&2
    exit 2
}
root=$(cd "$(dirname "$0")/.." && pwd)
[ -x "$1/bin/python" ] || "${PYTHON:-python3.11}" -m venv "$1"
"$1/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/requirements-render.txt"
