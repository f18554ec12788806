"""Measure checkpoints of a training, running or finished, on any number of workers: images, shapes, meshes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from get3d_cluster.core.job import Position, Resources, RetryConfig
from get3d_cluster.errors import UsageError
from get3d_cluster.evaluation.config import FeaturesConfig
from get3d_cluster.runtime.session import ItemWork, Session

if TYPE_CHECKING:
    from jobs._evaluation import Evaluator

KIND = "items"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure a training: FID, KID, precision and recall of images, coverage of shapes, facts of meshes.

    The training goes on meanwhile; docs/evaluating.md says what the numbers mean.
    """

    run: Path
    """Folder of the training run; its averaged weights are measured."""
    step: int = 0
    """Checkpoint to measure; 0: the newest when this run begins."""
    every: bool = False
    """Measure every checkpoint that there is, and those that are published meanwhile."""
    follow: bool = False
    """With every: also wait for checkpoints to come, until the training has finished."""
    out: Path | None = None
    """Folder of the results; null: `evaluation` in the folder of the training run, where its report finds them."""
    data: str | None = field(default=None, metadata={"location": True})
    """Packed dataset of the real images, such as those of a test split; null: the training's own."""
    num_images: int = 50_000
    """Generated images, and real ones at most; 0: no images. FID depends on it: the paper's is of 50,000."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    """What images are compared by."""
    kid_subsets: int = 100
    """Subsets whose kernel distances are averaged."""
    kid_subset_size: int = 1000
    """Images of a subset; fewer if there are fewer."""
    manifold_images: int = 10_000
    """Images on either side for precision and recall; the cost grows with its square. Its paper takes 50,000."""
    geometry: bool = True
    """Measure shapes, too."""
    references: Path | None = None
    """Folder of the models that the images were rendered from (OBJ, GLB, PLY); null: no coverage of shapes."""
    num_references: int = 0
    """A choice of so many of them; 0: all."""
    num_shapes: int = 0
    """Generated shapes; 0: five for each reference, as in the paper, or 100 without references."""
    shape_points: int = 2048
    """Points on each surface for the Chamfer distance; part of its value."""
    light_field: bool = True
    """Compare silhouettes from all around, too."""
    psi: float = 1.0
    """Truncation: 1 is as varied as the training, as the paper measures it."""
    seed: int = 0
    """Another seed generates and chooses others: tells how much a number varies by chance."""
    batch: int = 4
    """Images rendered at a time."""
    resources: Resources = field(default_factory=Resources)
    """What one attempt asks of the scheduler; any number of workers finds the same numbers."""
    retry: RetryConfig = field(default_factory=RetryConfig)
    """How often the run comes back by itself."""

    def __post_init__(self) -> None:
        for name in ("kid_subsets", "shape_points", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 1", f"leave {name} out")
        for name in (
            "step", "num_images", "kid_subset_size", "manifold_images", "num_references", "num_shapes", "seed",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise UsageError(f"{name}={getattr(self, name)} must be 0 or more", f"leave {name} out")
        if self.follow and not self.every:
            raise UsageError("follow=true waits for checkpoints, and every=false wants one", "set every=true")
        if self.every and self.step:
            raise UsageError(
                f"step={self.step} is one checkpoint, and every=true all", "leave out one of them"
            )
        if not self.num_images and not self.geometry:
            raise UsageError(
                "num_images=0 and geometry=false leave nothing to measure", "leave out one of them"
            )


def make(config: Config, session: Session) -> ItemWork:
    """Build the work of one worker.

    Raises: UsageError if there is nothing to measure, or nothing to measure by.
    """
    import torch

    from get3d_cluster.train import numerics
    from jobs._evaluation import Evaluator

    torch.set_num_threads(session.resources.cpus_per_worker)
    numerics.fix(session.device)
    return EvaluateWork(session, Evaluator(config, session))


class EvaluateWork:
    """One worker's part: makes files of the checkpoint at hand that nobody makes yet, then goes to the next one."""

    def __init__(self, session: Session, evaluator: "Evaluator") -> None:
        self._session = session
        self._evaluator = evaluator

    def position(self) -> Position:
        made, of_all, images = self._evaluator.progress()
        return Position(step=made, num_steps=of_all, images=images)

    def is_done(self) -> bool:
        return self._evaluator.is_done

    def step(self) -> None:
        self._evaluator.step()

    def close(self) -> None:
        self._evaluator.close()
