"""Distances between generated and real images: features, then what compares them, in files of their own."""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from get3d_cluster.evaluation import features
from get3d_cluster.evaluation.draws import chosen
from get3d_cluster.evaluation.kernel import squared_mmd
from get3d_cluster.evaluation.manifold import NEIGHBOURS, inside, squared_radii
from get3d_cluster.evaluation.moments import gaussian_of
from get3d_cluster.evaluation.progress import frechet_distance
from get3d_cluster.evaluation.results import LeftOut, Metric
from get3d_cluster.get3d.generator import Generator
from jobs._array_files import FeatureFiles, Rows, Stage, as_bytes, npy, read
from jobs._evaluation_setting import Setting
from jobs._samples import random_pixels
from jobs._staged import Item

ROWS = 1000
"""Rows of an item that compares images."""
SUBSETS = 10
"""Subsets of an item."""
SIDES = ("reals", "fakes")


class ImageMeasures:
    """Items and numbers of the images of one checkpoint; ``folder`` is for what only it needs."""

    def __init__(self, setting: Setting, folder: Path, generator: Callable[[], Generator]) -> None:
        self._setting = setting
        self._config = setting.config
        self._folder = folder
        self._generator = generator
        self._reals = FeatureFiles(setting.reals_dir / "features", len(setting.real_rows))
        self._fakes = FeatureFiles(folder / "features", self._config.num_images)

    def stages(self) -> list[Stage]:
        """Return what has to be made, in stages."""
        return [self._feature_items(), self._comparing_items(), self._inside_items()]

    def _feature_items(self) -> Stage:
        return [*self._reals.items(self._real_features), *self._fakes.items(self._fake_features)]

    def _real_features(self, first: int, last: int) -> bytes:
        dataset, extractor = self._setting.dataset, self._setting.extractor
        images, _ = dataset.batch(self._setting.real_rows[first:last].tolist())
        return npy(extractor.features(features.as_bytes(images[:, :3])))

    def _fake_features(self, first: int, last: int) -> bytes:
        pixels = random_pixels(self._generator(), self._setting.law, range(first, last))
        return npy(self._setting.extractor.features(pixels))

    @property
    def _subset_size(self) -> int:
        return min(self._config.kid_subset_size, self._reals.count, self._fakes.count)

    @property
    def _num_subsets(self) -> int:
        """Return how many there are; one if each would be all there is."""
        is_all = self._subset_size == self._reals.count == self._fakes.count
        return 1 if is_all else self._config.kid_subsets

    @property
    def _has_frechet(self) -> bool:
        return min(self._reals.count, self._fakes.count) >= 2

    @property
    def _has_kernel(self) -> bool:
        return self._subset_size >= 2

    def _manifold(self, which: str) -> NDArray[np.int64]:
        """Return the images of a side that precision and recall are measured with."""
        most = self._config.manifold_images
        return chosen(self._files(which).count, most, "manifold", which, self._config.seed)

    @property
    def _has_manifold(self) -> bool:
        return min(self._config.manifold_images, self._reals.count, self._fakes.count) > NEIGHBOURS

    def _comparing_items(self) -> Stage:
        found = []
        if self._has_frechet:
            found.append(Item(path=self._folder / "frechet.json", make=self._frechet))
        if self._has_kernel:
            found += [
                Item(path=self._subsets_path(first), make=partial(self._subsets, first))
                for first in range(0, self._num_subsets, SUBSETS)
            ]
        for which in SIDES if self._has_manifold else ():
            found += [
                Item(path=self._radii_path(which, first), make=partial(self._radii, which, first))
                for first in range(0, len(self._manifold(which)), ROWS)
            ]
        return found

    def _frechet(self) -> bytes:
        value = frechet_distance(gaussian_of(self._fakes.chunks()), gaussian_of(self._reals.chunks()))
        return as_bytes({"frechet": value})

    def _subsets(self, first: int) -> bytes:
        values = []
        for number in range(first, min(first + SUBSETS, self._num_subsets)):
            sides = [
                files.rows(chosen(files.count, self._subset_size, "subset", which, number, self._config.seed))
                for which, files in (("reals", self._reals), ("fakes", self._fakes))
            ]
            values.append(squared_mmd(sides[1], sides[0]))
        return as_bytes({"squared_mmd": values})

    def _files(self, which: str) -> FeatureFiles:
        return self._reals if which == "reals" else self._fakes

    @cached_property
    def _manifold_rows(self) -> dict[str, Rows]:
        return {which: self._files(which).rows(self._manifold(which)) for which in SIDES}

    def _radii(self, which: str, first: int) -> bytes:
        rows = self._manifold_rows[which]
        return npy(squared_radii(rows[first : first + ROWS], first, _cut(rows)))

    def _inside_items(self) -> Stage:
        if not self._has_manifold:
            return []
        return [
            Item(path=self._inside_path(which, first), make=partial(self._inside, which, first))
            for which in SIDES
            for first in range(0, len(self._manifold(which)), ROWS)
        ]

    def _inside(self, which: str, first: int) -> bytes:
        other = "fakes" if which == "reals" else "reals"
        count = len(self._manifold(other))
        radii = np.concatenate([np.load(self._radii_path(other, i)) for i in range(0, count, ROWS)])
        rows = self._manifold_rows[which][first : first + ROWS]
        return as_bytes({"inside": int(inside(rows, _cut(self._manifold_rows[other]), radii).sum())})

    def numbers(self) -> tuple[list[Metric], list[LeftOut]]:
        """Return what all those files say."""
        if not self._config.num_images:
            return [], [LeftOut(name="images", why="num_images=0")]
        parts = [self._frechet_numbers(), self._kernel_numbers(), self._manifold_numbers()]
        missing = [] if self._is_inception else [LeftOut(name="fid, kid", why=self._why_no_fid())]
        return [m for found, _ in parts for m in found], [
            *missing,
            *(each for _, gone in parts for each in gone),
        ]

    def _frechet_numbers(self) -> tuple[list[Metric], list[LeftOut]]:
        name = self._name("fid", "frechet")
        if not self._has_frechet:
            return [], [LeftOut(name=name, why="it needs 2 images on either side")]
        few = min(self._reals.count, self._fakes.count) <= self._width
        note = (
            f"no more images than {self._width} features: singular covariances, a high number" if few else ""
        )
        return [self._metric(name, read(self._folder / "frechet.json", "frechet"), note=note)], []

    def _kernel_numbers(self) -> tuple[list[Metric], list[LeftOut]]:
        name = self._name("kid", "squared_mmd")
        if not self._has_kernel:
            return [], [LeftOut(name=name, why=f"subsets of {self._subset_size} images: it needs 2")]
        paths = map(self._subsets_path, range(0, self._num_subsets, SUBSETS))
        values = [value for path in paths for value in read(path, "squared_mmd")]
        error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        note = f"{len(values)} subsets of {self._subset_size}"
        return [self._metric(name, float(np.mean(values)), error=error, note=note)], []

    def _manifold_numbers(self) -> tuple[list[Metric], list[LeftOut]]:
        names = [self._name(name, name) for name in ("precision", "recall")]
        if not self._has_manifold:
            why = f"it needs {NEIGHBOURS + 1} images on either side, and of manifold_images"
            return [], [LeftOut(name=name, why=why) for name in names]
        counts = {
            "num_generated": len(self._manifold("fakes")),
            "num_reference": len(self._manifold("reals")),
        }
        shares = [self._share_inside(which) for which in ("fakes", "reals")]
        return [self._metric(name, value, **counts) for name, value in zip(names, shares, strict=True)], []

    def _metric(self, name: str, value: float, **more: Any) -> Metric:
        facts = self._setting.extractor.facts
        counts = {"num_generated": self._fakes.count, "num_reference": self._reals.count}
        return Metric(
            name=name, value=value, features={"name": facts.name, "digest": facts.digest}, **counts | more
        )

    @cached_property
    def _width(self) -> int:
        return int(next(self._fakes.chunks()).shape[1])

    @property
    def _is_inception(self) -> bool:
        return self._setting.extractor.facts.is_users and self._width == features.INCEPTION_FEATURES

    def _name(self, of_inception: str, otherwise: str) -> str:
        """Return what a number may be called: only Inception's own have the short names."""
        own = self._setting.extractor.facts.name.replace("-", "_")
        return of_inception if self._is_inception else f"{otherwise}_{own}"

    def _why_no_fid(self) -> str:
        if self._setting.extractor.facts.is_users:
            return f"features.path gives {self._width} numbers an image, Inception-v3 {features.INCEPTION_FEATURES}"
        return "no features.path: offline features are no Inception"

    def _share_inside(self, which: str) -> float:
        count = len(self._manifold(which))
        found = sum(read(self._inside_path(which, first), "inside") for first in range(0, count, ROWS))
        return float(found / count)

    def _subsets_path(self, first: int) -> Path:
        return self._folder / "subsets" / f"{first:05d}.json"

    def _radii_path(self, which: str, first: int) -> Path:
        return self._folder / "radii" / f"{which}-{first:06d}.npy"

    def _inside_path(self, which: str, first: int) -> Path:
        return self._folder / "inside" / f"{which}-{first:06d}.json"


def _cut(rows: Rows) -> Iterator[Rows]:
    for first in range(0, len(rows), ROWS):
        yield rows[first : first + ROWS]
