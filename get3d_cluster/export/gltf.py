"""A textured mesh as binary glTF 2.0, written so that the Khronos validator has nothing to say.

Source: Khronos, glTF 2.0 Specification (2.0.1), sections 3.6 (buffers), 3.8 (textures), 3.9 (materials), 4 (GLB).
No tangents are written: there is no normal map, and the specification has viewers compute them if they want some.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from get3d_cluster.export.mesh import TexturedMesh

ROUGHNESS = 0.8
"""The colours hold the light of the training images: a matt surface adds the least of its own."""

_MAGIC, _VERSION = b"glTF", 2
_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_VERTEX_DATA, _INDICES = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP = 9729, 9987, 33071
_LARGEST_UINT16_INDEX = 65534
"""65535 restarts a primitive and must not occur."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """A piece of the buffer."""

    data: bytes
    target: int = 0
    """What a graphics card takes it for; 0: nothing it would see."""


def glb(mesh: TexturedMesh, png: bytes, name: str) -> bytes:
    """Return ``mesh`` with its texture ``png`` as one binary glTF file; ``name`` is what the object is called."""
    indices = _indices(mesh)
    vertex_data = [mesh.vertices, mesh.normals, _top_down(mesh.uv)]
    blocks = [_Block(data=_packed(values), target=_VERTEX_DATA) for values in vertex_data]
    blocks += [_Block(data=indices.tobytes(), target=_INDICES), _Block(data=png)]
    buffer = b"".join(_padded(block.data) for block in blocks)
    document = {
        "asset": {"version": "2.0", "generator": "get3d_cluster"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name}],
        "meshes": [{"name": name, "primitives": [_primitive()]}],
        "materials": [_material(name)],
        "textures": [{"sampler": 0, "source": 0}],
        "images": [{"name": name, "bufferView": 4, "mimeType": "image/png"}],
        "samplers": [_sampler()],
        "accessors": list(_accessors(mesh, indices)),
        "bufferViews": list(_views(blocks)),
        "buffers": [{"byteLength": len(buffer)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    chunks = [_chunk(b"JSON", _padded(text, b" ")), _chunk(b"BIN\0", buffer)]
    return struct.pack("<4sII", _MAGIC, _VERSION, 12 + sum(map(len, chunks))) + b"".join(chunks)


def _indices(mesh: TexturedMesh) -> NDArray[np.unsignedinteger[Any]]:
    small = len(mesh.vertices) <= _LARGEST_UINT16_INDEX + 1
    return mesh.faces.ravel().astype("<u2" if small else "<u4")


def _top_down(uv: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return texture coordinates as glTF counts them: v downwards from the upper left corner."""
    return np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)


def _packed(values: NDArray[np.float32]) -> bytes:
    return values.astype("<f4").tobytes()


def _primitive() -> dict[str, Any]:
    return {"attributes": {"POSITION": 0, "NORMAL": 1, "TEXCOORD_0": 2}, "indices": 3, "material": 0}


def _material(name: str) -> dict[str, Any]:
    metallic_roughness = {
        "baseColorTexture": {"index": 0},
        "metallicFactor": 0.0,
        "roughnessFactor": ROUGHNESS,
    }
    return {"name": name, "pbrMetallicRoughness": metallic_roughness}


def _sampler() -> dict[str, int]:
    """Return how to read the texture: smoothly, and never around to its other side."""
    return {
        "magFilter": _LINEAR,
        "minFilter": _LINEAR_MIPMAP_LINEAR,
        "wrapS": _CLAMP,
        "wrapT": _CLAMP,
    }


def _accessors(mesh: TexturedMesh, indices: NDArray[np.unsignedinteger[Any]]) -> Iterator[dict[str, Any]]:
    num_vertices = len(mesh.vertices)
    bounds = {"min": mesh.vertices.min(axis=0).tolist(), "max": mesh.vertices.max(axis=0).tolist()}
    of_vertices = {"componentType": _FLOAT, "count": num_vertices}
    yield {"bufferView": 0, **of_vertices, "type": "VEC3", **bounds}
    yield {"bufferView": 1, **of_vertices, "type": "VEC3"}
    yield {"bufferView": 2, **of_vertices, "type": "VEC2"}
    kind = _UINT16 if indices.itemsize == 2 else _UINT32
    yield {"bufferView": 3, "componentType": kind, "count": len(indices), "type": "SCALAR"}


def _views(blocks: Sequence[_Block]) -> Iterator[dict[str, int]]:
    offset = 0
    for block in blocks:
        view = {"buffer": 0, "byteOffset": offset, "byteLength": len(block.data)}
        yield view | ({"target": block.target} if block.target else {})
        offset += len(_padded(block.data))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack("<I4s", len(data), kind) + data


def _padded(data: bytes, filler: bytes = b"\0") -> bytes:
    return data + filler * (-len(data) % 4)
