"""What the parts of an evaluation cost one core, at the sizes of the paper.

    OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m bench -s tests/bench/test_evaluation.py

Processor seconds, the least of some rounds. From them follows what 1,000 references with 5,000 shapes take.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from get3d_cluster.evaluation.kernel import squared_mmd
from get3d_cluster.evaluation.light_field import light_field, light_field_distances
from get3d_cluster.evaluation.manifold import inside, squared_radii
from get3d_cluster.evaluation.mesh_statistics import statistics_of
from get3d_cluster.evaluation.moments import gaussian_of
from get3d_cluster.evaluation.points import chamfer_distances, sampled
from get3d_cluster.evaluation.progress import frechet_distance

pytestmark = pytest.mark.bench

WIDTH = 2048
"""Features of an image, as Inception gives them."""
NUM_IMAGES, NUM_SUBSET, NUM_ROWS, NUM_OTHERS = 20_000, 1_000, 1_000, 10_000
NUM_POINTS, NUM_REFERENCES, NUM_SHAPES = 2_048, 1_000, 5_000
RESULT = Path(__file__).parent / "results" / "evaluation.json"


def seconds(act: Callable[[], Any], rounds: int = 2) -> float:
    spent = []
    for _ in range(rounds):
        begun_s = time.process_time()
        act()
        spent.append(time.process_time() - begun_s)
    return min(spent)


def features(count: int, seed: int) -> Any:  # [N, D]
    return np.random.default_rng(seed).standard_normal((count, WIDTH), dtype=np.float32)


def frechet_of_blocks() -> float:
    blocks = [features(1_000, block) for block in range(2)]
    both = [gaussian_of(blocks[side] for _ in range(NUM_IMAGES // 1_000)) for side in range(2)]
    return frechet_distance(*both)


def test_what_the_parts_cost() -> None:
    a, b = features(NUM_SUBSET, 0), features(NUM_SUBSET, 1)
    rows, others = features(NUM_ROWS, 2), [features(1_000, seed) for seed in range(NUM_OTHERS // 1_000)]
    radii = np.full(NUM_OTHERS, float(WIDTH))
    mesh = trimesh.creation.icosphere(subdivisions=5)
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces, np.int32)
    cloud = sampled(vertices, faces, NUM_POINTS, "one")
    clouds = [sampled(vertices, faces, NUM_POINTS, number) for number in range(50)]
    light_field(vertices, faces)  # compiled
    statistics_of(vertices, faces)
    field = light_field(vertices, faces)
    light_field_distances(field, [field])
    found = {
        "frechet_20000_images_each_s": seconds(frechet_of_blocks, 1),
        "kid_subset_of_1000_s": seconds(lambda: squared_mmd(a, b)),
        "precision_recall_1000_against_10000_s": seconds(
            lambda: (squared_radii(rows, 0, others), inside(rows, others, radii))
        ),
        f"facts_of_{len(faces)}_faces_s": seconds(lambda: statistics_of(vertices, faces)),
        f"light_field_of_{len(faces)}_faces_s": seconds(lambda: light_field(vertices, faces)),
        "chamfer_pair_s": seconds(lambda: chamfer_distances(cloud, clouds)) / len(clouds),
        "light_field_pair_s": seconds(lambda: light_field_distances(field, [field] * 200)) / 200,
    }
    pairs = NUM_REFERENCES * NUM_SHAPES
    found["shapes_of_the_paper_h"] = (
        pairs * (found["chamfer_pair_s"] + found["light_field_pair_s"])
        + (NUM_REFERENCES + NUM_SHAPES)
        * (found[f"facts_of_{len(faces)}_faces_s"] + found[f"light_field_of_{len(faces)}_faces_s"])
    ) / 3600
    print()
    for name, value in found.items():
        print(f"{name:42} {value:.4g}")
    RESULT.write_text(json.dumps({name: round(value, 6) for name, value in found.items()}, indent=2) + "\n")
    assert all(value > 0 for value in found.values())
