"""Make procedural cars and chairs in ShapeNet layout: models for a demo without any download."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from get3d_cluster.core.job import Position, Resources
from get3d_cluster.runtime.session import ItemWork, Session

if TYPE_CHECKING:
    from preprocess.shapes import Shape

KIND = "items"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write procedural models."""

    out: Path
    """Folder of the models: <synset>/<model>/model.obj, with its texture."""
    cars: int = 48
    """Cars, synset 02958343, of seven kinds in turn."""
    chairs: int = 6
    """Chairs, synset 03001627, of six kinds in turn."""
    seed: int = 0
    """Another seed gives other measures and colours."""
    resources: Resources = field(default_factory=Resources)
    """What one attempt asks of the scheduler."""

    def __post_init__(self) -> None:
        if self.cars < 0 or self.chairs < 0 or self.cars + self.chairs == 0:
            raise ValueError(f"cars={self.cars} and chairs={self.chairs} must not be negative, nor both zero")


def make(config: Config, session: Session) -> ItemWork:
    """Build the work of one worker."""
    from preprocess import shapes

    return ShapesWork(shapes.planned(config.cars, config.chairs), config, session)


class ShapesWork:
    """One worker's part: begins with its own models, then makes whatever is still missing."""

    def __init__(self, shapes: "Sequence[Shape]", config: Config, session: Session) -> None:
        self._config = config
        self._num_shapes = len(shapes)
        first = session.rank * len(shapes) // session.world_size
        self._left = [*shapes[first:], *shapes[:first]]
        self._drop_written()

    def position(self) -> Position:
        self._drop_written()
        return Position(step=self._num_shapes - len(self._left), num_steps=self._num_shapes)

    def is_done(self) -> bool:
        return not self._left

    def step(self) -> None:
        from preprocess import shapes

        shape = self._left.pop(0)
        if not shapes.is_written(self._config.out, shape, self._config.seed):
            shapes.write_shape(self._config.out, shape, self._config.seed)

    def close(self) -> None:
        """Nothing is held between steps."""

    def _drop_written(self) -> None:
        from preprocess import shapes

        self._left = [
            shape for shape in self._left if not shapes.is_written(self._config.out, shape, self._config.seed)
        ]
