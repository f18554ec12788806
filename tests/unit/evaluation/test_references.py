"""Which model files count, how they are read, and how results are told."""

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh

from get3d_cluster.errors import UsageError
from get3d_cluster.evaluation.mesh_statistics import statistics_of
from get3d_cluster.evaluation.references import digest_of, find_references, read_surface
from get3d_cluster.evaluation.results import Evaluation, LeftOut, Metric, finite_only, table_of


def box(path: Path, *sides: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.creation.box(sides or (1, 1, 1)).export(path)
    return path


def test_models_are_found_at_any_depth_once_each_and_in_order(tmp_path: Path) -> None:
    for name in ("b/model.obj", "a/models/model.obj", "c.glb", "c.obj", "c.ply"):
        box(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no model")
    found = find_references(tmp_path)
    assert [each.name for each in found] == ["a/models/model.obj", "b/model.obj", "c.glb"]
    assert digest_of(found) != digest_of(found[:2])


def test_a_choice_is_made_by_seed_and_a_larger_one_contains_it(tmp_path: Path) -> None:
    for number in range(12):
        box(tmp_path / f"{number:02d}.obj")
    few, many, other = (
        find_references(tmp_path, 4),
        find_references(tmp_path, 7),
        find_references(tmp_path, 4, 1),
    )
    names = [{each.name for each in found} for found in (few, many, other)]
    assert names[0] < names[1]
    assert names[0] != names[2]
    assert len(find_references(tmp_path, 100)) == 12


def test_a_scene_is_one_surface_where_its_nodes_put_it(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    scene.add_geometry(trimesh.creation.box([1, 1, 1]))
    scene.add_geometry(
        trimesh.creation.box([1, 1, 1]), transform=trimesh.transformations.translation_matrix([3, 0, 0])
    )
    scene.export(tmp_path / "two.glb")
    vertices, faces = read_surface(tmp_path / "two.glb")
    assert np.ptp(vertices, axis=0).tolist() == [4, 1, 1]
    assert (statistics_of(vertices, faces).components, statistics_of(vertices, faces).watertight) == (2, True)


def test_quads_and_texture_seams_are_read_as_joined_triangles(tmp_path: Path) -> None:
    path = tmp_path / "quad.obj"
    places = [f"v {x} {y} 0" for x, y in ((0, 0), (1, 0), (1, 1), (0, 1), (2, 0), (2, 1))]
    path.write_text("\n".join([*places, "vt 0 0", "vt 1 1", "f 1/1 2/1 3/1 4/1", "f 2/2 5/2 6/2 3/2"]) + "\n")
    found = statistics_of(*read_surface(path))
    assert (found.num_faces, found.num_vertices, found.components) == (4, 6, 1)
    assert found.area == pytest.approx(2)


@pytest.mark.parametrize(
    "content", ["", "v 0 0 0\n", "v 0 0 0\nv 1 0 nan\nv 0 1 0\nf 1 2 3\n", "\x00\x01 what"]
)
def test_a_file_without_a_surface_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.obj").write_text(content)
    with pytest.raises(UsageError, match=r"bad\.obj"):
        read_surface(tmp_path / "bad.obj")


def evaluation(*metrics: Metric) -> Evaluation:
    return Evaluation(
        run="cars", step=1200, images=9600, checkpoint="c" * 64, seed=3, settings={}, settings_key="k",
        metrics=metrics, left_out=[LeftOut(name="kid", why="too few")],
    )  # fmt: skip


def test_the_table_says_what_the_file_says() -> None:
    features = {"name": "inception", "digest": "f" * 64}
    found = evaluation(
        Metric(name="fid", value=12.345678, num_generated=50000, num_reference=1000, features=features),
        Metric(name="kid", value=0.5, error=0.01, num_generated=10),
    )
    lines = table_of(found).splitlines()
    assert lines[0] == "cars, step 1,200, 9,600 images, seed 3"
    assert lines[2].split() == ["fid", "12.346", "50,000", "1,000", "inception", "ffffffff"]
    assert lines[3].split() == ["kid", "0.5", "±", "0.01", "10"]
    assert lines[4] == "left out: kid: too few"
    told = json.loads(json.dumps(found.as_json()))
    assert told["metrics"][1] == {
        "name": "kid", "value": 0.5, "num_generated": 10, "num_reference": 0, "error": 0.01,
    }  # fmt: skip
    assert told["left_out"] == [{"name": "kid", "why": "too few"}]


def test_what_is_no_number_is_left_out_with_a_reason() -> None:
    good, left_out = finite_only(
        [Metric(name="a", value=1.0, num_generated=1), Metric(name="b", value=float("inf"), num_generated=1)]
    )
    assert [each.name for each in good] == ["a"]
    assert left_out[0].name == "b"
    assert "has a surface" in left_out[0].why
