"""A packed dataset: plain tar shards and one index that says where each image lies and what its bytes must be.

    index.json          format, resolution, shards (name, size, xxh3_64), samples (below); written last: it means done
    shard-00000.tar     uncompressed; for each model <synset>/<model>/NNN.png (or .tif) and camera.json, sorted by name

Any tar reader can open a shard. Members carry no owner and no time, so packing again gives the same bytes, and
``fingerprint`` (sha256 of the index) names the dataset. It lies in a folder or behind a URL. Torch-free.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

import numpy as np
import xxhash

from get3d_cluster.data.cache import PieceCache
from get3d_cluster.data.source import Location, Source, open_source
from get3d_cluster.errors import Get3dError, UsageError

FORMAT = 1
INDEX_NAME = "index.json"
REPAIR = (
    "packing again, as a run of a new name, mends it: "
    "python launch.py run pack --name again images=<rendered folder> out=<this folder>"
)
FIND_ALL = "python launch.py run check data=<this folder> lists all that is wrong"
PACK_AGAIN = "pack it with: python launch.py run pack images=<rendered folder> out=<this folder>"

LONGEST_FOLDER_BYTES = 155
_SAMPLES, _END = b'"samples": [\n', b"\n]}\n"
_CHUNK_BYTES, _CHUNK_ROWS = 2**20, 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image and its camera."""

    key: str
    """<synset>/<model>/<view>, e.g. 02958343/0000-sedan/007."""
    shard: int
    offset: int
    """Of the image's first byte in the shard."""
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
    samples: Sequence[Sample]
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


def fits_into_shard(model: str) -> bool:
    """Tell whether a shard can hold the images of <synset>/<model>. Source: POSIX ustar, the field ``prefix``."""
    try:
        return len(model.encode()) <= LONGEST_FOLDER_BYTES
    except UnicodeEncodeError:
        return False


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
    return json.dumps(head)[:-1].encode() + b",\n" + _SAMPLES + ",\n".join(rows).encode() + _END


def read_index(location: Location) -> Index:
    """Read and check the index of a packed dataset.

    Raises: UsageError if it is missing, damaged, of another format or empty; StorageError if it is out of reach.
    """
    source = open_source(location)
    path = source.path_of(INDEX_NAME)
    try:
        data = source.read(INDEX_NAME)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"there is no packed dataset at {location}: {INDEX_NAME} is missing", PACK_AGAIN
        ) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}", PACK_AGAIN) from error
    try:
        index = _parsed(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", f"delete it; {REPAIR}") from error
    if not index.samples:
        raise UsageError(f"{path} holds no samples", PACK_AGAIN)
    return index


class Samples(Sequence[Sample]):
    """The samples of an index as columns: a tenth of the memory of so many objects, which are made when looked at."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self._columns = columns

    @classmethod
    def of(cls, names: Sequence[str], rows: Iterable[Sequence[Sequence[Any]]]) -> "Samples":
        """Take in rows, chunk by chunk. Raises: ValueError, KeyError, TypeError if they do not fit."""
        chunks: dict[str, list[Any]] = {name: [] for name in _DTYPES}
        for chunk in rows:
            values = dict(zip(names, zip(*chunk, strict=True), strict=True))
            for name, dtype in _DTYPES.items():
                chunks[name].append(np.array([_ENCODED.get(name, _same)(v) for v in values[name]], dtype))
        return cls({name: np.concatenate(parts) if parts else np.empty(0) for name, parts in chunks.items()})

    def __len__(self) -> int:
        return len(self._columns["shard"])

    @overload
    def __getitem__(self, number: int) -> Sample: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, number: int | slice) -> Sample | tuple[Sample, ...]:
        if isinstance(number, slice):
            return tuple(self[i] for i in range(*number.indices(len(self))))
        number = range(len(self))[number]
        return next(self._rows(number, number + 1))

    def __iter__(self) -> Iterator[Sample]:
        for begin in range(0, len(self), _CHUNK_ROWS):
            yield from self._rows(begin, begin + _CHUNK_ROWS)

    def values(self, name: str) -> list[Any]:
        """Return one field of all samples, without making them."""
        found: list[Any] = self._columns[name].tolist()
        return found

    def _rows(self, begin: int, end: int) -> Iterator[Sample]:
        columns = {name: column[begin:end].tolist() for name, column in self._columns.items()}
        columns["key"] = [key.decode() for key in columns["key"]]
        columns["xxh3_64"] = [f"{digest:016x}" for digest in columns["xxh3_64"]]
        for values in zip(*columns.values(), strict=True):
            yield Sample(**dict(zip(columns, values, strict=True)))

    def are_in(self, num_shards: int) -> bool:
        """Say whether every sample lies in one of so many shards."""
        shards = self._columns["shard"]
        return not len(self) or bool(shards.min() >= 0 and shards.max() < num_shards)


_DTYPES = {
    "key": np.bytes_,
    "shard": np.int32,
    "offset": np.int64,
    "size": np.int64,
    "xxh3_64": np.uint64,
    "rotation_deg": np.float64,
    "elevation_deg": np.float64,
}
_ENCODED: dict[str, Any] = {"key": str.encode, "xxh3_64": lambda digits: int(digits, 16)}


def _same(value: Any) -> Any:
    return value


class PackedImages:
    """The images of a packed dataset, read one by one and checked against their digests.

    For any number of threads. Of a remote dataset, copies are kept in ``cache``.
    """

    def __init__(self, location: Location, cache: PieceCache | None = None) -> None:
        self.location = location
        self.index = read_index(location)
        self._source = open_source(location)
        self._cache = cache if self._source.is_remote else None
        _check_sizes(self._source, self.index.shards)

    def __len__(self) -> int:
        return len(self.index.samples)

    @property
    def samples(self) -> Sequence[Sample]:
        """Key and camera of every image."""
        return self.index.samples

    def angles_deg(self) -> list[tuple[float, float]]:
        """Return rotation and elevation of every image's camera."""
        samples = self.index.samples
        assert isinstance(samples, Samples)
        return list(zip(samples.values("rotation_deg"), samples.values("elevation_deg"), strict=True))

    @property
    def resolution(self) -> int:
        """Width and height of every image in pixels."""
        return self.index.resolution

    @property
    def fingerprint(self) -> str:
        """Name of exactly these images and cameras, in this order."""
        return self.index.fingerprint

    @property
    def is_remote(self) -> bool:
        """Whether reading is slow enough to be done by many threads."""
        return self._source.is_remote

    def place_of(self, sample: Sample) -> str:
        """Return the whole name of the shard that holds a sample, for people."""
        return self._source.path_of(self.index.shards[sample.shard].name)

    def read(self, number: int) -> bytes:
        """Return the image file of one sample.

        Raises: UsageError naming shard and key if the bytes are not those that were packed, even when fetched again;
        StorageError if they stay out of reach.
        """
        sample = self.index.samples[number]
        kept = self._kept(sample)
        if kept is not None:
            return kept
        data = self._fetched(sample)
        if self.is_remote and not _is_intact(data, sample):
            data = self._fetched(sample)  # it may have been damaged on its way
        if not _is_intact(data, sample):
            what = f"{sample.key} in {self.place_of(sample)} is damaged: its digest differs"
            raise UsageError(what, f"{REPAIR}; {FIND_ALL}")
        if self._cache:
            self._cache.put(_piece(sample), data)
        return data

    def _kept(self, sample: Sample) -> bytes | None:
        """Return the copy on this machine, if it is there and intact."""
        data = self._cache.get(_piece(sample)) if self._cache else None
        if self._cache and data is not None and not _is_intact(data, sample):
            self._cache.drop(_piece(sample))
            return None
        return data

    def _fetched(self, sample: Sample) -> bytes:
        name = self.index.shards[sample.shard].name
        try:
            return self._source.read(name, sample.offset, sample.size)
        except OSError as error:
            what = f"cannot read {sample.key} from {self.place_of(sample)}: {error.strerror or error}"
            raise UsageError(what, PACK_AGAIN) from error
        except Get3dError as error:
            raise type(error)(f"cannot read {sample.key}: {error.what}", error.way_out) from error


def _is_intact(data: bytes, sample: Sample) -> bool:
    return digest_of(data) == sample.xxh3_64


def _piece(sample: Sample) -> str:
    """Return the name of a sample's copy: of its content, so that it can never be another's."""
    return f"{sample.xxh3_64}-{sample.size}"


def _check_sizes(source: Source, shards: Sequence[Shard]) -> None:
    try:
        sizes = source.sizes([shard.name for shard in shards])
    except FileNotFoundError as error:
        raise UsageError(f"{error.filename} is missing, although {INDEX_NAME} lists it", REPAIR) from error
    for shard, size in zip(shards, sizes, strict=True):
        if size != shard.size:
            raise UsageError(f"{source.path_of(shard.name)} has {size} bytes instead of {shard.size}", REPAIR)


def _parsed(data: bytes) -> Index:
    """Read an index as ``index_bytes`` writes it: one row a line, so that it is never in memory twice."""
    head_end, rows_end = data.find(_SAMPLES), len(data) - len(_END)
    if head_end < 0 or not data.endswith(_END):
        raise ValueError("it is cut short, or not as pack writes it")
    fields = json.loads(data[:head_end].rstrip().removesuffix(b",") + b"}")
    if fields["format"] != FORMAT:
        raise ValueError(f"format={fields['format']}, this version reads {FORMAT}")
    shards = tuple(Shard(**shard) for shard in fields["shards"])
    samples = Samples.of(fields["columns"], _row_chunks(data, head_end + len(_SAMPLES), rows_end))
    if not samples.are_in(len(shards)):
        raise ValueError("a sample names a shard that is not listed")
    return Index(
        resolution=int(fields["resolution"]),
        shards=shards,
        samples=samples,
        fingerprint=hashlib.sha256(data).hexdigest(),
    )


def _row_chunks(text: bytes, begin: int, end: int) -> Iterator[list[list[Any]]]:
    """Return the rows of an index, about a megabyte of text at a time."""
    while begin < end:
        cut = text.find(b",\n", begin + _CHUNK_BYTES, end)
        cut = end if cut < 0 else cut
        yield json.loads(b"[" + text[begin:cut] + b"]")
        begin = cut + 2
