"""What a training shows while it runs: sheets of fixed shapes, and distances to the real images."""

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from get3d_cluster.core.job import Position
from get3d_cluster.core.philox import key_of
from get3d_cluster.data.dataset import ImageDataset
from get3d_cluster.data.format import Sample
from get3d_cluster.errors import StorageError
from get3d_cluster.evaluation.progress import measure_progress
from get3d_cluster.export.pictures import contact_sheet, write_png
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.report.tensorboard import TensorBoard, forget_after
from get3d_cluster.runtime.session import Session
from get3d_cluster.train.classes import labels_of
from get3d_cluster.train.config import TrainerConfig
from get3d_cluster.train.previews import Watch, latents_of, portraits, random_images, ring, shrunk
from jobs._originals import Originals, views_of
from jobs._pictures import geometry

MEASURED_PX = 64
"""Side at which images are compared: the distances are coarse, and memory is dear."""
MOST_REALS = 1024
"""Real images on either side of a measurement, at most."""
CHUNK = 32
ROWS = ("colours", "colours, from the other side", "geometry")


def watches(
    config: TrainerConfig, session: Session, dataset: ImageDataset, samples: Sequence[Sample]
) -> list[Watch]:
    """Return what rank 0 looks at."""
    watch, found = config.watch, []
    if watch.preview_every_s:
        originals, sheets = Originals(config, session, dataset), Sheets(config, session)
        found.append(Watch(originals.look, watch.preview_every_s, watch.budget))
        found.append(Watch(sheets.look, watch.preview_every_s, watch.budget, rewind=sheets.rewind))
    if watch.measure_every_s:
        reference, held_out = split_by_model([sample.key for sample in samples], config.seed)
        if min(len(held_out), watch.measure_images) < 2:
            session.events.write("measure-off", why=f"{len(held_out)} images of other models give no floor")
        else:
            ruler = Ruler(config, session, dataset, reference, held_out)
            found.append(Watch(ruler.look, watch.measure_every_s, watch.budget))
    return found


def mirrors(config: TrainerConfig, session: Session) -> list[Watch]:
    """Return what rank 0 keeps in line with the rows."""
    watch = config.watch
    every_s = watch.tensorboard_every_s
    board = Board(session)
    return [Watch(board.look, every_s, watch.budget, rewind=board.rewind)] if every_s else []


class Sheets:
    """Draws the same shapes again and again: two views in colour, and their geometry."""

    def __init__(self, config: TrainerConfig, session: Session) -> None:
        self._config = config
        self._session = session

    def look(self, average: Generator, position: Position) -> Mapping[str, float]:
        """Write samples/NNNNNNNNN.png, named by the images seen."""
        watch, device = self._config.watch, self._session.device
        numbers = torch.arange(watch.preview_shapes, device=device)
        latents = latents_of(average, "preview", self._config.seed, numbers, watch.psi)
        seen = portraits(average, latents, ring(2, device=device))
        rows = np.concatenate([seen.colours, geometry(seen)[:1]])
        title = f"{position.images:,} images, epoch {position.epoch}"
        sheet = contact_sheet(rows, title=title, row_captions=ROWS)
        write_png(self._session.run.samples_dir / f"{position.images:09d}.png", sheet)
        return {}

    def rewind(self, position: Position) -> None:
        """Put the sheets of later images away, hidden beside the others."""
        samples = self._session.run.samples_dir
        for path in samples.glob("*.png"):
            if path.stem.isdigit() and int(path.stem) > position.images:
                with contextlib.suppress(OSError):  # a picture is not worth a training
                    path.rename(samples / f".rolled-back-{path.name}")


class Board:
    """Keeps TensorBoard's files in line with metrics.jsonl."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._board: TensorBoard | None = None
        self._is_off = False

    def look(self, _average: Generator, _position: Position) -> Mapping[str, float]:
        """Write what is new."""
        if self._board is None and not self._is_off:
            try:
                self._board = TensorBoard(self._session.run, self._session.attempt)
            except ImportError as error:
                self._is_off = True
                self._session.events.write(
                    "tensorboard-off", why=str(error), way_out="pip install tensorboardX"
                )
        if self._board is not None:
            self._board.catch_up()
        return {}

    def rewind(self, position: Position) -> None:
        """Let TensorBoard forget what came after ``position``."""
        with contextlib.suppress(StorageError):  # the rows are in metrics.jsonl
            if self._board is not None:
                self._board.rewind(position.step)
            else:
                forget_after(self._session.run, position.step)


class Ruler:
    """Measures generated images against real ones of half of the models; the other half gives the floor."""

    def __init__(
        self,
        config: TrainerConfig,
        session: Session,
        dataset: ImageDataset,
        reference: Sequence[int],
        held_out: Sequence[int],
    ) -> None:
        self._config = config
        self._pulse = session.pulse
        self._dataset = dataset
        self._split = (reference, held_out)
        self._labels = labels_of(dataset.samples, config.generator.classes)
        self._reals: tuple[Tensor, Tensor] | None = None

    def look(self, average: Generator, _position: Position) -> Mapping[str, float]:
        """Return both distances, each beside what real images of other models get."""
        with self._pulse.measuring():
            return self._measured(average)

    def _measured(self, average: Generator) -> Mapping[str, float]:
        config = self._config
        reference, held_out = self._load()
        generated = random_images(
            average,
            config.seed,
            min(config.watch.measure_images, len(held_out)),
            config.data.elevation_range_deg,
            longest_px=MEASURED_PX,
            labels=self._labels,
        )
        report = measure_progress(generated, reference, held_out)
        return {
            "frechet_pooled": report.distance,
            "frechet_floor": report.distance_floor,
            "silhouette_iou": report.iou,
            "silhouette_floor": report.iou_floor,
        }

    def _load(self) -> tuple[Tensor, Tensor]:
        if self._reals is None:
            reference, held_out = (self._images(numbers) for numbers in self._split)
            self._reals = reference, held_out
        return self._reals

    def _images(self, numbers: Sequence[int]) -> Tensor:
        chunks = [numbers[i : i + CHUNK] for i in range(0, len(numbers), CHUNK)]
        return torch.cat([shrunk(self._dataset.batch(chunk)[0], MEASURED_PX) for chunk in chunks])


def split_by_model(keys: Sequence[str], seed: int, most: int = MOST_REALS) -> tuple[list[int], list[int]]:
    """Return the images of one half of the models, and of the other; at most ``most`` each, spread over models.

    A key is <synset>/<model>/<view>. The halves depend on the seed and the names alone.
    """
    models = views_of(keys)
    shuffled = sorted(models, key=lambda model: key_of(str(seed), model))
    halves = shuffled[0::2], shuffled[1::2]
    reference, held_out = (_spread([models[model] for model in half], most) for half in halves)
    return reference, held_out


def _spread(groups: Sequence[Sequence[int]], most: int) -> list[int]:
    """Take the first of each group, then the second of each, ... up to ``most``."""
    longest = max(map(len, groups), default=0)
    by_turns = [group[i] for i in range(longest) for group in groups if i < len(group)]
    return by_turns[:most]
