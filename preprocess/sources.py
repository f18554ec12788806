"""Why a model's file cannot be rendered, in words for a person: found in the file itself, before Blender sees it.

Blender's importers never fail: what they do not understand they drop, what is missing they paint. So what is wrong is
looked for here. Reads the file whole, which warms the cache for Blender; never writes.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

HEAD_BYTES = 4096
GLB_MAGIC, GLB_HEADER_BYTES = b"glTF", 12
_FACE = re.compile(rb"^f(?:[ \t]+-?\d+(?:/-?\d*){0,2}){3,}[ \t]*(?:#.*)?\r?$")
_NO_NUMBER = re.compile(rb"nan|inf|#ind", re.I)
_BAD_VERTEX = re.compile(
    rb"^v(?:[ \t]+[-+.\deE]+)*[ \t]+([-+]?(?:\d\.)?#?(?:nan|inf|ind|qnan|snan)\S*)", re.M | re.I
)
"""Also as some compilers print them: 1.#QNAN, -1.#IND, 1.#INF."""
_LIBRARY = re.compile(rb"^mtllib[ \t]+([^\r\n]+?)[ \t]*\r?$", re.M)
_SHOWN = 60
"""Characters of a bad line that are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What is wrong with a file."""

    code: str
    """One word for lists."""
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What a file says about itself."""

    fault: Fault | None = None
    """Why it cannot be rendered; None if nothing speaks against it."""
    num_faces: int | None = None
    """Faces that it lists; None where only Blender can tell."""
    missing: tuple[str, ...] = ()
    """Files that it names and that are not there."""
    warnings: tuple[str, ...] = ()
    """What is odd and does not keep it from being rendered."""


def look_into(path: Path) -> Source:
    """Read a model's file and say what is wrong with it, and what it lacks."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return _faulty("unreadable", f"{path.name} cannot be read: {error.strerror or error}")
    if not data.strip():
        return _faulty("empty-file", f"{path.name} is empty")
    kinds = {".glb": _look_into_glb, ".gltf": _look_into_gltf, ".ply": _look_into_ply}
    return kinds.get(path.suffix.lower(), _look_into_obj)(path, data)


def printable(text: str) -> str:
    """Return ``text`` as UTF-8 can hold it: names of files may be bytes of any kind."""
    return text.encode(errors="backslashreplace").decode()


def first_bad_face(data: bytes) -> str:
    """Return the first face of an OBJ file that is none, with its line number; empty if all are well formed."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.startswith((b"f ", b"f\t")) and not _FACE.match(line) and not line.rstrip().endswith(b"\\"):
            return f"line {number}: {_shown(line)}"
    return ""


def _look_into_obj(path: Path, data: bytes) -> Source:
    if b"\0" in data[:HEAD_BYTES]:
        return _faulty("not-a-model", f"{path.name} is no text, so it is no OBJ file")
    faces, vertices = _count(data, b"f"), _count(data, b"v")
    if not vertices:
        return _faulty("not-a-model", f"{path.name} has no line with a vertex, so it is no OBJ file")
    drawn = "lines" if _count(data, b"l") else "points" if _count(data, b"p") else ""
    if drawn and not faces:
        return _faulty("no-geometry", f"{path.name} holds no faces, only {drawn}")
    if _NO_NUMBER.search(data) and (bad := _BAD_VERTEX.search(data)):
        line = data.count(b"\n", 0, bad.start()) + 1
        word = bad[1].decode(errors="replace")
        return _faulty("bad-vertices", f"{path.name} has the coordinate {word} in line {line}")
    odd = _count(data, b"usemtl") and not _LIBRARY.search(data)
    warnings = ("uses materials and names no file that has them: it is rendered white",) if odd else ()
    return Source(num_faces=faces, missing=tuple(_missing_libraries(path, data)), warnings=warnings)


def _missing_libraries(path: Path, data: bytes) -> Iterator[str]:
    for match in _LIBRARY.finditer(data):
        name = match[1].decode(errors="surrogateescape")
        if not _is_beside(path, name):
            yield printable(name)


def _look_into_glb(path: Path, data: bytes) -> Source:
    if not data.startswith(GLB_MAGIC):
        return _faulty("not-a-model", f"{path.name} does not begin like a GLB file")
    told = int.from_bytes(data[8:GLB_HEADER_BYTES], "little")
    if len(data) < max(told, GLB_HEADER_BYTES + 8):
        return _faulty("truncated", f"{path.name} is cut off: {len(data)} of {told} bytes are there")
    length = int.from_bytes(data[12:16], "little")
    return _look_into_scene(path, data[20 : 20 + length])


def _look_into_gltf(path: Path, data: bytes) -> Source:
    return _look_into_scene(path, data)


def _look_into_scene(path: Path, data: bytes) -> Source:
    try:
        scene = json.loads(data)
        has_meshes = bool(scene.get("meshes"))
        buffers, images = (_files_of(scene.get(kind, [])) for kind in ("buffers", "images"))
    except (ValueError, TypeError, AttributeError, RecursionError):  # JSON, but nested or filled otherwise
        return _faulty("not-a-model", f"{path.name} holds no scene that glTF describes")
    if not has_meshes:
        return _faulty("no-geometry", f"{path.name} holds no mesh")
    lost = next((name for name in buffers if not _is_beside(path, name)), "")
    if lost:
        return _faulty("truncated", f"{printable(lost)}, which holds the mesh of {path.name}, is missing")
    return Source(missing=tuple(printable(name) for name in images if not _is_beside(path, name)))


def _files_of(entries: list[dict[str, Any]]) -> list[str]:
    named = [each.get("uri", "") for each in entries]
    return [unquote(uri) for uri in named if uri and not uri.startswith("data:")]


def _look_into_ply(path: Path, data: bytes) -> Source:
    head, end, _ = data.partition(b"end_header")
    if not data.startswith(b"ply") or not end:
        return _faulty("not-a-model", f"{path.name} does not begin like a PLY file")
    found = re.search(rb"^element face (\d{1,18})\s", head, re.M)
    faces = int(found[1]) if found else 0
    if not faces:
        return _faulty("no-geometry", f"{path.name} holds no faces, only points")
    return Source(num_faces=faces)


def _is_beside(path: Path, name: str) -> bool:
    """Tell whether a model names a file that is there; a name that no file can have is not."""
    return os.path.isfile(path.parent / name)  # noqa: PTH113  Path.is_file raises where a name is too long


def _count(data: bytes, key: bytes) -> int:
    starts = sum(data.count(b"\n" + key + blank) for blank in (b" ", b"\t"))
    return starts + data.startswith((key + b" ", key + b"\t"))


def _faulty(code: str, message: str) -> Source:
    return Source(fault=Fault(code=code, message=message))


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")
