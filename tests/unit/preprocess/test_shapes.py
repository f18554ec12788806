import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocess.shapes import CAR_KINDS, CHAIR_KINDS, is_written, made, planned, write_shape, write_shapes

SAMPLE = [*planned(len(CAR_KINDS), 0), *planned(0, len(CHAIR_KINDS))]
CARS = 3_600


def parsed(obj: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return vertices, texture coordinates, normals, and one array of faces [F, 3, 3] for each part."""
    rows: dict[str, list] = {"v": [], "vt": [], "vn": []}
    parts: list[list] = []
    for line in obj.decode().splitlines():
        kind, *words = line.split()
        if kind in rows:
            rows[kind].append([float(word) for word in words])
        elif kind == "o":
            parts.append([])
        elif kind == "f":
            parts[-1].append([[int(n) - 1 for n in word.split("/")] for word in words])
    v, vt, vn = (np.array(rows[kind]) for kind in ("v", "vt", "vn"))
    return v, vt, vn, [np.array(part) for part in parts]


@pytest.mark.parametrize("shape", SAMPLE, ids=lambda shape: shape.kind)
def test_every_part_is_closed_and_wound_outwards(shape) -> None:
    vertices, _, normals, parts = parsed(made(shape)[0])
    for part in parts:
        faces = part[:, :, 0]
        directed = Counter((int(f[k]), int(f[(k + 1) % 3])) for f in faces for k in range(3))
        assert set(directed.values()) == {1}
        assert all((b, a) in directed for a, b in directed)
        a, b, c = (vertices[faces[:, k]] for k in range(3))
        assert np.einsum("fi,fi->", a, np.cross(b, c)) > 0
        flat = np.cross(b - a, c - a)
        big = np.linalg.norm(flat, axis=1) > 1e-6
        agreement = np.einsum("fi,fki->fk", flat, normals[part[:, :, 2]])
        assert (agreement[big] > 0).all()


@pytest.mark.parametrize("shape", SAMPLE, ids=lambda shape: shape.kind)
def test_a_model_is_centred_of_unit_diagonal_moderate_and_textured_inside_its_image(shape) -> None:
    obj, texture = made(shape)
    vertices, coordinates, _, parts = parsed(obj)
    low, high = vertices.min(0), vertices.max(0)
    assert np.linalg.norm(high - low) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(low + high, 0, atol=3e-5)
    assert 0 <= coordinates.min() <= coordinates.max() <= 1
    assert 300 <= sum(len(part) for part in parts) <= CARS
    assert Image.open(io.BytesIO(texture)).size == (512, 512)
    if shape.synset == "02958343":
        assert np.argmax(high - low) == 2, "a car lies along Z"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_models() -> None:
    shape = planned(3, 0)[2]
    assert made(shape, 5) == made(shape, 5)
    assert made(shape, 5)[0].split(b"\n", 1)[1] != made(shape, 6)[0].split(b"\n", 1)[1]


@pytest.mark.parametrize(
    ("kind", "sha256"),
    [
        ("van", "93bcb0473355560cd2ed2868c5253718a20271a52830a0a1099d587422cfddf7"),
        ("stool", "bd67f9d5ddf226a365a5dde8415863a3f43727fe05cc25751b5f21cf5b9fa242"),
    ],
)
def test_a_model_is_the_same_for_ever(kind: str, sha256: str) -> None:
    obj, texture = made(next(shape for shape in SAMPLE if shape.kind == kind))
    pixels = np.asarray(Image.open(io.BytesIO(texture))).tobytes()  # another zlib may compress them otherwise
    assert hashlib.sha256(obj + pixels).hexdigest() == sha256, "a change to the models has to raise VERSION"


def test_models_differ_from_each_other() -> None:
    cars = [shape for shape in planned(22, 0) if shape.kind == "sedan"]
    assert len({hashlib.sha256(made(car)[0].split(b"\n", 1)[1]).digest() for car in cars}) == len(cars) == 4
    assert len({hashlib.sha256(made(car)[1]).digest() for car in cars}) == len(cars)


def test_files_lie_in_shapenet_layout_and_refer_to_each_other(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path, cars=1, chairs=1)
    for shape in shapes:
        folder = tmp_path / shape.synset / shape.model
        assert "mtllib model.mtl" in (folder / "model.obj").read_text()
        texture = (folder / "model.mtl").read_text().split("map_Kd ")[1].strip()
        assert (folder / texture).is_file()


def test_finished_models_are_left_alone_unless_the_seed_changed(tmp_path: Path) -> None:
    shape = planned(0, 1)[0]
    write_shape(tmp_path, shape, 0)
    assert is_written(tmp_path, shape, 0)
    assert not is_written(tmp_path, shape, 1)
    obj = tmp_path / shape.synset / shape.model / "model.obj"
    before = obj.stat().st_mtime_ns
    write_shapes(tmp_path, cars=0, chairs=1, seed=0)
    assert obj.stat().st_mtime_ns == before


def test_more_models_begin_with_the_same_ones() -> None:
    assert planned(48, 0)[:5] == planned(5, 0)
    assert len({shape.model for shape in planned(48, 0)}) == 48
