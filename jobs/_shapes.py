"""One generated shape after the other: mesh, texture, pictures. Each is a function of checkpoint, seed and number."""

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from get3d_cluster.config import read_run_config
from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.errors import CheckpointError, UsageError
from get3d_cluster.export.atlas import textured_mesh
from get3d_cluster.export.files import write_glb, write_obj
from get3d_cluster.export.mesh import is_closed, signed_volume
from get3d_cluster.export.pictures import contact_sheet, over_background, turntable_gif, write_png
from get3d_cluster.get3d.config import GeneratorConfig
from get3d_cluster.get3d.generator import Generator, Shapes
from get3d_cluster.get3d.mapping import Latents
from get3d_cluster.runtime.checkpoint import Checkpoints, DamagedError, list_checkpoints
from get3d_cluster.runtime.run_folder import RunFolder, read_json, write_json
from get3d_cluster.storage import open_storage
from get3d_cluster.train.classes import in_turn
from get3d_cluster.train.previews import latents_of, portraits, ring
from jobs import train
from jobs._pictures import geometry

if TYPE_CHECKING:
    from jobs.generate import Config

FORMAT = 1
COLUMNS = 6
"""Shapes in a row of the contact sheet."""
CHUNK = 1000


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkpoint that shapes are made from."""

    step: int
    images: int
    digest: str


def chosen_source(training: RunFolder, step: int) -> Source:
    """Return the checkpoint of ``step``, or the newest that is not damaged if 0.

    Raises: UsageError if there is none.
    """
    found = [each for each in list_checkpoints(training) if each.state != "damaged"]
    wanted = [each for each in found if step in (0, each.step)]
    if not wanted:
        raise UsageError(
            f"{training.path} has no checkpoint {f'of step={step}' if step else 'yet'}",
            f"it has {[each.step for each in found]}" if found else "let it train until its first checkpoint",
        )
    newest = wanted[-1]
    return Source(step=newest.step, images=newest.images, digest=newest.digest)


class ShapeMaker:
    """Makes the shapes of one seed from the averaged weights of one checkpoint, into ``out``."""

    def __init__(self, config: "Config", training: RunFolder, source: Source, out: Path, device: str) -> None:
        self._config = config
        self._source = source
        self._out = out
        self._device = device
        # What a finished shape must have been made from, to be left alone.
        self._made_from = {"format": FORMAT, **asdict(source), **_decisive(config)}
        self._generator = _load(training, source, config, device)
        self._category = _category(self._generator.config, config.category)
        self._centres: dict[int | None, Tensor] = {}

    def is_made(self, number: int) -> bool:
        """Say whether the shape is complete, and from the same checkpoint and settings."""
        path = self._facts_path(number)
        return path.is_file() and read_json(path).get("made_from") == self._made_from

    @torch.no_grad()
    def make(self, number: int) -> None:
        """Write mesh, texture and pictures of a shape; its facts come last, and make it count as made."""
        latents = self._latents(number)
        shapes = self._generator.shapes(latents, closed=True)
        verts, faces = (tensor.cpu().numpy() for tensor in shapes.meshes.mesh(0))
        mesh = textured_mesh(verts, faces, self._colour_at(shapes, latents), self._config.texture_px)
        name = name_of(number)
        write_glb(self._out / f"{name}.glb", mesh)
        write_obj(self._out, name, mesh)
        self._write_views(number, latents)
        facts = {
            "name": name,
            "closed": is_closed(faces),
            "volume": signed_volume(verts, faces),
            "num_vertices": len(verts),
            "num_faces": len(faces),
            "files": [f"{name}{end}" for end in self._ends(number)],
            "made_from": self._made_from,
        }
        write_json(self._facts_path(number), facts)

    def index(self) -> dict[str, Any]:
        """Return what there is, for programs."""
        facts = [read_json(self._facts_path(number)) for number in range(self._config.num_shapes)]
        shapes = [{key: value for key, value in each.items() if key != "made_from"} for each in facts]
        return {"made_from": self._made_from, "sheet": "sheet.png", "shapes": shapes}

    def write_sheet(self) -> None:
        """Lay the pictures of all shapes out on one sheet, colours above geometry."""
        views = [_pictures(self._views_path(number)) for number in range(self._config.num_shapes)]
        size, num = views[0].shape[1], len(views)
        columns = min(COLUMNS, num)
        num_rows = -(-num // columns)
        blank = np.broadcast_to(over_background(np.zeros((size, size, 4))), (2, size, size, 3))
        padded = np.stack([*views, *[blank] * (num_rows * columns - num)])  # [R C, 2, H, W, 3]
        cells = padded.reshape(num_rows, columns, 2, size, size, 3).swapaxes(1, 2)
        captions = [
            f"{name_of(row * columns)} and following" if kind == 0 else "geometry"
            for row in range(num_rows)
            for kind in range(2)
        ]
        title = f"{num} shapes, seed {self._config.seed}, psi {self._config.psi:g}, {self._source.images:,} images"
        sheet = contact_sheet(
            cells.reshape(2 * num_rows, columns, size, size, 3), title=title, row_captions=captions
        )
        write_png(self._out / "sheet.png", sheet)

    def _latents(self, number: int) -> Latents:
        config, samples = self._config, torch.tensor([number], device=self._device)
        classes = self._class_of(number)
        if config.w_avg_samples:
            self._generator.update_w_avg(self._centre(classes), beta=0.0)
        return latents_of(self._generator, "generate", config.seed, samples, config.psi, classes)

    def _class_of(self, number: int) -> Tensor | None:  # [1]
        if self._category is not None:
            return torch.tensor([self._category], device=self._device)
        return in_turn(torch.tensor([number], device=self._device), len(self._generator.config.classes))

    def _centre(self, classes: Tensor | None) -> Tensor:  # [1] -> [2 W]
        """Return the mean style that psi pulls towards: of the shape's own class, not of all."""
        key = None if classes is None else int(classes)
        if key not in self._centres:
            count = self._config.w_avg_samples
            self._centres[key] = _fresh_mean(self._generator, self._config.seed, count, classes)
        return self._centres[key]

    def _colour_at(self, shapes: Shapes, latents: Latents) -> Any:
        def colour_at(points: Tensor) -> Tensor:
            own = points.to(self._device)
            whose = torch.zeros(len(own), dtype=torch.int64, device=self._device)
            return self._generator.colours(shapes.planes, latents, whose, own) / 2 + 0.5

        return colour_at

    def _write_views(self, number: int, latents: Latents) -> None:
        size, config = self._config.view_px, self._config
        seen = portraits(
            self._generator, latents, ring(1, device=self._device), image_size_px=size, supersampling=2
        )
        pair = np.concatenate([seen.colours[0], geometry(seen)[0]])  # [2, H, W, 4]
        write_png(self._views_path(number), np.concatenate(list(over_background(pair)), axis=1))
        if self._has_turntable(number):
            cameras = ring(config.turntable_frames, device=self._device)
            turn = portraits(self._generator, latents, cameras, image_size_px=size, supersampling=1)
            frames = np.concatenate([turn.colours[:, 0], geometry(turn)[:, 0]], axis=2)
            turntable_gif(self._out / f"{name_of(number)}.gif", frames)

    def _has_turntable(self, number: int) -> bool:
        return bool(self._config.turntable_every) and number % self._config.turntable_every == 0

    def _ends(self, number: int) -> list[str]:
        ends = [".glb", ".obj", ".mtl", ".png", ".views.png"]
        return [*ends, ".gif"] if self._has_turntable(number) else ends

    def _facts_path(self, number: int) -> Path:
        return self._out / f"{name_of(number)}.json"

    def _views_path(self, number: int) -> Path:
        return self._out / f"{name_of(number)}.views.png"


def name_of(number: int) -> str:
    """Return the name that all files of a shape begin with."""
    return f"shape-{number:05d}"


def _decisive(config: "Config") -> dict[str, Any]:
    names = ("seed", "category", "psi", "w_avg_samples", "cells", "texture_px", "view_px")
    turning = ("turntable_every", "turntable_frames")
    return {name: getattr(config, name) for name in (*names, *turning)}


def _load(training: RunFolder, source: Source, config: "Config", device: str) -> Generator:
    settings = read_run_config(train.Config, training.config_path)
    generator = Generator(_with_cells(settings.generator, config.cells))
    generator.load_state_dict(_weights(training, source))
    return generator.to(device).eval().requires_grad_(requires_grad=False)


def _category(config: GeneratorConfig, name: str) -> int | None:
    """Return the number of a class; None for all in turn. Raises: UsageError if there is no such class."""
    if not name:
        return None
    if name not in config.classes:
        raise UsageError(
            f"category={name} is none of the training's generator.classes={list(config.classes)}",
            f"give one of {list(config.classes)}"
            if config.classes
            else "leave out category: it has no classes",
        )
    return config.classes.index(name)


def _weights(training: RunFolder, source: Source) -> Mapping[str, Tensor]:
    """Read without cleaning up or setting aside anything: the run may be training."""
    checkpoints = Checkpoints(
        open_storage(training.checkpoints_dir), CheckpointConfig(), check_owner=lambda: None
    )
    try:
        loaded = checkpoints.read_step(source.step)
    except DamagedError as error:
        raise CheckpointError(
            f"checkpoint of step={source.step} cannot be read: {error}",
            "the training may have let it go: start another run of generate, for the newest",
        ) from error
    if loaded.digest != source.digest:
        raise CheckpointError(
            f"checkpoint of step={source.step} is another than when this run began",
            "start another run of generate",
        )
    weights: Mapping[str, Tensor] = loaded.state["generator_ema"]
    return weights


def _with_cells(config: GeneratorConfig, cells: int) -> GeneratorConfig:
    if not cells:
        return config
    return dataclasses.replace(config, grid=dataclasses.replace(config.grid, cells=cells, tet_res=0))


def _fresh_mean(
    generator: Generator,
    seed: int,
    count: int,
    classes: Tensor | None = None,  # [1]
) -> Tensor:  # [2 W]
    """Return the mean style of ``count`` fresh latents of a class. Source: upstream, before anything is shown."""
    numbers = torch.arange(count, device=generator.w_avg_geo.device)

    def mean(chunk: Tensor) -> Tensor:
        same = None if classes is None else classes.expand(len(chunk))
        return generator.w_mean(latents_of(generator, "w_avg", seed, chunk, classes=same))

    means = [mean(chunk).double() * len(chunk) for chunk in numbers.split(CHUNK)]
    return (torch.stack(means).sum(dim=0) / count).to(generator.w_avg_geo.dtype)


def _pictures(path: Path) -> NDArray[np.uint8]:  # [2, H, W, 3]
    with Image.open(path) as image:
        strip = np.asarray(image.convert("RGB"))
    return np.stack(np.split(strip, 2, axis=1))
