#!/bin/sh
# Find OpenGL without a display (Mesa's llvmpipe), with which tests compare the rasterizer; install it if this is root on
# Debian or Ubuntu (some 10 s); otherwise say how.
set -eu
PATH="$PATH:/usr/sbin:/sbin"
packages="libegl1 libgl1 libgl1-mesa-dri"
ldconfig -p | grep -q libEGL_mesa.so && ldconfig -p | grep -q libGL.so.1 && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "no OpenGL without a display; install: sudo apt-get install -y --no-install-recommends $packages" >&2
    exit 2
fi
echo "installing system packages: $packages"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
said=$(apt-get update -qq 2>&1 && apt-get install -y -qq --no-install-recommends $packages 2>&1) || {
    echo "apt-get could not install $packages: $(echo "$said" | tail -n 1)" >&2
    exit 3
}
