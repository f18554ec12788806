"""Generate textured meshes from a training run, finished or not, on any number of workers."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from get3d_cluster.core.job import Position, Resources
from get3d_cluster.errors import UsageError
from get3d_cluster.runtime.run_folder import RunFolder, read_json, write_json
from get3d_cluster.runtime.session import ItemWork, Session

if TYPE_CHECKING:
    from jobs._shapes import ShapeMaker, Source

KIND = "items"
WAIT_S, LONGEST_WAIT_S = 0.1, 120.0
"""Workers other than the first wait for its choice of a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write textured meshes, pictures and turntables of random shapes."""

    run: Path
    """Folder of the training run; its averaged weights are used."""
    step: int = 0
    """Checkpoint to use; 0: the newest when this run begins."""
    out: Path | None = None
    """Folder of the meshes; null: `meshes` in the folder of the training run."""
    num_shapes: int = 12
    """Shapes; more of them begin with the same ones."""
    seed: int = 0
    """Another seed gives other shapes."""
    category: str = ""
    """Synset of the shapes, one of the training's generator.classes; empty: all of them in turn."""
    psi: float = 0.7
    """Truncation: 1 is as varied as the training, 0 the mean shape. Upstream's value for meshes."""
    w_avg_samples: int = 10_000
    """Fresh styles whose mean psi pulls towards; 0: the mean that the training kept. Upstream takes 100,000."""
    cells: int = 0
    """Cells of the grid; 0: as in training. More give finer meshes."""
    texture_px: int = 1024
    """Side of the texture."""
    view_px: int = 256
    """Side of the pictures."""
    turntable_every: int = 4
    """A turntable for the first of every so many shapes; 0: none."""
    turntable_frames: int = 36
    """Pictures of a turn."""
    resources: Resources = field(default_factory=Resources)
    """What one attempt asks of the scheduler."""

    def __post_init__(self) -> None:
        for name in ("num_shapes", "texture_px", "view_px", "turntable_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.cells < 0 or self.cells % 2:
            raise ValueError(f"cells={self.cells} must be even, or 0 for the grid of the training")


def make(config: Config, session: Session) -> ItemWork:
    """Build the work of one worker. Raises: UsageError if the run has no usable checkpoint."""
    import torch

    from get3d_cluster.train import numerics
    from jobs._shapes import ShapeMaker

    torch.set_num_threads(session.resources.cpus_per_worker)
    numerics.fix(session.device)
    training = RunFolder.open(config.run)
    source = _source(config, session, training)
    out = config.out or training.meshes_dir
    return GenerateWork(config, session, out, ShapeMaker(config, training, source, out, session.device))


class GenerateWork:
    """One worker's part: begins with its own shapes, then makes whatever is still missing, then the index.

    Workers do not wait for each other: two may at worst make the same shape, with the same bytes.
    """

    def __init__(self, config: Config, session: Session, out: Path, maker: "ShapeMaker") -> None:
        self._config = config
        self._out = out
        self._maker = maker
        first = session.rank * config.num_shapes // session.world_size
        self._left = [*range(first, config.num_shapes), *range(first)]
        self._is_indexed = False

    def position(self) -> Position:
        self._left = [number for number in self._left if not self._maker.is_made(number)]
        return Position(step=self._config.num_shapes - len(self._left), num_steps=self._config.num_shapes)

    def is_done(self) -> bool:
        return self._is_indexed

    def step(self) -> None:
        self.position()
        if self._left:
            self._maker.make(self._left.pop(0))
            return
        write_json(self._out / "index.json", self._maker.index())
        self._maker.write_sheet()
        self._is_indexed = True

    def close(self) -> None:
        """Nothing is held between steps."""


def _source(config: Config, session: Session, training: RunFolder) -> "Source":
    """Return the checkpoint that all workers, and later attempts, of this run use: the first worker's choice."""
    from jobs._shapes import Source, chosen_source

    place = session.run.path / "source.json"
    if session.rank == 0 and not place.exists():
        write_json(place, asdict(chosen_source(training, config.step)))
    deadline_s = time.monotonic() + LONGEST_WAIT_S
    while not place.exists():
        if time.monotonic() > deadline_s:
            raise UsageError(
                f"the first worker wrote no {place} within {LONGEST_WAIT_S:g} s",
                "look at what it says: launch.py logs RUN --rank 0",
            )
        time.sleep(WAIT_S)
    return Source(**read_json(place))
