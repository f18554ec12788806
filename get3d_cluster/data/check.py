"""Compares a packed dataset with its index: which images are missing, damaged, or there twice. Torch-free."""

import contextlib
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import xxhash

from get3d_cluster.data.format import Index, Sample, Shard, digest_of
from get3d_cluster.data.source import Source
from get3d_cluster.errors import StorageError, UsageError

BLOCK_BYTES = 8 * 2**20
"""Read at once; a shard may be larger than memory."""


class Trouble(StrEnum):
    """What can be wrong with a sample."""

    MISSING = "missing"
    DAMAGED = "damaged"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong."""

    trouble: Trouble
    shard: str
    key: str
    """Of the sample; empty: bytes of the shard that belong to no image."""
    why: str


def by_shard(index: Index) -> list[list[int]]:
    """Return the numbers of the samples of each shard."""
    found: list[list[int]] = [[] for _ in index.shards]
    for number, sample in enumerate(index.samples):
        found[sample.shard].append(number)
    return found


def check_shard(source: Source, shard: Shard, samples: Sequence[Sample]) -> list[Finding]:
    """Read a shard once, from its begin to its end, and compare every byte with the index.

    Raises: StorageError if its place is out of reach.
    """
    try:
        size = source.sizes([shard.name])[0]
    except (FileNotFoundError, UsageError) as error:
        return [_finding(Trouble.MISSING, shard, sample, f"there is no shard: {error}") for sample in samples]
    found, digest = [], xxhash.xxh3_64()
    samples = sorted(samples, key=lambda sample: sample.offset)
    try:
        blocks = _blocks(source, shard.name, size)
        for sample, header, data in _cut(_counted(blocks, digest), samples):
            if len(data) < sample.size:
                why = f"the shard ends at byte {size}, before the image's end"
                found.append(_finding(Trouble.MISSING, shard, sample, why))
            elif why := _what_is_wrong(sample, header, data):
                found.append(_finding(Trouble.DAMAGED, shard, sample, why))
    except OSError as error:
        raise StorageError(
            f"{source.path_of(shard.name)} cannot be read: {error.strerror or error}", "check its disk"
        ) from error
    if not found and digest.hexdigest() != shard.xxh3_64:
        why = (
            f"{size} bytes instead of {shard.size}"
            if size != shard.size
            else "bytes between the images differ"
        )
        found.append(_finding(Trouble.DAMAGED, shard, None, why))
    return found


def duplicates(index: Index) -> list[Finding]:
    """Return the samples whose key, or whose very bytes, an earlier sample has."""
    keys: set[str] = set()
    first: dict[tuple[str, int], str] = {}
    found = []
    for sample in index.samples:
        shard = index.shards[sample.shard]
        twin = first.setdefault((sample.xxh3_64, sample.size), sample.key)
        if sample.key in keys:
            found.append(_finding(Trouble.DUPLICATE, shard, sample, "the index lists its key twice"))
        elif twin != sample.key:
            found.append(_finding(Trouble.DUPLICATE, shard, sample, f"the same bytes as {twin}"))
        keys.add(sample.key)
    return found


def not_packed(index: Index, keys: Iterable[str]) -> list[Finding]:
    """Return those of ``keys``, which should be in the dataset, that are not."""
    known = {sample.key for sample in index.samples}
    why = "it was rendered, and is not in the dataset"
    return [Finding(trouble=Trouble.MISSING, shard="", key=key, why=why) for key in keys if key not in known]


def summary(findings: Sequence[Finding]) -> str:
    """Say in one line what was found.

    >>> summary([Finding(trouble=Trouble.MISSING, shard="shard-00000.tar", key="a/b/000", why="it is not there")])
    '1 missing; first: a/b/000 in shard-00000.tar: it is not there'
    """
    counts = Counter(finding.trouble for finding in findings)
    numbers = ", ".join(f"{counts[trouble]:,} {trouble}" for trouble in Trouble if counts[trouble])
    first = findings[0]
    place = " in ".join(name for name in (first.key, first.shard) if name)
    return f"{numbers}; first: {place}: {first.why}"


def _finding(trouble: Trouble, shard: Shard, sample: Sample | None, why: str) -> Finding:
    return Finding(trouble=trouble, shard=shard.name, key=sample.key if sample else "", why=why)


def _what_is_wrong(sample: Sample, header: bytes, data: bytes) -> str:
    if digest_of(data) != sample.xxh3_64:
        return "its digest differs"
    name = ""
    with contextlib.suppress(tarfile.TarError):
        name = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
    return "" if name.rpartition(".")[0] == sample.key else f"the tar file calls it {name or 'nothing'}"


def _blocks(source: Source, name: str, size: int) -> Iterator[bytes]:
    for offset in range(0, size, BLOCK_BYTES):
        yield source.read(name, offset, min(BLOCK_BYTES, size - offset))


def _counted(blocks: Iterable[bytes], digest: xxhash.xxh3_64) -> Iterator[bytes]:
    for block in blocks:
        digest.update(block)
        yield block


def _cut(blocks: Iterator[bytes], samples: Sequence[Sample]) -> Iterator[tuple[Sample, bytes, bytes]]:
    """Return each sample with its tar header and its bytes, cut short where the blocks end; use up all blocks."""
    held, begin = bytearray(), 0
    for sample in samples:
        start = sample.offset - tarfile.BLOCKSIZE
        while begin + len(held) < sample.offset + sample.size and (block := next(blocks, None)):
            gone = max(0, min(start - begin, len(held)))
            del held[:gone]
            begin += gone
            held += block
        place = sample.offset - begin
        header = bytes(held[max(0, place - tarfile.BLOCKSIZE) : max(0, place)])
        yield sample, header, bytes(held[max(0, place) : max(0, place + sample.size)])
    for _ in blocks:
        pass
