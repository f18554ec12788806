"""Weights from elsewhere: ``.pt`` and safetensors files, of which only tensors and plain values are taken."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from get3d_cluster.errors import UsageError


def load_foreign(path: Path) -> Mapping[str, Any]:
    """Return what a ``.pt``, ``.pth`` or ``.safetensors`` file holds, on the host. Nothing in it is ever run.

    Files that need classes of another program to be read are refused: whoever trusts one can turn it into a file of
    plain ``state_dict`` there. Raises: UsageError.
    """
    import torch

    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251  the one place that may
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", "check the path") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{path} is damaged, or holds more than tensors and plain values, which may run code: {first}",
            "where it comes from, save it anew as torch.save(model.state_dict(), PATH)",
        ) from error
    if not isinstance(loaded, Mapping):
        raise UsageError(
            f"{path} holds a {type(loaded).__name__}, not a table of tensors",
            "where it comes from, save it anew as torch.save(model.state_dict(), PATH)",
        )
    return loaded


def _safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", "check the path") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise UsageError(
            f"{path} is damaged, or no safetensors file: {str(error)[:200]}",
            "copy it anew from where it comes from",
        ) from error
