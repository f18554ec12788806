"""The paper's sizes on one GPU: 1024 px, grid 90, 4 images: it fits, is finite, repeats its bits, and can be saved."""

import time
from typing import Any

import torch

from get3d_cluster.get3d.generator import Generator
from get3d_cluster.train import numerics
from tests.gpu.setting import (
    Facts,
    Setting,
    digest,
    full_size,
    peak_gib,
    reset_peak,
    trainer,
    wait_for_device,
)


def check_phases(setting: Setting) -> Facts:
    """One G, one D and one R1 phase: finite losses, no phase skipped; time and peak memory of each."""
    work = trainer(setting, full_size(setting))
    facts: Facts = {
        "generator, M parameters": _millions(work.generator),
        "discriminator, M parameters": _millions(work.discriminator),
        "tetrahedra": len(work.generator.grid_tets),
    }
    for turn in ("first", "second"):  # the first one loads kernels
        facts |= {f"{turn} {name}": value for name, value in _phases(setting, work).items()}
    return facts


def _phases(setting: Setting, work: Any) -> Facts:
    facts: Facts = {}
    troubles: list[str] = []
    fakes: list[Any] = []

    def generator() -> dict[str, float]:
        kept, numbers = work._generator_phase(troubles)
        fakes.extend(kept)
        return numbers

    phases = {
        "G": generator,
        "D": lambda: work._discriminator_phase(fakes, troubles),
        "R1": lambda: work._r1_phase(troubles),
    }
    for name, phase in phases.items():
        reset_peak(setting.device)
        wait_for_device(setting.device)
        begun = time.perf_counter()
        numbers = phase()
        wait_for_device(setting.device)
        facts[f"{name}, s"] = round(time.perf_counter() - begun, 3)
        facts[f"{name}, peak GiB"] = peak_gib(setting.device)
        facts |= {f"{name}: {key}": float(f"{value:.5g}") for key, value in numbers.items()}
        assert all(abs(value) < float("inf") for value in numbers.values()), numbers
    assert not troubles, troubles
    return facts


def _millions(model: torch.nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2)


def check_mesh(setting: Setting) -> Facts:
    """What an untrained generator's shapes cost: triangles, covered pixels."""
    numerics.fix(setting.device)
    torch.manual_seed(0)
    config = full_size(setting).generator
    generator = Generator(config).to(setting.device)
    z = torch.randn(2, 4, config.latent_channels, generator=torch.Generator().manual_seed(1)).to(
        setting.device
    )
    with torch.no_grad():
        rendered = generator.render(generator.map(z[0], z[1]), _cameras(setting))
    assert bool(rendered.image.isfinite().all()), "an image is not finite"
    return {
        "triangles": rendered.shapes.meshes.face_ranges[:, 1].tolist(),
        "covered share": round(float((rendered.image[:, 3] > 0).float().mean()), 3),
    }


def _cameras(setting: Setting) -> torch.Tensor:
    return torch.tensor([[0.1, 1.3], [2.0, 1.2], [4.0, 1.5], [5.5, 1.4]], device=setting.device)


def check_steps_twice(setting: Setting) -> Facts:
    """Two trainings from the beginning: equal states after each of two steps (the first one with R1)."""
    digests = []
    for _ in range(2):
        work = trainer(setting, full_size(setting))
        run = []
        for _ in range(2):
            work.step()
            run.append(digest(work))
        digests.append(run)
        del work
    assert digests[0] == digests[1], (
        f"equal after each step: {[a == b for a, b in zip(*digests, strict=True)]}"
    )
    return {"digest": digests[0][-1]}


def check_checkpoint(setting: Setting) -> Facts:
    """Save, verify and load the whole state; a step afterwards equals that of the run that went on."""
    work = trainer(setting, full_size(setting))
    work.step()
    facts, state = _passed_on(setting, work)
    work.step()
    expected = digest(work)
    del work
    other = trainer(setting, full_size(setting))
    begun = time.perf_counter()
    other.load(state)
    wait_for_device(setting.device)
    facts["load, s"] = round(time.perf_counter() - begun, 2)
    other.step()
    assert digest(other) == expected, "the step after the load differs"
    return facts


def _passed_on(setting: Setting, work: Any) -> tuple[Facts, dict[str, Any]]:
    if not setting.has("safetensors"):
        file = setting.path("state") / "state.pt"
        torch.save(dict(work.state()), file)
        facts = {"saved by": "torch.save", "MB": round(file.stat().st_size / 1e6)}
        return facts, torch.load(file, map_location="cpu", weights_only=True)
    from get3d_cluster.core.job import CheckpointConfig
    from get3d_cluster.runtime.checkpoint import Checkpoints
    from get3d_cluster.storage import open_storage

    checkpoints = Checkpoints(open_storage(setting.path("state")), CheckpointConfig(), lambda: None)
    saved = checkpoints.save(1, work.state(), {})
    begun = time.perf_counter()
    loaded = checkpoints.load()
    assert loaded is not None, "nothing was saved"
    seconds = round(time.perf_counter() - begun, 2)
    facts = {"MB": round(saved.num_bytes / 1e6), "save, s": round(saved.seconds, 2), "read, s": seconds}
    return facts, loaded.state


CHECKS = (check_phases, check_mesh, check_steps_twice, check_checkpoint)
