"""Latents that a person gives: files of z or of w, checked before anything is made from them."""

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from get3d_cluster.errors import StorageError, UsageError
from get3d_cluster.get3d.config import GeneratorConfig
from get3d_cluster.storage.local import write_atomic

FORMAT = "docs/generating.md says what a file of latents holds"


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """The latents of one shape: standard normal, or styles that are taken as they are."""

    z: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    """[Z] of geometry and of texture"""
    w: NDArray[np.float32] | None = None
    """[num_ws_geo + num_ws_tex, W], geometry first"""


def read_latents(paths: Sequence[Path], config: GeneratorConfig) -> tuple[list[Given], str]:
    """Return the latents of all files, one after the other, and a digest of the files.

    Raises: UsageError naming the file and what is wrong with it.
    """
    given: list[Given] = []
    digest = hashlib.sha256()
    for path in paths:
        data = _bytes_of(path)
        digest.update(hashlib.sha256(data).digest())
        given += _given(path, _arrays(path, data), config)
    return given, digest.hexdigest()


def write_latents(path: Path, w: NDArray[np.float32]) -> None:
    """Write the styles of one shape, [num_ws, W], so that ``read_latents`` gives them back.

    Raises: StorageError if ``path`` cannot be written.
    """
    buffer = io.BytesIO()
    np.savez(buffer, w=w[None].astype(np.float32))
    write_atomic(path, buffer.getvalue())


def _bytes_of(path: Path) -> bytes:
    if path.suffix not in {".npz", ".safetensors"}:
        raise UsageError(f"latents={path} must end with .npz or .safetensors", FORMAT)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"latents={path} does not exist", "give the path of a file of latents") from error
    except OSError as error:
        raise StorageError(
            f"cannot read latents={path}: {error.strerror}", "mend the disk or its rights"
        ) from error


def _arrays(path: Path, data: bytes) -> Mapping[str, NDArray[np.generic]]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.numpy.load(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (
        SafetensorError,
        ValueError,
        KeyError,
        EOFError,
        OSError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        raise UsageError(f"latents={path} cannot be read as {path.suffix}: {error}", FORMAT) from error


def _given(path: Path, arrays: Mapping[str, NDArray[np.generic]], config: GeneratorConfig) -> list[Given]:
    names = {"z_geo", "z_tex", "w"} & set(arrays)
    if names == {"z_geo", "z_tex"}:
        z = [_checked(path, name, arrays[name], [(config.latent_channels,)]) for name in ("z_geo", "z_tex")]
        if len(z[0]) != len(z[1]):
            raise UsageError(f"latents={path}: z_geo holds {len(z[0])} shapes, z_tex {len(z[1])}", FORMAT)
        return [Given(z=(geo, tex)) for geo, tex in zip(*z, strict=True)]
    if names == {"w"}:
        return [Given(w=_slots(w, config)) for w in _checked(path, "w", arrays["w"], _shapes_of_w(config))]
    raise UsageError(
        f"latents={path} holds {sorted(arrays) or 'nothing'}",
        f"it must hold z_geo and z_tex, or w alone: {FORMAT}",
    )


def _shapes_of_w(config: GeneratorConfig) -> list[tuple[int, ...]]:
    return [(config.num_ws_geo + config.num_ws_tex, config.latent_channels), (2, config.latent_channels)]


def _checked(
    path: Path, name: str, values: NDArray[np.generic], shapes: Sequence[tuple[int, ...]]
) -> NDArray[np.float32]:
    """Return values as float32. Raises: UsageError if kind, shape or a number is not what it must be."""
    if not np.issubdtype(values.dtype, np.floating):
        raise UsageError(f"latents={path}: {name} is {values.dtype}, not floating point", FORMAT)
    if values.shape[1:] not in shapes or not len(values):
        wanted = " or ".join(str(["N", *shape]).replace("'", "") for shape in shapes)
        raise UsageError(
            f"latents={path}: {name} is {list(values.shape)}, not {wanted}, as this training needs",
            "give latents of this training, or run= the training that they are of",
        )
    numbers = values.astype(np.float32)
    finite = np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
    if not finite.all():
        raise UsageError(
            f"latents={path}: {name} is not finite in {int((~finite).sum())} of {len(numbers)} shapes,"
            f" first in number {int(np.argmin(finite))}",
            "leave these out",
        )
    return numbers


def _slots(w: NDArray[np.float32], config: GeneratorConfig) -> NDArray[np.float32]:  # [L, W]
    """Return one style for each slot; two stand for all slots of geometry and of texture."""
    if len(w) == config.num_ws_geo + config.num_ws_tex:
        return w
    return np.repeat(w, [config.num_ws_geo, config.num_ws_tex], axis=0)
