"""What the checks share: sizes, random data, stand-ins for packages that a bare GPU machine lacks, and measuring."""

import contextlib
import hashlib
import importlib.util
import io
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from get3d_cluster.dist.group import Group
from get3d_cluster.get3d.config import (
    DiscriminatorConfig,
    FieldsConfig,
    GeneratorConfig,
    GridConfig,
    MappingConfig,
    RenderConfig,
    TrunkConfig,
)
from get3d_cluster.train.config import (
    AverageConfig,
    BatchConfig,
    DataConfig,
    LossConfig,
    OptimConfig,
    TrainerConfig,
    WatchConfig,
)
from tests.sessions import session_of

Facts = dict[str, Any]
Check = Callable[["Setting"], Facts]

PACKAGES = {
    "numba": "CPU times and bits are those of the torch backend; numba's own are not compared with CUDA",
    "xxhash": "a stand-in of hashlib takes its place: xxh3 digests themselves are not checked",
    "PIL": "images come from memory: reading packed PNGs is neither checked nor timed",
    "safetensors": "states are passed on by torch.save: checkpoint files are not checked",
    "nvdiffrast": "rasterizer test 20 is not done: nothing is compared with nvdiffrast",
}


class Skipped(Exception):  # it is no error
    """A check cannot be done here: says what is missing and what is not checked because of it."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where and how large. A check gets nothing else."""

    device: str
    folder: Path
    toy: bool = False
    """Sizes that a CPU does in no time: for the tests of these checks."""
    without: tuple[str, ...] = ()
    """Packages to do without although they are here."""

    def has(self, package: str) -> bool:
        return package not in self.without and importlib.util.find_spec(package) is not None

    def path(self, name: str) -> Path:
        """Return a new folder."""
        number = len(list(self.folder.glob(f"{name}*")))
        path = self.folder / f"{name}{number}"
        path.mkdir(parents=True)
        return path


def stand_in(without: Sequence[str] = ()) -> list[str]:
    """Put stand-ins where packages are missing that the trainer imports; return the names of all missing ones."""
    for name in without:
        sys.modules[name] = None  # type: ignore[assignment]  # makes it impossible to import
    missing = [name for name in PACKAGES if name in without or importlib.util.find_spec(name) is None]
    if "xxhash" in missing:
        sys.modules["xxhash"] = _module(
            "xxhash", xxh3_64_hexdigest=_digest(8), xxh3_128_hexdigest=_digest(16)
        )
    if "PIL" in missing:
        sys.modules["PIL"] = _module("PIL", Image=_module("PIL.Image"))
    return missing


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
    vars(module).update(contents)
    return module


def _digest(size: int) -> Callable[[Any], str]:
    return lambda data: hashlib.blake2b(data, digest_size=size).hexdigest()


# Sizes. tests/unit/test_gpu_checks_run.py compares them with the files in jobs/configs, which need omegaconf.


def tiny_test() -> TrainerConfig:
    """Return jobs/configs/tiny_test.yaml."""
    return TrainerConfig(
        data=DataConfig(path="data/tiny", mask="coverage"),
        num_images=96,
        batch=BatchConfig(num_shards=4, shard_size=2),
        generator=GeneratorConfig(
            latent_channels=8,
            mapping=MappingConfig(num_layers=2),
            trunk=TrunkConfig(resolution_px=8, plane_channels=4, channels=(8, 8)),
            fields=FieldsConfig(hidden_channels=8, texture_channels=4, sphere_gain=4.0, sdf_gain=0.1),
            grid=GridConfig(cells=4),
            render=RenderConfig(image_size_px=8, antialias_rgb=True),
        ),
        discriminator=DiscriminatorConfig(
            image_size_px=8,
            channels=(8, 8),
            minibatch_group=2,
            camera_channels=8,
            camera_mapping=MappingConfig(num_layers=2),
        ),
        loss=LossConfig(gamma_rgb=1.0, gamma_mask=1.0, r1_interval=3),
        optim=OptimConfig(generator_interval=2),
        average=AverageConfig(half_life_images=100.0),
        watch=WatchConfig(
            log_every_steps=1, preview_every_s=0.0, measure_every_s=0.0, tensorboard_every_s=0.0
        ),
    )


def car() -> TrainerConfig:
    """Return jobs/configs/car.yaml."""
    return TrainerConfig(
        data=DataConfig(path="data/car1024", mask="binary"),
        num_images=20_000_000,
        batch=BatchConfig(num_shards=8, shard_size=4),
        generator=GeneratorConfig(grid=GridConfig(tet_res=90), render=RenderConfig(image_size_px=1024)),
        discriminator=DiscriminatorConfig(image_size_px=1024),
        loss=LossConfig(gamma_rgb=40.0, gamma_mask=40.0, gamma_scale="pixels_per_batch"),
        watch=WatchConfig(preview_every_s=600.0, psi=0.7, measure_every_s=1800.0),
    )


def full_size(setting: Setting) -> TrainerConfig:
    """Return what one of eight GPUs computes of the car configuration: one micro-shard of 4 images a step."""
    if setting.toy:
        return replace(tiny_test(), batch=BatchConfig(num_shards=1, shard_size=2))
    config = car()
    return replace(config, batch=BatchConfig(num_shards=1, shard_size=config.batch.shard_size))


def middle_size(setting: Setting) -> GeneratorConfig:
    """Return a generator with every operation of the full one, small enough for a CPU."""
    cells, planes, image = (4, 8, 16) if setting.toy else (16, 32, 128)
    return GeneratorConfig(
        latent_channels=16,
        mapping=MappingConfig(num_layers=2),
        trunk=TrunkConfig(resolution_px=planes, plane_channels=8, channel_base=512, channel_max=32),
        fields=FieldsConfig(sphere_gain=4.0, sdf_gain=0.1),
        grid=GridConfig(cells=cells),
        render=RenderConfig(image_size_px=image, antialias_rgb=True),
    )


# Data and trainers


class RandomImages:
    """A dataset in memory, where Pillow is missing."""

    def __init__(self, count: int, size_px: int, device: str) -> None:
        pictures = [torch.from_numpy(random_picture(size_px, number)) for number in range(count)]
        self._images = torch.stack(pictures).permute(0, 3, 1, 2).float() / 255
        self.cameras = torch.tensor([[6.28 * k / count, 1.3] for k in range(count)])
        self._device = device
        self.fingerprint = f"random {count} {size_px}"
        self.samples = [SimpleNamespace(key=f"00000000/{number:04d}/000") for number in range(count)]

    def __len__(self) -> int:
        return len(self._images)

    def expect(self, indices: Iterable[int]) -> None:
        """All images are in memory already."""

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        numbers = [int(number) for number in indices]
        images = self._images[numbers].to(self._device)
        images[:, :3].mul_(2).sub_(1)
        return images, self.cameras[numbers].to(self._device)


def random_picture(size_px: int, seed: int) -> np.ndarray:  # [H, W, 4] uint8
    """Return a disc of noisy colours."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.mgrid[:size_px, :size_px] + 0.5) / size_px - 0.5
    inside = np.hypot(rows, columns) < 0.2 + 0.02 * (seed % 10)
    pixels = rng.integers(0, 256, (size_px, size_px, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[~inside] = 0
    return pixels


def dataset(setting: Setting, config: TrainerConfig, count: int = 16) -> Any:
    """Pack random images and open them as the job does; without Pillow, keep them in memory."""
    size = config.generator.render.image_size_px
    if not setting.has("PIL"):
        return RandomImages(count, size, setting.device)
    from get3d_cluster.data.dataset import ImageDataset

    folder = setting.folder / f"data{size}"
    if not folder.exists():
        _pack(folder, size, count)
    return ImageDataset(folder, size, config.data.mask, device=setting.device)


def _pack(folder: Path, size_px: int, count: int) -> None:
    from PIL import Image

    from get3d_cluster.data import format as packed

    keys, pngs = [f"00000000/{number:04d}/000" for number in range(count)], []
    for number in range(count):
        out = io.BytesIO()
        Image.fromarray(random_picture(size_px, number)).save(out, format="PNG", compress_level=1)
        pngs.append(out.getvalue())
    data, places = packed.write_shard(
        packed.Member(name=f"{key}.png", data=png) for key, png in zip(keys, pngs, strict=True)
    )
    shard = packed.Shard(name="shard-00000.tar", size=len(data), xxh3_64=packed.digest_of(data))
    samples = tuple(
        packed.Sample(
            key=key,
            shard=0,
            offset=offset,
            size=size,
            xxh3_64=packed.digest_of(png),
            rotation_deg=360.0 * number / count,
            elevation_deg=15.0,
        )
        for number, (key, png, (offset, size)) in enumerate(zip(keys, pngs, places, strict=True))
    )
    folder.mkdir(parents=True)
    (folder / shard.name).write_bytes(data)
    index = packed.Index(resolution=size_px, shards=(shard,), samples=samples)
    (folder / packed.INDEX_NAME).write_bytes(packed.index_bytes(index))


def trainer(setting: Setting, config: TrainerConfig, group: Group | None = None) -> Any:
    """Return the trainer that the job makes, without what it shows to people."""
    from get3d_cluster.train.trainer import Get3dTrainer

    session = session_of(setting.path("run"), group, device=setting.device)
    return Get3dTrainer(config, session, dataset(setting, config))


def digest(work: Any) -> str:
    """Return the SHA-256 of the whole state of a trainer."""
    from get3d_cluster.runtime.checkpoint import state_digest

    return state_digest(work.state())


# Comparing and measuring


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the relative difference of two tensors: L2 norms, in float64 on the CPU."""
    a, b = ours.detach().double().cpu(), theirs.detach().double().cpu()
    assert a.shape == b.shape, f"shapes {list(a.shape)} and {list(b.shape)}"
    assert bool(a.isfinite().all()), "a value is not finite"
    return float((a - b).norm() / b.norm().clamp(min=1e-30)) if a.numel() else 0.0


def within(limit: float, facts: Mapping[str, float]) -> None:
    """Raise an AssertionError naming every number above ``limit``."""
    above = {name: value for name, value in facts.items() if not value <= limit}
    assert not above, f"above {limit:g}: " + ", ".join(f"{name} {value:.3g}" for name, value in above.items())


def same(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Raise an AssertionError unless all elements are equal."""
    a, b = ours.detach().cpu(), theirs.detach().cpu()
    assert a.shape == b.shape, f"{what}: shapes {list(a.shape)} and {list(b.shape)}"
    num = int((a != b).sum())
    assert not num, f"{what}: {num} of {a.numel()} elements differ"


def wait_for_device(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def milliseconds(setting: Setting, call: Callable[[], object], repeats: int = 10) -> float:
    """Return the median time of a call, after two to warm up."""
    times, repeats = [], 1 if setting.toy else repeats
    for _ in range(0 if setting.toy else 2):
        call()
    for _ in range(repeats):
        wait_for_device(setting.device)
        begun = time.perf_counter()
        call()
        wait_for_device(setting.device)
        times.append((time.perf_counter() - begun) * 1e3)
    return round(statistics.median(times), 3)


def reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: str) -> float:
    """Return the most memory that tensors took since ``reset_peak``; 0 on the CPU."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.startswith("cuda") else 0.0


@contextlib.contextmanager
def utilisation(setting: Setting, every_s: float = 0.1) -> Iterator[Facts]:
    """Ask the driver meanwhile how busy the GPU is; the mapping is filled at the end, and empty on a CPU.

    The driver tells the share of time in which any kernel ran, in percent.
    """
    facts: Facts = {}
    if not setting.device.startswith("cuda"):
        yield facts
        return
    found: list[int] = []
    why: list[str] = []
    is_over = threading.Event()

    def sample() -> None:
        try:
            while not is_over.wait(every_s):
                found.append(torch.cuda.utilization(setting.device))
        except Exception as error:  # a thread tells nobody else
            why.append(f"SKIPPED: {type(error).__name__}: {str(error).splitlines()[0][:160]}")

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield facts
    finally:
        is_over.set()
        thread.join()
    told = why or [round(statistics.mean(found), 1) if found else "SKIPPED: too short for a sample"]
    facts["utilisation of the GPU, %"] = told[0]
    facts["utilisation: samples"] = len(found)
