#!/bin/sh
# Build nvdiffrast (non-commercial licence) for the training environment in FOLDER: docker/install-nvdiffrast.sh FOLDER
# [WHEELS]. With WHEELS the wheel is left in that folder instead of being installed. Needs git, g++, Python's headers and
# the CUDA toolkit of torch's version. TORCH_CUDA_ARCH_LIST names the GPUs where none is at hand, such as "8.0 9.0+PTX".
set -eu
[ $# -ge 1 ] || {
    echo "usage: sh docker/install-nvdiffrast.sh FOLDER [WHEELS]" >&2
    exit 2
}
root=$(cd "$(dirname "$0")/.." && pwd)
python=$1/bin/python
cuda=$("$python" -c 'import torch; print(torch.version.cuda or "")')
[ -n "$cuda" ] || {
    echo "the torch in $1 was built without CUDA: nvdiffrast needs one with it (pip install from the default index)" >&2
    exit 2
}
nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
"$nvcc" --version 2>/dev/null | grep -q "release $cuda" || {
    echo "$nvcc is not there, or not of CUDA $cuda, which the torch in $1 was built with" >&2
    echo "install that toolkit and set CUDA_HOME to its folder" >&2
    exit 2
}
pip() {
    "$python" -m pip --disable-pip-version-check "$@"
}
# Its setup imports torch, so it is built with what FOLDER has and not in an environment of its own.
pip install --quiet setuptools wheel ninja
if [ $# -ge 2 ]; then
    pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$2" -r "$root/requirements-nvdiffrast.txt"
else
    pip install --quiet --no-build-isolation -r "$root/requirements-nvdiffrast.txt"
fi
