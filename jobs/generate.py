"""Generate textured meshes from a training run, finished or not, on any number of workers."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from get3d_cluster.core.job import Position, Resources
from get3d_cluster.errors import UsageError
from get3d_cluster.runtime.claims import Claims, Owner
from get3d_cluster.runtime.env import ProcessId
from get3d_cluster.runtime.run_folder import RunFolder, read_json
from get3d_cluster.runtime.session import ItemWork, Session
from get3d_cluster.storage.local import create

if TYPE_CHECKING:
    from jobs._shapes import Choice, ShapeMaker

KIND = "items"
WAIT_S, LONGEST_WAIT_S = 0.1, 120.0
"""Workers other than the first wait for its choice of a checkpoint."""
SEARCH_S = 0.5
"""Longest search for a shape to make in one step: notices are looked at between steps."""
COUNT_S = 2.0
"""Age at which the shapes that other workers made are counted anew; more if counting takes long."""
COUNT_SHARE = 0.02
"""Part of a worker's time that goes into counting."""
INDEX = "index"
"""Claimed by the worker that writes the index."""
MOST_SHAPES = 1_000_000
MOST_TEXTURE_PX, MOST_VIEW_PX = 16_384, 4096
MOST_CELLS, MOST_MATRIX_PX = 100, 30_000


@dataclass(frozen=True, kw_only=True)
class MatrixConfig:
    """Geometries (rows) with textures (columns), step by step from one shape to the next."""

    shapes: tuple[int, ...] = ()
    """Numbers of the shapes to go between, such as [0, 3, 7]; empty: no matrix."""
    steps: int = 1
    """Steps from one of them to the next; 1: they alone, each with the textures of all: a swap matrix."""
    view_px: int = 128
    """Side of its pictures."""
    meshes: bool = False
    """Files of a mesh for each cell, too, in the folder `matrix`."""

    def __post_init__(self) -> None:
        if self.shapes and (len(self.shapes) < 2 or min(self.shapes) < 0):
            raise ValueError(f"shapes={list(self.shapes)} must be the numbers of two shapes or more")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        if not 1 <= self.view_px <= MOST_VIEW_PX:
            raise ValueError(f"view_px={self.view_px} must lie between 1 and {MOST_VIEW_PX}")
        if self.side > MOST_CELLS or self.side * self.view_px > MOST_MATRIX_PX:
            raise ValueError(
                f"shapes={list(self.shapes)} and steps={self.steps} make {self.side} cells in a row of view_px="
                f"{self.view_px}: at most {MOST_CELLS} cells and {MOST_MATRIX_PX:,} pixels"
            )

    @property
    def side(self) -> int:
        """Cells in a row."""
        return (len(self.shapes) - 1) * self.steps + 1 if self.shapes else 0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write textured meshes, pictures and turntables of random shapes, or of given latents."""

    run: Path
    """Folder of the training run; its averaged weights are used."""
    step: int = 0
    """Checkpoint to use; 0: the newest when this run begins."""
    out: Path | None = None
    """Folder of the meshes; null: `meshes` in the folder of the training run."""
    num_shapes: int = 0
    """Shapes; more of them begin with the same ones. 0: as many as the latents given, else 12."""
    seed: int = 0
    """Another seed gives other shapes."""
    latents: tuple[Path, ...] = ()
    """Files of latents (.npz, .safetensors) to use instead of the seed's: docs/generating.md. Each shape also leaves
    its own, as `shape-00000.latents.npz`."""
    category: str = ""
    """Synset of the shapes, one of the training's generator.classes; empty: all of them in turn."""
    psi: float = 0.7
    """Truncation: 1 is as varied as the training, 0 the mean shape. Upstream's value for meshes. A w given in
    a file stays as it is."""
    w_avg_samples: int = 10_000
    """Fresh styles whose mean psi pulls towards; 0: the mean that the training kept. Upstream takes 100,000."""
    mixing: float = 0.0
    """Probability with which the later layers of a shape take the style of another latent, decided for geometry and
    texture apart; trainings often use 0.9."""
    cells: int = 0
    """Cells of the grid; 0: as in training. More give finer meshes."""
    max_faces: int = 0
    """Larger meshes are simplified to so many faces, closed as before, and textured afterwards; 0: none is."""
    formats: tuple[Literal["glb", "obj", "ply"], ...] = ("glb", "obj", "ply")
    """Files of a mesh: glb (texture inside), obj (with .mtl and .png), ply (colours at vertices, no texture)."""
    texture_px: int = 1024
    """Side of the texture; any number."""
    view_px: int = 256
    """Side of the pictures."""
    turntable_every: int = 4
    """A turntable (GIF) for the first of every so many shapes; 0: none."""
    turntable_frames: int = 36
    """Pictures of a turn."""
    mp4: Literal["auto", "on", "off"] = "auto"
    """Turntables as MP4, too; auto: if the first worker finds an ffmpeg (or `pip install imageio-ffmpeg`)."""
    matrix: MatrixConfig = field(default_factory=MatrixConfig)
    """Interpolation between shapes: a picture of all cells, and GIFs along geometry, texture and both."""
    resources: Resources = field(default_factory=Resources)
    """What one attempt asks of the scheduler."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("num_shapes", 0, MOST_SHAPES),
            ("texture_px", 4, MOST_TEXTURE_PX),
            ("view_px", 8, MOST_VIEW_PX),
            ("turntable_every", 0, math.inf),
            ("turntable_frames", 1, 1000),
            ("w_avg_samples", 0, math.inf),
            ("max_faces", 0, math.inf),
            ("psi", 0.0, 2.0),
            ("mixing", 0.0, 1.0),
        ):
            if not least <= getattr(self, name) <= most:
                bounds = f"at least {least}" if most == math.inf else f"between {least} and {most:,}"
                raise ValueError(f"{name}={getattr(self, name)} must be {bounds}")
        if self.cells < 0 or self.cells % 2:
            raise ValueError(f"cells={self.cells} must be even, or 0 for the grid of the training")
        if not self.formats or len(set(self.formats)) < len(self.formats):
            raise ValueError(f"formats={list(self.formats)} must name at least one format, and none twice")


def make(config: Config, session: Session) -> ItemWork:
    """Build the work of one worker.

    Raises: UsageError if the run has no usable checkpoint, or the latents given do not fit it.
    """
    import torch

    from get3d_cluster.train import numerics
    from jobs._shapes import ShapeMaker

    torch.set_num_threads(session.resources.cpus_per_worker)
    numerics.fix(session.device)
    training = RunFolder.open(config.run)
    choice = _choice(config, session, training)
    out = config.out or training.meshes_dir
    return GenerateWork(session, ShapeMaker(config, training, choice, out, session.device))


class GenerateWork:
    """One worker's part: claims a shape, makes it, takes the next; begins with its own, ends with anybody's."""

    def __init__(self, session: Session, maker: "ShapeMaker") -> None:
        self._maker = maker
        owner = Owner(process=ProcessId.mine(), attempt=session.attempt, name=str(session.rank))
        self._claims = Claims(session.run.path / "claims", owner)
        count = maker.num_items
        self._is_ended = bytearray(count)
        self._next = session.rank * count // session.world_size
        self._count_at_s = -math.inf
        self._is_indexed = False

    def position(self) -> Position:
        if self._is_ended.count(0) and time.monotonic() > self._count_at_s:
            begun_s = time.monotonic()
            self._count()
            counted_s = time.monotonic()
            self._count_at_s = counted_s + max(COUNT_S, (counted_s - begun_s) / COUNT_SHARE)
        return Position(step=self._is_ended.count(1), num_steps=len(self._is_ended))

    def is_done(self) -> bool:
        return self._is_indexed

    def step(self) -> None:
        """Make one shape that nobody else is making; after the last, write the index."""
        self._claims.beat()
        if not self._is_ended.count(0):
            self._finish()
            return
        deadline_s = time.monotonic() + SEARCH_S
        for number in self._round():
            if self._is_made(number) or (self._claims.claim(str(number)) and self._make(number)):
                return
            if time.monotonic() > deadline_s:
                break
        time.sleep(WAIT_S)  # all that is left is with others

    def close(self) -> None:
        self._claims.release_all()

    def _round(self) -> Iterator[int]:
        """Yield what is left, from the next on and around."""
        begun = self._next
        for start, end in ((begun, len(self._is_ended)), (0, begun)):
            number = self._is_ended.find(0, start, end)
            while number >= 0:
                yield number
                number = self._is_ended.find(0, number + 1, end)

    def _is_made(self, number: int) -> bool:
        if self._maker.is_made(number):
            self._is_ended[number] = 1
            self._next = number + 1
        return bool(self._is_ended[number])

    def _make(self, number: int) -> bool:
        if not self._is_made(number):  # by another worker, between our look and our claim
            self._maker.make(number)
            self._is_ended[number] = 1
            self._next = number + 1
        self._claims.release(str(number))
        return True

    def _count(self) -> None:
        for number in self._maker.present():
            self._is_ended[number] |= self._maker.is_made(number)

    def _finish(self) -> None:
        """Write index and sheets, or wait for the worker that does."""
        if not self._claims.claim(INDEX):
            time.sleep(WAIT_S)
            return
        self._maker.finish()
        self._claims.release(INDEX)
        self._is_indexed = True


def _choice(config: Config, session: Session, training: RunFolder) -> "Choice":
    """Return what all workers, and later attempts, of this run use: the choice of the first that speaks for them."""
    from jobs._shapes import Choice, chosen

    place = session.run.path / "source.json"
    if session.is_lead and not place.exists():  # of an array, any element may come first
        choice = chosen(config, training)
        is_ours = create(place, (json.dumps(choice.plain(), indent=2) + "\n").encode())
        if is_ours and config.mp4 == "auto" and not choice.mp4 and config.turntable_every:
            session.events.write("no-mp4", why="no ffmpeg found: turntables are GIF alone")
    deadline_s = time.monotonic() + LONGEST_WAIT_S
    while True:
        with contextlib.suppress(UsageError):  # not there yet, or not whole
            return Choice.of(read_json(place))
        if time.monotonic() > deadline_s:
            raise UsageError(
                f"the first worker wrote no {place} within {LONGEST_WAIT_S:g} s",
                "look at what it says: launch.py logs RUN --rank 0",
            )
        time.sleep(WAIT_S)
