"""A whole training on a device that refuses what CUDA refuses: with all that is shown, and a resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from get3d_cluster.runtime.checkpoint import decode, encode, state_digest
from jobs.train import make
from tests import train_setup as setup
from tests.pretend_cuda import pretend_cuda
from tests.sessions import session_of

OTHER_WAYS = (
    "generator.trunk.resampling=bilinear",
    "generator.mirror_x=true",
    "generator.fields.palette=true",
    "generator.grid.close_boundary=true",
    "discriminator.resampling=average",
    "discriminator.architecture=resnet",
    "loss.reuse_fakes=true",
)
SHOWN = (
    "watch.preview_every_s=1000.0",  # at the start
    "watch.measure_every_s=1000.0",
    "watch.preview_shapes=1",
    "watch.measure_images=2",
)


def begun(folder: Path, data: Path, device: str, *overrides: str) -> Any:
    config = setup.tiny_config(data, *SHOWN, *overrides)
    return make(config, replace(session_of(folder), device=device))


@pytest.mark.parametrize(
    "overrides",
    [pytest.param((), id="defaults"), pytest.param(OTHER_WAYS, id="other ways", marks=pytest.mark.long)],
)
def test_training_showing_and_resuming_keep_to_one_device(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    data = setup.dataset(tmp_path / "data")
    with pretend_cuda() as device:
        work = begun(tmp_path / "run", data, device, *overrides)
        work.step()
        saved = decode({name: memoryview(content) for name, content in encode(work.state()).items()})
        resumed = begun(tmp_path / "resumed", data, device, *overrides)
        resumed.load(saved)
        for each in (work, resumed):
            each.step()
        assert state_digest(resumed.state()) == state_digest(work.state())
        assert {p.device.type for p in resumed.generator.parameters()} == {"cuda"}
    assert work.counters.skipped_steps == 0
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 1
