"""How fast the paper's size is on one GPU. Measures what there is: switches of torch, not features of ours.

Nothing here can fail for being slow; read the numbers.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from get3d_cluster.get3d import raster, tets
from get3d_cluster.get3d.camera import clip_matrices
from get3d_cluster.get3d.losses import discriminator_loss, r1_penalty
from get3d_cluster.get3d.raster.surface import to_clip
from get3d_cluster.train import numerics
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
)


@contextlib.contextmanager
def switches(
    setting: Setting, *, exact: bool = True, tf32: bool = False, autotune: bool = False, bf16: bool = False
) -> Iterator[None]:
    """Set switches of torch, and put back what a training uses."""
    torch.use_deterministic_algorithms(mode=exact)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = autotune
    kind = setting.device.partition(":")[0]
    try:
        with torch.autocast(kind, torch.bfloat16, enabled=bf16):
            yield
    finally:
        numerics.fix(setting.device)


MODES: dict[str, dict[str, bool]] = {  # free: without deterministic algorithms
    "as trained": {},
    "free": {"exact": False},
    "exact TF32": {"tf32": True},
    "free TF32": {"exact": False, "tf32": True},
    "free bf16 autocast": {"exact": False, "bf16": True},
    "free autotuned": {"exact": False, "autotune": True},
    "free TF32 autotuned": {"exact": False, "tf32": True, "autotune": True},
}


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
    with switches(setting):
        return {f"{name}, ms": _time(setting, call) for name, call in _parts(work).items()}


def _check_of(name: str, chosen: dict[str, bool]) -> Check:
    def check(setting: Setting) -> Facts:
        work = trainer(setting, full_size(setting))
        with switches(setting, **chosen):
            return _rate(setting, work)

    check.__name__ = f"check_rate_{name.replace(' ', '_')}"
    check.__doc__ = f"Images a second, {name}; R1 every 16 steps is counted as its sixteenth part."
    return check


def check_compiled_discriminator(setting: Setting) -> Facts:
    """torch.compile on the discriminator's first-order pass, if it works here; R1 needs a second order it lacks."""
    work = trainer(setting, full_size(setting))
    images, cameras, _ = work._reals(0)
    judge = work.discriminator
    facts: Facts = {"plain, ms": _time(setting, lambda: _judge(judge, images, cameras))}
    if setting.toy:
        return facts  # compiling takes longer than a test may
    with switches(setting, exact=False):
        compiled = torch.compile(judge)
        facts["compiled, ms"] = _time(setting, lambda: _judge(compiled, images, cameras))
    return facts


def _judge(judge: Any, images: Tensor, cameras: Tensor) -> None:
    logits = judge(images, cameras)
    logits.rgb.sum().backward(retain_graph=True)
    logits.mask.sum().backward()
    _clear(judge)


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
    *(_check_of(name, chosen) for name, chosen in MODES.items()),
    check_compiled_discriminator,
)
