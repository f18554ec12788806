"""Generated shapes: what their meshes are like, and how they cover the reference shapes."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from get3d_cluster.errors import UsageError
from get3d_cluster.evaluation import coverage
from get3d_cluster.evaluation.light_field import light_field, light_field_distances
from get3d_cluster.evaluation.mesh_statistics import MeshStatistics, as_row, statistics_of, summary_of
from get3d_cluster.evaluation.points import chamfer_distances, normalised, sampled
from get3d_cluster.evaluation.references import Reference, read_surface
from get3d_cluster.evaluation.results import LeftOut, Metric
from get3d_cluster.get3d.generator import Generator
from jobs._array_files import Stage, arrays, npz, text
from jobs._evaluation_setting import Setting
from jobs._samples import random_mesh
from jobs._staged import Item

DISTANCE_SCALE = 1000.0
"""The paper gives the Chamfer distance in thousandths."""


class ShapeMeasures:
    """Items and numbers of the shapes of one checkpoint; ``folder`` is for what only it needs."""

    def __init__(self, setting: Setting, folder: Path, generator: Callable[[], Generator]) -> None:
        self._setting = setting
        self._config = setting.config
        self._folder = folder
        self._generator = generator
        self._shape_paths = [folder / "shapes" / f"{i:06d}.npz" for i in range(setting.num_shapes)]
        models = setting.references_dir / "shapes"
        self._reference_paths = [models / f"{i:06d}.npz" for i in range(len(setting.references))]

    def stages(self) -> list[Stage]:
        """Return what has to be made, in stages."""
        return [self._shape_items(), self._distance_items()]

    def numbers(self) -> tuple[list[Metric], list[LeftOut]]:
        """Return what all those files say."""
        if not self._config.geometry:
            return [], [LeftOut(name="shapes", why="geometry=false")]
        found, left_out = self._coverage_numbers()
        return [*found, *self._mesh_numbers()], left_out

    def _shape_items(self) -> Stage:
        shapes = [Item(path=path, make=partial(self._shape, i)) for i, path in enumerate(self._shape_paths)]
        models = zip(self._reference_paths, self._setting.references, strict=True)
        return [*shapes, *(Item(path=path, make=partial(self._reference, each)) for path, each in models)]

    def _shape(self, number: int) -> bytes:
        vertices, faces = random_mesh(self._generator(), self._setting.law, number)
        row = as_row(statistics_of(vertices, faces))
        return npz(statistics=text(row), **self._described(vertices, faces, "generated", number))

    def _reference(self, reference: Reference) -> bytes:
        try:
            vertices, faces = read_surface(reference.path)
        except UsageError as error:
            return npz(problem=text({"name": reference.name, "why": error.what}))
        return npz(**self._described(vertices, faces, "reference", reference.name))

    def _described(
        self, vertices: NDArray[np.float64], faces: NDArray[np.int32], *name: object
    ) -> dict[str, NDArray[Any]]:
        """Return what a shape is compared by, if there is something to compare it with."""
        if not self._setting.references:
            return {}
        scaled = normalised(vertices, faces)
        found: dict[str, NDArray[Any]] = {
            "points": sampled(scaled, faces, self._config.shape_points, self._config.seed, *name)
        }
        if self._config.light_field:
            found["light_field"] = light_field(scaled, faces)
        return found

    def _distance_items(self) -> Stage:
        """Return rows: each reference to all generated and to all references; as many generated among themselves.

        Which references are good is known only when the files are there, so rows of bad ones are made, and empty.
        """
        references = range(len(self._setting.references))
        few = range(min(len(references), len(self._shape_paths)) if references else 0)
        return [
            *(
                Item(path=self._row_path("between", i), make=partial(self._row, "between", i))
                for i in references
            ),
            *(
                Item(path=self._row_path("references", i), make=partial(self._row, "references", i))
                for i in references
            ),
            *(
                Item(path=self._row_path("generated", i), make=partial(self._row, "generated", i))
                for i in few
            ),
        ]

    def _row_path(self, kind: str, number: int) -> Path:
        folder = self._setting.references_dir if kind == "references" else self._folder
        return folder / f"distances-{kind}" / f"{number:06d}.npz"

    def _row(self, kind: str, number: int) -> bytes:
        own = self._shapes_of("generated" if kind == "generated" else "references")[number]
        others = self._shapes_of("references" if kind == "references" else "generated")
        if kind == "generated":
            others = others[: len(self._setting.references)]
        if "problem" in own:
            return npz()
        good = [each for each in others if "problem" not in each]
        found = {"cd": chamfer_distances(own["points"], [each["points"] for each in good])}
        if self._config.light_field:
            found["lfd"] = light_field_distances(own["light_field"], [each["light_field"] for each in good])
            empty = np.array([not len(each["points"]) for each in good]) | (not len(own["points"]))
            found["lfd"][empty] = np.inf
        return npz(**found)

    @cached_property
    def _shapes(self) -> dict[str, list[dict[str, NDArray[Any]]]]:
        return {}

    def _shapes_of(self, kind: str) -> list[dict[str, NDArray[Any]]]:
        if kind not in self._shapes:
            paths = self._reference_paths if kind == "references" else self._shape_paths
            self._shapes[kind] = [arrays(path) for path in paths]
        return self._shapes[kind]

    def _coverage_numbers(self) -> tuple[list[Metric], list[LeftOut]]:
        if not self._setting.references:
            return [], [LeftOut(name="cov, mmd, 1-nna", why="no references given")]
        known = [arrays(path) for path in self._reference_paths]
        bad = [json.loads(str(each["problem"])) for each in known if "problem" in each]
        missing = [LeftOut(name=f"reference {each['name']}", why=each["why"]) for each in bad]
        good = [i for i, each in enumerate(known) if "problem" not in each]
        if not good:
            return [], [*missing, LeftOut(name="cov, mmd, 1-nna", why="no reference could be read")]
        found: list[Metric] = []
        for kind in ("cd", "lfd") if self._config.light_field else ("cd",):
            numbers, left_out = self._coverage_of(kind, good)
            found += numbers
            missing += left_out
        return found, missing

    def _coverage_of(self, kind: str, good: Sequence[int]) -> tuple[list[Metric], list[LeftOut]]:
        between = np.stack([arrays(self._row_path("between", i))[kind] for i in good])
        scale, unit = (DISTANCE_SCALE, "1/1000 squared longest side") if kind == "cd" else (1.0, "own")
        metric = partial(Metric, num_generated=between.shape[1], num_reference=len(good))
        found = [
            metric(name=f"cov_{kind}", value=coverage.coverage(between)),
            metric(name=f"mmd_{kind}", value=scale * coverage.minimum_matching_distance(between), unit=unit),
        ]
        few = len(good)
        if not 2 <= few <= between.shape[1]:
            why = f"{few} references and {between.shape[1]} shapes: it needs 2, and as many shapes"
            return found, [LeftOut(name=f"1nna_{kind}", why=why)]
        references = np.stack([arrays(self._row_path("references", i))[kind] for i in good])
        generated = np.stack([arrays(self._row_path("generated", i))[kind][:few] for i in range(few)])
        accuracy = coverage.nearest_neighbour_accuracy(between[:, :few], references, generated)
        found.append(Metric(name=f"1nna_{kind}", value=accuracy, num_generated=few, num_reference=few))
        return found, []

    def _mesh_numbers(self) -> list[Metric]:
        rows = [MeshStatistics(**json.loads(str(arrays(path)["statistics"]))) for path in self._shape_paths]
        found = summary_of(rows)
        return [Metric(name=f"mesh_{name}", value=found[name], num_generated=len(rows)) for name in found]
