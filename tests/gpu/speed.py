"""How fast the paper's size is on one GPU: with the keys of `precision`, and with switches of torch beside them.

Nothing here can fail for being slow; read the numbers.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from get3d_cluster.get3d import raster, tets
from get3d_cluster.get3d.camera import clip_matrices
from get3d_cluster.get3d.losses import discriminator_loss, r1_penalty
from get3d_cluster.get3d.raster.surface import to_clip
from get3d_cluster.train import numerics
from get3d_cluster.train.config import PrecisionConfig
from get3d_cluster.train.phases import GENERATOR_STREAMS, generate, generator_shard
from tests.gpu.setting import (
    Check,
    Facts,
    Setting,
    full_size,
    milliseconds,
    peak_gib,
    reset_peak,
    trainer,
    utilisation,
    wait_for_device,
)


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How a training computes: keys that a user may set, and switches of torch that nobody can."""

    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    exact: bool = True
    autotune: bool = False


BOTH = PrecisionConfig(amp="bf16", tf32=True)
MODES = {  # free: without deterministic algorithms
    "as trained": Mode(),
    "tf32": Mode(precision=PrecisionConfig(tf32=True)),
    "bf16": Mode(precision=PrecisionConfig(amp="bf16")),
    "bf16 tf32": Mode(precision=BOTH),
    "free": Mode(exact=False),
    "free bf16 tf32": Mode(precision=BOTH, exact=False),
    "free bf16 tf32 autotuned": Mode(precision=BOTH, exact=False, autotune=True),
}


@contextlib.contextmanager
def switches(setting: Setting, mode: Mode) -> Iterator[None]:
    """Set switches of torch as for ``mode``, and put back what a training uses. Makers of trainers set them anew."""
    numerics.fix(setting.device, tf32=mode.precision.tf32)
    torch.use_deterministic_algorithms(mode=mode.exact)
    torch.backends.cudnn.benchmark = mode.autotune
    try:
        yield
    finally:
        numerics.fix(setting.device)


def check_visibility(setting: Setting) -> Facts:
    """Milliseconds of `visibility` (and nvdiffrast's) and of a render with gradient, 4 views at 1024 px, by mesh."""
    facts: Facts = {}
    cells, size = (4, 32) if setting.toy else (36, 1024)
    for name, meshes in _meshes(cells, setting.device).items():
        matrices = clip_matrices(torch.arange(4) * 1.5, torch.full((4,), 1.3)).to(setting.device)
        counts = meshes.vert_ranges[:, 1].to(setting.device)
        pos = to_clip(meshes.verts, matrices.repeat_interleave(counts, dim=0))

        def visible(meshes: Any = meshes, pos: Tensor = pos, backend: str = "torch") -> Tensor:
            where = {"ranges": meshes.face_ranges, "backend": backend}
            return raster.visibility(pos, meshes.faces, (size, size), **where)

        facts[f"{name}: triangles"] = int(meshes.face_ranges[0, 1])
        facts[f"{name}: visibility, ms"] = milliseconds(setting, visible)
        if setting.has("nvdiffrast"):
            facts[f"{name}: visibility by nvdiffrast, ms"] = milliseconds(
                setting, functools.partial(visible, backend="nvdiffrast")
            )
        facts[f"{name}: render and gradient, ms"] = milliseconds(
            setting, lambda meshes=meshes, matrices=matrices: _rendered(meshes, matrices, size)
        )
    return facts


def _meshes(cells: int, device: str) -> dict[str, raster.Meshes]:
    grid = tets.bcc_grid(cells).to(device)
    sphere = (0.35 - grid.vertices.norm(dim=1)).expand(4, -1)
    noise = torch.randn(4, len(grid.vertices), generator=torch.Generator().manual_seed(1)).to(device)
    places = grid.vertices.expand(4, -1, -1)
    return {
        name: tets.marching_tets(places, sdf, grid) for name, sdf in (("sphere", sphere), ("noise", noise))
    }


def _rendered(meshes: Any, matrices: Tensor, size: int) -> None:
    there = replace(meshes, verts=meshes.verts.detach().requires_grad_())
    surface = raster.render_meshes(there, matrices, (size, size), backend="torch")
    (surface.soft.sum() + surface.position.sum()).backward()


def check_parts(setting: Setting) -> Facts:
    """Milliseconds of each part of a step, as trained."""
    work = trainer(setting, full_size(setting))
    with switches(setting, Mode()):
        return {f"{name}, ms": _time(setting, call) for name, call in _parts(work).items()}


def _check_of(name: str, mode: Mode) -> Check:
    def check(setting: Setting) -> Facts:
        work = trainer(setting, replace(full_size(setting), precision=mode.precision))
        with switches(setting, mode):
            return _whole_steps(setting, work) | _rate(setting, work)

    check.__name__ = f"check_rate_{name.replace(' ', '_')}"
    check.__doc__ = f"Images a second of whole steps and of phases, {name}; {_keys(mode.precision)}."
    return check


def _keys(precision: PrecisionConfig) -> str:
    return f"precision.amp={precision.amp} precision.tf32={str(precision.tf32).lower()}"


def _whole_steps(setting: Setting, work: Any) -> Facts:
    """Time as many steps as hold one R1 phase, after two; what the GPU says of itself meanwhile."""
    for _ in range(2):
        work.step()
    reset_peak(setting.device)
    interval = work.config.loss.r1_interval
    wait_for_device(setting.device)
    with utilisation(setting) as busy:
        begun_s = time.perf_counter()
        for _ in range(interval):
            work.step()
        wait_for_device(setting.device)
        seconds = time.perf_counter() - begun_s
    assert not work.counters.skipped_steps, f"{work.counters.skipped_steps} steps were not finite"
    return {
        "images/s of whole steps": round(interval * work.config.batch.size / seconds, 2),
        "peak GiB of whole steps": peak_gib(setting.device),
        **busy,
    }


def check_compiled_discriminator(setting: Setting) -> Facts:
    """torch.compile on the discriminator's first-order pass, if it works here; R1 needs a second order it lacks."""
    work = trainer(setting, full_size(setting))
    images, cameras, _ = work._reals(0)
    judge = work.discriminator
    facts: Facts = {}
    with switches(setting, Mode(exact=False)):
        ways = {"plain": judge} if setting.toy else {"plain": judge, "compiled": torch.compile(judge)}
        for dtype in (None, torch.bfloat16):  # compiling takes longer than a test may
            for way, model in ways.items():
                name = f"{way}{', bf16' if dtype else ''}, ms"
                facts[name] = _time(setting, functools.partial(_judge, model, images, cameras, dtype))
    return facts


def _judge(model: Any, images: Tensor, cameras: Tensor, dtype: torch.dtype | None) -> None:
    """Take one forward and one backward pass through both heads, as the discriminator's phase does."""
    logits = model(images, cameras, dtype=dtype)
    (logits.rgb.sum() + logits.mask.sum()).backward()
    _clear(model)


def _rate(setting: Setting, work: Any) -> Facts:
    config = work.config
    reset_peak(setting.device)
    troubles: list[str] = []

    def phase(call: Callable[[], object]) -> float | str:
        found = _time(setting, call)
        return troubles.pop() if troubles else found

    times = {
        "G, ms": phase(lambda: work._generator_phase(troubles)),
        "D, ms": phase(lambda: work._discriminator_phase([], troubles)),
        "R1, ms": phase(lambda: work._r1_phase(troubles)),
    }
    facts: Facts = dict(times)
    if not any(isinstance(value, str) for value in times.values()):
        step = times["G, ms"] + times["D, ms"] + times["R1, ms"] / config.loss.r1_interval
        facts["images/s"] = round(config.batch.size / step * 1e3, 2)
        facts["peak GiB"] = peak_gib(setting.device)
    return facts


def _time(setting: Setting, call: Callable[[], object]) -> float | str:
    """Return milliseconds, or why it does not work."""
    try:
        return milliseconds(setting, call, repeats=5)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return f"does not work: {type(error).__name__}: {str(error).splitlines()[0][:160]}"


def _parts(work: Any) -> dict[str, Callable[[], object]]:
    config, generator, judge = work.config, work.generator, work.discriminator
    with torch.no_grad():
        fakes = generate(generator, config, work._shard(0), GENERATOR_STREAMS)
        shard = work._shard(0)
        latents = generator.map(
            *(
                torch.randn(shard.size, config.generator.latent_channels, device=fakes.image.device)
                for _ in "gt"
            )
        )
        shapes = generator.shapes(latents)
    images, cameras, _ = work._reals(0)

    def generator_gradient() -> None:
        made = generate(generator, config, work._shard(0), GENERATOR_STREAMS)
        generator_shard(judge, config.loss, made)[0].backward()
        _clear(generator)
        _clear(judge)

    def discriminator_gradient() -> None:
        loss = discriminator_loss(judge(fakes.image, fakes.cameras), judge(images, cameras))
        loss.total.backward()
        _clear(judge)

    def r1_gradient() -> None:
        real = images.clone().requires_grad_()
        r1_penalty(judge(real, cameras), real, 40.0, 40.0).total.backward()
        _clear(judge)

    def without_gradient(call: Callable[[], object]) -> Callable[[], object]:
        return torch.no_grad()(call)

    return {
        "batch of real images": lambda: work._reals(0),
        "G: mapping and planes": without_gradient(lambda: generator.planes(latents)),
        "G: mapping, planes, fields, marching tetrahedra": without_gradient(
            lambda: generator.shapes(latents)
        ),
        "G: image of given shapes": without_gradient(lambda: generator.image(shapes, latents, fakes.cameras)),
        "D: forward": without_gradient(lambda: judge(images, cameras)),
        "G and D: forward and gradient of the generator's loss": generator_gradient,
        "D: forward and gradient, real and generated": discriminator_gradient,
        "D: R1 and gradient": r1_gradient,
        "Adam of G": lambda: _adam(work._adam_g, generator),
        "Adam of D": lambda: _adam(work._adam_d, judge),
        "running average": work._average,
    }


def _adam(optimizer: Any, model: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    _clear(model)


def _clear(model: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = None


CHECKS: tuple[Check, ...] = (
    check_visibility,
    check_parts,
    *(_check_of(name, mode) for name, mode in MODES.items()),
    check_compiled_discriminator,
)
