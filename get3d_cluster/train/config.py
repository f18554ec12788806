"""Every setting of a training. Pure: a login node reads it without torch.

Defaults are upstream's for cars at 1024 px, unless a comment says otherwise. Sources: Gao et al. 2022 (GET3D),
Karras et al. 2020 (StyleGAN2).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from get3d_cluster.data.config import ReadConfig
from get3d_cluster.dist.config import ReductionConfig
from get3d_cluster.errors import UsageError
from get3d_cluster.get3d.config import DiscriminatorConfig, GeneratorConfig, ModelConfig

NUM_SEEDS = 2**64
"""As many keys as the random numbers have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The images to learn from, and the cameras that generated images are taken with."""

    path: str = field(metadata={"location": True, "changeable": True})
    """Folder of a packed dataset, as the job `pack` writes it, or a URL such as s3://bucket/cars. A run may go on with
    the same images from elsewhere; with others it refuses to."""
    read: ReadConfig = field(default_factory=ReadConfig)
    """How images are read ahead, kept and copied; changes no bit."""
    mask: Literal["coverage", "binary"] = "binary"
    """Real masks: the share of a pixel that is covered, or upstream's covered-at-all. At 64 px use coverage."""
    elevation_range_deg: tuple[float, float] = (0.0, 30.0)
    """Generated images are taken from between these heights above the horizon, and from all around."""
    allow_azimuth_gap: bool = field(default=False, metadata={"changeable": True})
    """Train although no image of the dataset was taken from a sector of more than 60 degrees; generated ones are."""

    def __post_init__(self) -> None:
        low, high = self.elevation_range_deg
        if not -90 <= low <= high <= 90:
            raise UsageError(
                f"elevation_range_deg=[{low:g}, {high:g}] must be ordered and within [-90, 90]",
                "give the range that the dataset was rendered with",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchConfig:
    """The global batch, cut into micro-shards that are computed alone. Both sizes are fixed for the life of a run."""

    num_shards: int = 8
    """Micro-shards of a step: the most workers a run can use. Any number up to it gives the same bits."""
    shard_size: int = 4
    """Images of a micro-shard; a multiple of discriminator.minibatch_group, or below it."""
    judge_together: bool = False
    """Take real and generated images of a micro-shard through the discriminators in one pass: faster if they are small,
    but twice the feature maps, and nothing is left to do while the generator's gradients are on their way."""

    def __post_init__(self) -> None:
        for name in ("num_shards", "shard_size"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{name}={getattr(self, name)} must be at least 1", f"set {name} to 1 or more"
                )

    @property
    def size(self) -> int:
        """Images of a step."""
        return self.num_shards * self.shard_size


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """What the networks minimise, beside telling real from generated."""

    gamma_rgb: float = 40.0
    """Weight of R1 on the colours; in proportion to pixels / batch. 400 for chairs and tables, 80 for motorbikes."""
    gamma_mask: float = 40.0
    """Weight of R1 on the mask."""
    gamma_scale: Literal["none", "pixels_per_batch"] = "none"
    """Take both gammas as given, or as for 1024 px and 32 images a step: times pixels / 1024^2 * 32 / batch."""
    r1_interval: int = 16
    """Steps between R1 phases, whose weight is multiplied by it."""
    sdf_entropy: float = 0.01
    """Weight of undecided signs along the edges of the grid."""
    mesh_deviation: float = 0.5
    """Weight of irregular patches, with generator.grid.kind=flexicubes."""
    mesh_weights: float = 0.1
    """Weight of the mean square of the learned weights, with generator.grid.kind=flexicubes."""
    empty_shape: float = 1.0
    """Weight of the distances of a shape that came out empty."""
    mixing_probability: float = 0.9
    """How often the styles of two latents are mixed, decided for geometry and texture apart."""
    reuse_fakes: bool = False
    """Judge the images of the generator's phase again in the discriminator's, which saves rendering others.
    Upstream renders others."""

    def __post_init__(self) -> None:
        if self.r1_interval < 1:
            raise UsageError(
                f"r1_interval={self.r1_interval} must be at least 1", "to go without R1 set both gammas to 0"
            )
        _check(self, _is_not_negative, "0 or more", "gamma_rgb", "gamma_mask", "sdf_entropy", "empty_shape")
        _check(self, _is_not_negative, "0 or more", "mesh_deviation", "mesh_weights")
        _check(self, lambda value: 0 <= value <= 1, "within [0, 1]", "mixing_probability")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Adaptive augmentation of what the discriminator sees, for small sets of images. Upstream has none."""

    p: float = 0.0
    """Probability of each transformation at the start."""
    target: float = 0.0
    """Mean sign of the logits of real images that p is adapted to; 0.6 is the paper's. 0: p stays as it is."""
    adjust_images: int = 500_000
    """Real images in which p can go from 0 to 1."""
    interval: int = 4
    """Steps between adaptations."""
    max_p: float = 0.8
    """p stays below: from about there on augmented images would be learned as such."""
    geometry: bool = True
    """Small shifts, turns, zooms and stretches, which the camera that is told nearly explains."""
    colour: bool = True
    """Brightness, contrast, luma flip, hue and saturation of the colours; the mask stays."""

    def __post_init__(self) -> None:
        _check(self, lambda value: 0 <= value <= 1, "within [0, 1]", "p", "max_p")
        _check(self, lambda value: 0 <= value < 1, "within [0, 1)", "target")
        _check(self, _is_positive, "at least 1", "adjust_images", "interval")
        if self.p > self.max_p:
            raise UsageError(
                f"p={self.p:g} is above max_p={self.max_p:g}", f"set p to {self.max_p:g} at most"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Both Adams."""

    lr_generator: float = 2e-3
    """Learning rate of the generator, before the correction."""
    lr_discriminator: float = 2e-3
    """Learning rate of the discriminator, before the correction."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Decay of the moments, before the correction. The paper says 0.9, the published code (0, 0.99)."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    lazy_correction: bool = True
    """Scale rate and exponents by k / (k + 1) for a network that takes one more step every k."""
    generator_interval: int = 4
    """The k of the generator. Its regulariser is gone, the correction stayed: 0.8 times the rate. 0: none."""
    generator_zero_step: bool = True
    """Step the generator's Adam with zero gradients every k steps, as upstream does: moments decay once more."""
    decay_images: tuple[int, int] | None = None
    """Both rates fall on a line between these numbers of images, then stay; null: never. Upstream has no decay."""
    decay_to: float = 0.1
    """What the rates are multiplied with at the end of decay_images."""

    def __post_init__(self) -> None:
        _check(self, _is_positive, "above 0", "lr_generator", "lr_discriminator", "eps", "decay_to")
        _check(
            self,
            lambda pair: pair is None or 0 <= pair[0] < pair[1],
            "null or two rising numbers",
            "decay_images",
        )
        _check(self, lambda pair: all(0 <= beta < 1 for beta in pair), "two numbers within [0, 1)", "betas")
        _check(self, _is_not_negative, "0 or more", "generator_interval")

    def rate_factor(self, images: int) -> float:
        """Return what both rates are multiplied with after ``images``."""
        if self.decay_images is None:
            return 1.0
        first, last = self.decay_images
        passed = min(max((images - first) / (last - first), 0.0), 1.0)
        return 1.0 + passed * (self.decay_to - 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class AverageConfig:
    """The running average of the generator's weights, which makes what people get to see."""

    half_life_images: float = 10_000.0
    """Images after which a weight counts half; upstream: batch * 10,000 / 32."""
    ramp_up: float = 0.05
    """No half-life above this share of the images seen; 0: full length from the start."""

    def __post_init__(self) -> None:
        _check(self, _is_positive, "above 0", "half_life_images")
        _check(self, _is_not_negative, "0 or more", "ramp_up")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionConfig:
    """What may be computed in fewer bits than float32. Part of the mathematics: fixed for the life of a run.

    Styles, distances, meshes, drawing, R1, losses, sums of gradients, optimizers and averages are float32 always.
    """

    amp: Literal["none", "bf16"] = "none"
    """bf16: the trunk's convolutions, the texture's field, and both discriminators but for R1 and their last layers.
    Half the memory of feature maps. For GPUs from Ampere on; CPUs are seldom faster with it."""
    tf32: bool = False
    """On a GPU, round what convolutions in float32 multiply to TF32, but for R1's. Upstream has it for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """What happens when losses or gradients are not finite, or too large: the phase is skipped on all workers alike.

    After too many such steps in a row the training goes back to a checkpoint of before, and on with other draws.
    """

    __changeable__: ClassVar[bool] = True

    max_skipped_steps: int = 20
    """Steps in a row with a skipped phase, after which the training goes back, or is held for a person."""
    max_loss: float = 0.0
    """A loss of the generator or the discriminators beyond it, above or below 0, counts as not finite; 0: none does."""
    max_rollbacks: int = 2
    """Times that it goes back to one and the same checkpoint before it is held; 0: it is held at once."""
    rollback_every_steps: int = 1000
    """It goes back to a multiple of this step, or to the beginning: a checkpoint is made at each, the newest two are
    kept. The same multiple wherever and however often the run was stopped."""

    def __post_init__(self) -> None:
        _check(self, _is_positive, "at least 1", "max_skipped_steps")
        _check(self, _is_not_negative, "0 or more", "max_rollbacks", "max_loss")
        if self.rollback_every_steps < self.max_skipped_steps:
            raise UsageError(
                f"rollback_every_steps={self.rollback_every_steps} must be at least "
                f"max_skipped_steps={self.max_skipped_steps}",
                "raise the first or lower the second; max_rollbacks=0 never goes back",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchConfig:
    """What is shown of a training. Nothing here changes a bit of it."""

    __changeable__: ClassVar[bool] = True

    log_every_steps: int = 50
    """Steps between rows of metrics.jsonl."""
    preview_every_s: float = 30.0
    """Seconds between sheets of fixed shapes in samples/; 0: none."""
    preview_shapes: int = 6
    """Columns of such a sheet."""
    psi: float = 1.0
    """Truncation of the shapes shown; below 1 nearer to the mean shape."""
    measure_every_s: float = 60.0
    """Seconds between measurements of the distances to real images; 0: none."""
    measure_images: int = 96
    """Generated images of a measurement."""
    tensorboard_every_s: float = 60.0
    """Seconds between additions to tensorboard/, which TensorBoard reads; 0: none."""
    budget: float = 0.03
    """Largest share of the time that sheets may take, and again measurements; they come more rarely if slow."""

    def __post_init__(self) -> None:
        _check(self, _is_positive, "at least 1", "log_every_steps", "preview_shapes")
        _check(self, lambda value: value >= 2, "at least 2, or measure_every_s 0", "measure_images")
        _check(
            self, _is_not_negative, "0 or more", "preview_every_s", "measure_every_s", "tensorboard_every_s"
        )
        _check(self, _is_positive, "above 0", "budget")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """A training, without where it runs."""

    data: DataConfig
    """Real images."""
    num_images: int = field(default=20_000_000, metadata={"changeable": True})
    """Length of the training in real images shown."""
    seed: int = 0
    """Of weights, order of the data and latents."""
    init_from: str | None = field(default=None, metadata={"location": True})
    """Folder of a run, or of imported weights, whose networks and average this one begins with: the newest checkpoint
    when this run begins. Counters and optimizers begin anew; null: random weights."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """The global batch."""
    reduction: ReductionConfig = field(default_factory=ReductionConfig)
    """How the workers add up their gradients."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """From two latents to a textured mesh and its image."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Tells real images from generated ones."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Losses and regularisers."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What the discriminator sees of images."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Both Adams."""
    average: AverageConfig = field(default_factory=AverageConfig)
    """Running average of the generator."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    """Bits of the computation."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """Divergence."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """Rows, sheets, measurements."""

    def __post_init__(self) -> None:
        _check(self, _is_positive, "at least 1", "num_images")
        _check(self, lambda value: 0 <= value < NUM_SEEDS, "at least 0 and below 2**64", "seed")
        ModelConfig(generator=self.generator, discriminator=self.discriminator)  # refuses images of two sizes
        size, group = self.batch.shard_size, self.discriminator.minibatch_group
        if size > group and size % group:
            raise UsageError(
                f"batch.shard_size={size} cannot be cut into groups of discriminator.minibatch_group={group}",
                f"set batch.shard_size to a multiple of {group}",
            )

    @property
    def gamma_factor(self) -> float:
        """What both weights of R1 are multiplied with. Source: the heuristic of Karras et al. 2020 (StyleGAN2-ADA)."""
        if self.loss.gamma_scale == "none":
            return 1.0
        return (self.discriminator.image_size_px / 1024) ** 2 * 32 / self.batch.size

    @property
    def loss_with_scaled_gammas(self) -> LossConfig:
        """The losses as they are computed: both weights of R1 times the factor."""
        loss, factor = self.loss, self.gamma_factor
        return replace(loss, gamma_rgb=loss.gamma_rgb * factor, gamma_mask=loss.gamma_mask * factor)

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        return -(-self.num_images // self.batch.size)


def _check(section: Any, holds: Callable[[Any], bool], must: str, *names: str) -> None:
    """Raises: UsageError for the first of the fields ``names`` whose value does not hold."""
    for name in names:
        value = getattr(section, name)
        if not holds(value):
            shown = list(value) if isinstance(value, tuple) else value
            raise UsageError(f"{name}={shown} must be {must}", f"give another value, or leave out {name}")


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf


def _is_not_negative(value: float) -> bool:
    return 0 <= value < math.inf
