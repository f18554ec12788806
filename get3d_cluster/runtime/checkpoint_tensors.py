"""Tensors in the layout of safetensors: where each one lies in its file, and back from a file without a copy.

Layout: 8 bytes with the length of a JSON header, the header, the bytes of the tensors without a gap.
Source: the description of the format in the documentation of safetensors.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from get3d_cluster.runtime.checkpoint_files import TENSORS
from get3d_cluster.runtime.checkpoint_tree import Stored

if TYPE_CHECKING:
    from torch import Tensor

PAGE = 4096
_NAMES = {
    "torch.float64": ("F64", 8),
    "torch.float32": ("F32", 4),
    "torch.float16": ("F16", 2),
    "torch.bfloat16": ("BF16", 2),
    "torch.int64": ("I64", 8),
    "torch.int32": ("I32", 4),
    "torch.int16": ("I16", 2),
    "torch.int8": ("I8", 1),
    "torch.uint64": ("U64", 8),
    "torch.uint32": ("U32", 4),
    "torch.uint16": ("U16", 2),
    "torch.uint8": ("U8", 1),
    "torch.bool": ("BOOL", 1),
    "torch.complex64": ("C64", 8),
}
_TYPES = {name: (dtype.removeprefix("torch."), size) for dtype, (name, size) in _NAMES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A safetensors file that one rank writes."""

    name: str
    part: str
    rank: int
    header: bytes
    place: int
    """Where it begins in the memory of its rank."""
    num_bytes: int
    tensors: tuple[tuple[str, Stored], ...]
    """Names within the part, and where in the file each one lies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which rank writes what."""

    files: tuple[File, ...]
    memory_bytes: int
    """What the rank with the most needs."""


def lay_out(tensors: "Mapping[str, Mapping[str, Tensor]]", world_size: int) -> Layout | None:
    """Share the tensors out among the ranks, about equally many bytes each, in files that say where each lies.

    A function of names, types and shapes alone, so equal on all ranks. None if a type is not known here.
    """
    total = sum(_num_bytes(tensor) for named in tensors.values() for tensor in named.values())
    shares: dict[tuple[int, str], list[tuple[str, Tensor]]] = {}
    begin = 0
    for part, named in tensors.items():
        for name, tensor in named.items():
            if str(tensor.dtype) not in _NAMES:
                return None
            size = _num_bytes(tensor)
            rank = min(world_size - 1, (2 * begin + size) * world_size // max(1, 2 * total))
            shares.setdefault((rank, part), []).append((name, tensor))
            begin += size
    places = [0] * world_size
    files = []
    for (rank, part), share in shares.items():
        is_whole = len(share) == len(tensors[part])
        name = f"{part}{TENSORS}" if is_whole else f"{part}+{rank:04d}{TENSORS}"
        files.append(_file(name, part, rank, places[rank], share))
        places[rank] += -(-files[-1].num_bytes // PAGE) * PAGE
    if len({file.name for file in files}) < len(files):
        return None
    return Layout(files=tuple(files), memory_bytes=max(places))


def _file(name: str, part: str, rank: int, place: int, share: "Sequence[tuple[str, Tensor]]") -> File:
    """Lay out one file: the widest types first, so that each tensor is aligned."""
    ordered = sorted(share, key=lambda item: (-_NAMES[str(item[1].dtype)][1], item[0]))
    table, ends = {}, [0]
    for key, tensor in ordered:
        ends.append(ends[-1] + _num_bytes(tensor))
        kind = _NAMES[str(tensor.dtype)][0]
        table[key] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": ends[-2:]}
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    stored = tuple(
        (key, Stored(name, len(header) + begin, _num_bytes(tensor), str(tensor.dtype), tuple(tensor.shape)))
        for (key, tensor), begin in zip(ordered, ends[:-1], strict=True)
    )
    whole = len(header) + ends[-1]
    return File(name=name, part=part, rank=rank, header=header, place=place, num_bytes=whole, tensors=stored)


def _num_bytes(tensor: "Tensor") -> int:
    return tensor.numel() * tensor.element_size()


def read_tensors(data: memoryview) -> "dict[str, Tensor]":
    """Return the tensors of a safetensors file, in its memory if that may be written to. Raises: ValueError."""
    import torch

    header_end = 8 + int.from_bytes(data[:8], "little")
    if not 8 <= header_end <= len(data):
        raise ValueError("the header is longer than the file")
    table = json.loads(bytes(data[8:header_end]))
    table.pop("__metadata__", None)
    if any(told["dtype"] not in _TYPES for told in table.values()):
        from safetensors.torch import load

        return load(bytes(data))
    memory = bytearray(data) if data.readonly else data
    tensors, end = {}, 0
    for name, told in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
        kind, size = _TYPES[told["dtype"]]
        begin, next_end = told["data_offsets"]
        count = math.prod(told["shape"])
        if begin != end or next_end - begin != count * size or header_end + next_end > len(data):
            raise ValueError(f"{name} does not lie where the header says")
        dtype: Any = getattr(torch, kind)
        end = next_end
        flat = (
            torch.frombuffer(memory, dtype=dtype, count=count, offset=header_end + begin) if count else None
        )
        tensors[name] = torch.empty(told["shape"], dtype=dtype) if flat is None else flat.view(told["shape"])
    if header_end + end != len(data):
        raise ValueError("there are bytes that belong to no tensor")
    return tensors
