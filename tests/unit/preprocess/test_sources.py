"""What is wrong with a model's file is said in words; good files pass."""

import json
import struct
from pathlib import Path

import pytest

from preprocess.sources import HEAD_BYTES, first_bad_face, look_into

GOOD = b"# a triangle\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"


def looked(tmp_path: Path, data: bytes, name: str = "model.obj"):
    (tmp_path / name).write_bytes(data)
    return look_into(tmp_path / name)


def glb(scene: dict, cut: int = 0) -> bytes:
    text = json.dumps(scene).encode()
    body = struct.pack("<II", len(text), 0x4E4F534A) + text
    data = b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body
    return data[: len(data) - cut]


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"", "empty-file", "model.obj is empty"),
        (b" \n\t\n", "empty-file", "is empty"),
        (b"\x89PNG\0\0\0", "not-a-model", "no text"),
        (b"<html>404</html>", "not-a-model", "no line with a vertex"),
        (b"v 0 0 0\nv 1 1 1\nl 1 2\n", "no-geometry", "only lines"),
        (b"v 0 0 0\np 1\n", "no-geometry", "only points"),
        (b"v 0 0 0\n", "", ""),  # Blender tells
        (GOOD + b"v 1 NaN 0\n", "bad-vertices", "coordinate NaN in line 6"),
        (GOOD.replace(b"v 1 0 0", b"v 1 -inf 0"), "bad-vertices", "coordinate -inf in line 3"),
        (GOOD.replace(b"v 1 0 0", b"v 1 -1.#INF 0"), "bad-vertices", "coordinate -1.#INF in line 3"),
        (GOOD.replace(b"v 1 0 0", b"v 1 0 0 # infinite"), "", ""),
    ],
)
def test_what_is_wrong_with_an_obj_file_is_said(tmp_path: Path, data: bytes, code: str, words: str) -> None:
    fault = looked(tmp_path, data).fault
    assert (fault.code if fault else "") == code
    assert words in (fault.message if fault else "")


def test_good_files_pass_whatever_their_names_sound_like(tmp_path: Path) -> None:
    (tmp_path / "my infinite.mtl").touch()
    text = b"mtllib my infinite.mtl \r\nusemtl nan_inf\r\no v nan\r\n" + GOOD.replace(b"\n", b"\r\n")
    source = looked(tmp_path, text)
    assert (source.fault, source.num_faces, source.missing) == (None, 1, ())


def test_missing_material_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "b.mtl").touch()
    source = looked(tmp_path, b"mtllib a.mtl\nmtllib b.mtl\nmtllib caf\xe9.mtl\n" + GOOD)
    assert source.missing == ("a.mtl", "caf\\udce9.mtl")


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "a\0b"])
def test_names_that_no_file_can_have_are_missing(tmp_path: Path, name: str) -> None:
    far_in = GOOD + b" " * HEAD_BYTES
    assert looked(tmp_path, far_in + f"\nmtllib {name}\n".encode()).missing == (name,)
    scene = json.dumps({"meshes": [{}], "images": [{"uri": name}]}).encode()
    assert looked(tmp_path, scene, "a.gltf").missing == (name,)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    fault = look_into(tmp_path / "gone.obj").fault
    assert fault
    assert fault.message == "gone.obj cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("data", "name", "code"),
    [
        (glb({"meshes": [{}]}), "a.glb", ""),
        (glb({"meshes": [{}]}, cut=5), "a.glb", "truncated"),
        (glb({"nodes": []}), "a.glb", "no-geometry"),
        (b"<html>", "a.glb", "not-a-model"),
        (b"glTF", "a.glb", "truncated"),
        (b'{"meshes": [{}], "buffers": [{"uri": "gone.bin"}]}', "a.gltf", "truncated"),
        (b'{"meshes": [{}], "buffers": [{"uri": "data:,"}]}', "a.gltf", ""),
        (b"[]", "a.gltf", "not-a-model"),
        (b"[" * 200_000, "a.gltf", "not-a-model"),
        (b'{"meshes": null}', "a.gltf", "no-geometry"),
        (b'{"meshes": [{}], "buffers": null}', "a.gltf", "not-a-model"),
        (b'{"meshes": [{}], "buffers": [1]}', "a.gltf", "not-a-model"),
        (b'{"meshes": [{}], "images": {"uri": 5}}', "a.gltf", "not-a-model"),
        (b'{"meshes": [{}], "images": [{"uri": ["x"]}]}', "a.gltf", "not-a-model"),
        (b"ply\nelement face " + b"9" * 5000 + b"\nend_header\n", "a.ply", "no-geometry"),
        (b"ply\nformat ascii 1.0\nelement vertex 3\nelement face 1\nend_header\n", "a.ply", ""),
        (b"ply\nformat ascii 1.0\nelement vertex 3\nend_header\n", "a.ply", "no-geometry"),
        (b"ply\nformat", "a.ply", "not-a-model"),
    ],
)
def test_other_formats_are_looked_into(tmp_path: Path, data: bytes, name: str, code: str) -> None:
    fault = looked(tmp_path, data, name).fault
    assert (fault.code if fault else "") == code


def test_a_missing_texture_of_gltf_is_named(tmp_path: Path) -> None:
    scene = {"meshes": [{}], "images": [{"uri": "my%20texture.png"}]}
    assert looked(tmp_path, json.dumps(scene).encode(), "a.gltf").missing == ("my texture.png",)


def test_the_first_face_that_is_none_is_shown() -> None:
    good = b"f 1 2 3\nf 1/1 2/2 3/3\nf 1//1 2//2 3//3 # x\nf -1 -2 -3 \r\nf 1 2 \\\n3\n"
    assert first_bad_face(good) == ""
    assert first_bad_face(good + b"f 1 2 three\nf 1\n") == "line 7: 'f 1 2 three'"
    assert first_bad_face(b"f 1 2\n") == "line 1: 'f 1 2'"
