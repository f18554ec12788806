"""A packed dataset: plain tar shards and one index that says where each image lies and what its bytes must be.

    index.json          format, resolution, shards (name, size, xxh3_64), samples (below); written last: it means done
    shard-00000.tar     uncompressed; for each model <synset>/<model>/NNN.png and camera.json, sorted by name

Any tar reader can open a shard. Members carry no owner and no time, so packing again gives the same bytes, and
``fingerprint`` (sha256 of the index) names the dataset. Torch-free.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from get3d_cluster.errors import UsageError

FORMAT = 1
INDEX_NAME = "index.json"
REPAIR = "packing again mends it: python launch.py run pack images=<rendered folder> out=<this folder>"
PACK_AGAIN = "pack it with: python launch.py run pack images=<rendered folder> out=<this folder>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image and its camera."""

    key: str
    """<synset>/<model>/<view>, e.g. 02958343/0000-sedan/007."""
    shard: int
    offset: int
    """Of the PNG's first byte in the shard."""
    size: int
    xxh3_64: str
    rotation_deg: float
    elevation_deg: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One tar file."""

    name: str
    size: int
    xxh3_64: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """What a packed dataset holds; sample i of the dataset is ``samples[i]``."""

    resolution: int
    """Width and height of every image in pixels."""
    shards: tuple[Shard, ...]
    samples: tuple[Sample, ...]
    fingerprint: str = ""
    """sha256 of the index file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file on its way into a shard."""

    name: str
    data: bytes


def digest_of(data: bytes | memoryview) -> str:
    """Return the xxh3_64 of ``data`` in hex: 16 digits."""
    return xxhash.xxh3_64_hexdigest(data)


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.tar"


def write_shard(members: Iterable[Member]) -> tuple[bytes, list[tuple[int, int]]]:
    """Return a tar file as bytes, and (offset, size) of each member's data in it.

    The bytes depend on the names and contents alone.
    """
    out, places = io.BytesIO(), []
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.size, info.mode = len(member.data), 0o644
            start = out.tell() + tarfile.BLOCKSIZE  # USTAR: one header block, whatever the name
            tar.addfile(info, io.BytesIO(member.data))
            places.append((start, info.size))
    return out.getvalue(), places


def index_bytes(index: Index) -> bytes:
    """Return the index file; sample rows are arrays in the order of ``columns``, one line each."""
    columns = list(Sample.__dataclass_fields__)
    head = {
        "format": FORMAT,
        "resolution": index.resolution,
        "shards": [asdict(shard) for shard in index.shards],
        "columns": columns,
    }
    rows = [json.dumps([getattr(sample, name) for name in columns]) for sample in index.samples]
    return (json.dumps(head)[:-1] + ',\n"samples": [\n' + ",\n".join(rows) + "\n]}\n").encode()


def read_index(folder: Path) -> Index:
    """Read and check the index of a packed dataset.

    Raises: UsageError if it is missing, damaged, of another format or empty.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        raise UsageError(f"there is no packed dataset at {folder}: {INDEX_NAME} is missing", PACK_AGAIN)
    data = path.read_bytes()
    try:
        index = _parsed(json.loads(data), hashlib.sha256(data).hexdigest())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", f"delete it, then {PACK_AGAIN}") from error
    if not index.samples:
        raise UsageError(f"{path} holds no samples", PACK_AGAIN)
    return index


def read_range(path: Path, offset: int, size: int) -> bytes:
    """Return ``size`` bytes of a file from ``offset``: the only way images are read, so a remote file can stand in.

    Raises: OSError.
    """
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


class PackedImages:
    """The images of a packed dataset, read one by one and checked against their digests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_index(folder)
        _check_sizes(folder, self.index.shards)

    def __len__(self) -> int:
        return len(self.index.samples)

    @property
    def samples(self) -> Sequence[Sample]:
        """Key and camera of every image."""
        return self.index.samples

    @property
    def resolution(self) -> int:
        """Width and height of every image in pixels."""
        return self.index.resolution

    @property
    def fingerprint(self) -> str:
        """Name of exactly these images and cameras, in this order."""
        return self.index.fingerprint

    def read(self, number: int) -> bytes:
        """Return the PNG file of one sample.

        Raises: UsageError naming shard and key if the bytes are not those that were packed.
        """
        sample = self.index.samples[number]
        path = self.folder / self.index.shards[sample.shard].name
        try:
            data = read_range(path, sample.offset, sample.size)
        except OSError as error:
            raise UsageError(
                f"cannot read {sample.key} from {path}: {error.strerror or error}", PACK_AGAIN
            ) from error
        if digest_of(data) != sample.xxh3_64:
            raise UsageError(f"{sample.key} in {path} is damaged: its digest differs", REPAIR)
        return data


def _check_sizes(folder: Path, shards: Sequence[Shard]) -> None:
    for shard in shards:
        path = folder / shard.name
        if not path.is_file():
            raise UsageError(f"{path} is missing, although {INDEX_NAME} lists it", REPAIR)
        if path.stat().st_size != shard.size:
            raise UsageError(f"{path} has {path.stat().st_size} bytes instead of {shard.size}", REPAIR)


def _parsed(fields: dict[str, Any], fingerprint: str) -> Index:
    if fields["format"] != FORMAT:
        raise ValueError(f"format={fields['format']}, this version reads {FORMAT}")
    shards = tuple(Shard(**shard) for shard in fields["shards"])
    columns = fields["columns"]
    samples = tuple(Sample(**dict(zip(columns, row, strict=True))) for row in fields["samples"])
    if any(not 0 <= sample.shard < len(shards) for sample in samples):
        raise ValueError("a sample names a shard that is not listed")
    return Index(
        resolution=int(fields["resolution"]), shards=shards, samples=samples, fingerprint=fingerprint
    )
