#!/bin/sh
# Find what the environments need of the system: docker/system.sh [PACKAGE ...]
# Installs it as root on Debian or Ubuntu; otherwise says how. PYTHON is the interpreter (python3.11 by default; empty:
# there is none yet); RENDER_LIBS are the packages that Blender's module loads, empty where nothing is rendered.
set -eu
PATH=$PATH:/usr/sbin:/sbin # ldconfig, for users who have no such folders on their path
PYTHON=${PYTHON-$(command -v python3.11 || true)}
RENDER_LIBS=${RENDER_LIBS-libx11-6 libxrender1 libxfixes3 libxi6 libxkbcommon0 libsm6 libgl1}
missing=""
for name in $RENDER_LIBS "$@"; do
    case $name in
    libx11-6) file=libX11.so.6 ;; libxrender1) file=libXrender.so.1 ;; libxfixes3) file=libXfixes.so.3 ;;
    libxi6) file=libXi.so.6 ;; libxkbcommon0) file=libxkbcommon.so.0 ;; libsm6) file=libSM.so.6 ;;
    libgl1) file=libGL.so.1 ;; *) file="" ;;
    esac
    if [ -n "$file" ]; then
        ldconfig -p | grep -q "$file" || missing="$missing $name"
    else
        dpkg -s "$name" >/dev/null 2>&1 || missing="$missing $name"
    fi
done
if [ -z "$PYTHON" ]; then
    missing="$missing python3.11 python3.11-venv"
else
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
        echo "$PYTHON is not Python 3.11, which Blender's module needs." >&2
        echo "Name one: make setup PYTHON=/path/to/python3.11" >&2
        exit 2
    }
    "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3.11-venv"
fi
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing system packages:$missing"
    export DEBIAN_FRONTEND=noninteractive
    said=$(apt-get update -qq 2>&1 && apt-get install -y -qq --no-install-recommends $missing 2>&1) || {
        echo "$said" | tail -n 20 >&2
        exit 3
    }
else
    echo "missing system packages:$missing" >&2
    echo "install them, then try again: sudo apt-get install -y --no-install-recommends$missing" >&2
    exit 2
fi
