"""What is measured of one checkpoint: items in stages, and the numbers that come out of their files.

0 weights of the averaged generator, out of the training's reach
1 features of real and of generated images; points, silhouettes and facts of shapes and references
2 distances between them, one row an item; Fréchet distance; subsets of the kernel distance; radii of manifolds
3 who lies within whose manifold
"""

from functools import cached_property
from itertools import zip_longest

from safetensors.torch import load_file, save

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.evaluation.results import LeftOut, Metric, finite_only
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.runtime.checkpoint import Checkpoints, DamagedError
from get3d_cluster.storage import open_storage
from jobs._array_files import Stage
from jobs._evaluation_setting import Setting
from jobs._measured_images import ImageMeasures
from jobs._measured_shapes import ShapeMeasures
from jobs._staged import Item


class GoneError(Exception):
    """The training let the checkpoint go before its weights were copied."""


class Measured:
    """Items and numbers of one checkpoint."""

    def __init__(self, setting: Setting, step: int, digest: str) -> None:
        self._setting = setting
        self._step = step
        self._digest = digest
        folder = setting.folder_of(step, digest)
        self._weights_path = folder / "weights.safetensors"
        self._images = ImageMeasures(setting, folder, lambda: self._generator)
        self._shapes = ShapeMeasures(setting, folder, lambda: self._generator)

    def stages(self) -> list[Stage]:
        """Return all that has to be made, in stages."""
        both = zip_longest(self._images.stages(), self._shapes.stages(), fillvalue=list[Item]())
        return [[Item(path=self._weights_path, make=self._weights)], *([*a, *b] for a, b in both)]

    def numbers(self) -> tuple[list[Metric], list[LeftOut]]:
        """Return what all those files say."""
        parts = [self._images.numbers(), self._shapes.numbers()]
        metrics, left_out = finite_only([metric for found, _ in parts for metric in found])
        return metrics, [*(each for _, missing in parts for each in missing), *left_out]

    def _weights(self) -> bytes:
        """Copy the averaged generator. Reads without cleaning up or setting aside: the run may be training."""
        storage = open_storage(self._setting.training.checkpoints_dir)
        checkpoints = Checkpoints(storage, CheckpointConfig(), check_owner=lambda: None)
        try:
            loaded = checkpoints.read_step(self._step)
        except DamagedError as error:
            raise GoneError(str(error)) from error
        if loaded.digest != self._digest:
            raise GoneError(f"checkpoint of step={self._step} is another one by now")
        return save({name: tensor.contiguous() for name, tensor in loaded.state["generator_ema"].items()})

    @cached_property
    def _generator(self) -> Generator:
        generator = Generator(self._setting.trained.generator)
        generator.load_state_dict(load_file(self._weights_path))
        return generator.to(self._setting.device).eval().requires_grad_(requires_grad=False)
