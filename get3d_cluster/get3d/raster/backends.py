"""Which implementation does the discrete work (visibility, topology, silhouettes).

numba and torch give the same bits. nvdiffrast is asked for visibility only, and decides on a coarser grid.
"""

from functools import cache
from importlib.util import find_spec
from typing import Literal, cast

import torch

Backend = Literal["numba", "torch", "nvdiffrast"]

_INSTALL = {
    "numba": "pip install -r requirements.txt",
    "nvdiffrast": "pip install --no-build-isolation -r requirements-nvdiffrast.txt",
}


def choose_backend(backend: str, device: torch.device) -> Backend:
    """Resolve a backend by name; "auto" is numba on the CPU where it is installed, else torch.

    Raises: ValueError for an unknown name or one that cannot work on the device, RuntimeError with the
        command that installs it for one that is missing.
    """
    if backend == "auto":
        return "numba" if device.type == "cpu" and _installed("numba") else "torch"
    if backend in ("numba", "nvdiffrast") and not _installed(backend):
        raise RuntimeError(f'backend="{backend}" is not installed; {_INSTALL[backend]}')
    if backend not in ("numba", "torch", "nvdiffrast"):
        raise ValueError(f'backend="{backend}" must be "auto", "numba", "torch" or "nvdiffrast"')
    if backend == "numba" and device.type != "cpu":
        raise ValueError(f'backend="numba" works on the CPU, not on {device}; use "auto" or "torch"')
    if backend == "nvdiffrast" and device.type != "cuda":
        raise ValueError(f'backend="nvdiffrast" works on CUDA, not on {device}; use "auto" or "torch"')
    return cast("Backend", backend)


@cache
def _installed(name: str) -> bool:
    return find_spec(name) is not None
