#!/bin/sh
# Find the Khronos glTF validator, with which tests judge the meshes we write; put it into .node of this folder if node
# and npm are here, or this is root on Debian or Ubuntu, which installs them (under a minute); otherwise say how.
set -eu
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin"
version=2.0.0-dev.3.10
found=.node/node_modules/gltf-validator/package.json
missing=""
for name in node npm; do
    command -v $name >/dev/null || missing="$missing $name"
done
case $missing in "" | " npm") grep -qs "\"version\": \"$version\"" $found && exit 0 ;; esac
packages=$(echo "$missing" | sed 's/node/nodejs/')
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "no$missing; install: sudo apt-get install -y --no-install-recommends$packages" >&2
        exit 2
    fi
    echo "installing system packages:$packages"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    said=$(apt-get update -qq 2>&1 && apt-get install -y -qq --no-install-recommends $packages 2>&1) || {
        echo "apt-get could not install$packages: $(echo "$said" | tail -n 1)" >&2
        exit 3
    }
fi
echo "installing gltf-validator $version into .node"
said=$(npm install --prefix .node --no-save --no-audit --no-fund --fetch-retries=1 "gltf-validator@$version" 2>&1) || {
    echo "npm could not install gltf-validator $version: $(echo "$said" | grep -i "error\|ERR!" | head -n 1)" >&2
    exit 3
}
