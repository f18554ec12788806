#!/bin/sh
# Find what the two environments need of the system. Installs it as root on Debian or Ubuntu; otherwise says how.
set -eu
missing=""
for name in $RENDER_LIBS; do
    case $name in
    libx11-6) file=libX11.so.6 ;; libxrender1) file=libXrender.so.1 ;; libxfixes3) file=libXfixes.so.3 ;;
    libxi6) file=libXi.so.6 ;; libxkbcommon0) file=libxkbcommon.so.0 ;; libsm6) file=libSM.so.6 ;;
    libgl1) file=libGL.so.1 ;; *) file=$name ;;
    esac
    ldconfig -p | grep -q "$file" || missing="$missing $name"
done
[ -n "$PYTHON" ] || missing="$missing python3.11"
if [ -n "$PYTHON" ]; then
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
