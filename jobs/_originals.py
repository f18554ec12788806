"""What a training learns from, for people: some real images laid out as the generated ones are, and all cameras."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray

from get3d_cluster.core.job import Position
from get3d_cluster.core.philox import key_of
from get3d_cluster.data.camera_counts import camera_counts
from get3d_cluster.data.dataset import ImageDataset
from get3d_cluster.export.pictures import contact_sheet, write_png
from get3d_cluster.get3d.camera import camera_position
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.runtime.run_folder import write_json
from get3d_cluster.runtime.session import Session
from get3d_cluster.train.config import TrainerConfig
from get3d_cluster.train.previews import ring

Images = NDArray[np.float32]
ROWS = ("from about the same side", "from the other side", "masks, from the same side")
INK = 0.25
"""Brightness of masks on the sheet."""


class Originals:
    """Leaves real.png and cameras.json in the folder of a run, once."""

    def __init__(self, config: TrainerConfig, session: Session, dataset: ImageDataset) -> None:
        self._config = config
        self._run = session.run
        self._dataset = dataset

    def look(self, _average: Generator, _position: Position) -> Mapping[str, float]:
        """Write what is not there yet."""
        if not self._run.cameras_path.is_file():
            rotations, elevations = zip(*self._dataset.angles_deg(), strict=True)
            drawn = self._config.data.elevation_range_deg
            write_json(self._run.cameras_path, camera_counts(rotations, elevations, drawn))
        if not self._run.reals_path.is_file():
            sheet = contact_sheet(self._rows(), title="real images", row_captions=ROWS)
            write_png(self._run.reals_path, sheet)
        return {}

    def _rows(self) -> Images:  # [3, N, H, W, 4] in [0, 1], premultiplied
        """Show a model in each column, as many as shapes are shown of the generator; empty where there are fewer."""
        columns, classes = self._config.watch.preview_shapes, self._config.generator.classes
        groups = views_of([sample.key for sample in self._dataset.samples])
        models = chosen_models(list(groups), self._config.seed, columns, classes)
        views = [groups[model] for model in models]
        numbers = [nearest_view(self._dataset, each, camera) for camera in ring(2) for each in views]
        images, _ = self._dataset.batch(numbers)
        size = self._config.generator.render.image_size_px
        pixels = images.cpu().permute(0, 2, 3, 1).reshape(2, len(views), size, size, 4).numpy()
        rows = np.zeros((3, columns, size, size, 4), np.float32)
        rows[:2, : len(views), ..., :3] = pixels[..., :3] / 2 + 0.5
        rows[:2, : len(views), ..., 3] = pixels[..., 3]
        rows[2] = rows[0, ..., 3:] * np.array([INK, INK, INK, 1.0], np.float32)
        return rows


def views_of(keys: Sequence[str]) -> dict[str, list[int]]:
    """Return the images of each model, <synset>/<model>; a key is <synset>/<model>/<view>."""
    models: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        models.setdefault(key.rpartition("/")[0], []).append(number)
    return models


def chosen_models(models: Sequence[str], seed: int, count: int, classes: Sequence[str]) -> list[str]:
    """Return up to ``count`` models, a function of the seed and the names; of all classes in turn, if there are any."""
    shuffled = sorted(models, key=lambda model: key_of("originals", str(seed), model))
    if classes:
        of_class = [[model for model in shuffled if model.split("/")[0] == name] for name in classes]
        shuffled = [model for turn in zip_longest(*of_class) for model in turn if model]
    return shuffled[:count]


def nearest_view(
    dataset: ImageDataset,
    numbers: Sequence[int],
    camera: torch.Tensor,  # [2] azimuth, polar, radians
) -> int:
    """Return which of some images was taken from nearest to ``camera``."""
    taken = dataset.cameras[list(numbers)]
    places = camera_position(taken[:, 0], taken[:, 1])
    wanted = camera_position(camera[:1], camera[1:])
    return numbers[int((places * wanted).sum(dim=1).argmax())]
