"""Which implementation does the discrete work (visibility, silhouettes). All give the same bits."""

from functools import cache
from importlib.util import find_spec
from typing import Literal, cast

import torch

Backend = Literal["numba", "torch"]

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
    if backend == "nvdiffrast":
        raise RuntimeError(
            f'backend="nvdiffrast" is not supported by this version; use "auto" (see {_INSTALL[backend]})'
        )
    if backend not in ("numba", "torch"):
        raise ValueError(f'backend="{backend}" must be "auto", "numba" or "torch"')
    if backend == "numba" and device.type != "cpu":
        raise ValueError(f'backend="numba" works on the CPU, not on {device}; use "auto" or "torch"')
    return cast("Backend", backend)


@cache
def _installed(name: str) -> bool:
    return find_spec(name) is not None
