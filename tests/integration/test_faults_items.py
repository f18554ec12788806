"""Break a worker that packs at every call; what the next one makes has the same bytes."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from get3d_cluster.data.format import INDEX_NAME, PackedImages
from jobs import pack as job
from preprocess import pack
from tests.fault_points import CHANGES, KILLED, Call, die, fault_points, in_a_child, lose_power, tear

NUM_MODELS, NUM_VIEWS = 3, 2
Meet = Callable[[Call], Any]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rendered")
    for number in range(NUM_MODELS):
        images, cameras = (root / kind / "02958343" / f"{number:04d}" for kind in ("img", "camera"))
        images.mkdir(parents=True)
        cameras.mkdir(parents=True)
        for view in range(NUM_VIEWS):
            Image.new("RGBA", (8, 8), (40 * number, 90 * view, 7, 255)).save(images / f"{view:03d}.png")
        np.save(cameras / "rotation.npy", np.linspace(0, 90, NUM_VIEWS))
        np.save(cameras / "elevation.npy", np.linspace(0, 30, NUM_VIEWS))
    return root


@pytest.fixture
def one_model_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = pack._cut
    monkeypatch.setattr(pack, "_cut", lambda models, _limit: cut(models, 1))


def packs(rendered: Path, out: Path, meet: Meet) -> int:
    """Pack in a child, every call of which to ``out`` passes ``meet``; return its exit code, 5 for a told error."""

    def act() -> int:
        session = SimpleNamespace(rank=0, world_size=1, events=SimpleNamespace(write=lambda *_, **__: None))
        with fault_points(out, meet):
            try:
                work = job.make(job.Config(images=rendered, out=out), session)
                while not work.is_done():
                    work.step()
                work.close()
            except OSError as error:
                return 5 if error.filename else 1
            except Exception as error:
                return int(getattr(error, "exit_code", 1))
        return 0

    return in_a_child(act, out.parent / "log")


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def break_by_kind(call: Call) -> None:
    {"write": tear, "fsync": lose_power, "rename": lose_power}.get(call.kind, die)(call)


def no_space(call: Call) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(call.path))


@pytest.mark.usefixtures("one_model_a_shard")
@pytest.mark.parametrize(("act", "codes"), [(break_by_kind, {KILLED}), (no_space, {0, 5})])
def test_packing_broken_at_any_call_is_finished_by_the_next_worker_to_the_same_bytes(
    rendered: Path, tmp_path: Path, act: Meet, codes: set[int]
) -> None:
    calls = tmp_path / "calls"

    def note(call: Call) -> Any:
        with calls.open("a") as file:
            file.write(f"{call.number} {call.kind}\n")
        return call.go()

    assert packs(rendered, tmp_path / "whole", note) == 0, (tmp_path / "log").read_text()
    whole = content(tmp_path / "whole")
    assert len(whole) == NUM_MODELS + 1
    count = 0
    for number, kind in (line.split() for line in calls.read_text().splitlines()):
        if kind not in CHANGES:
            continue

        def meet(call: Call, number: int = int(number)) -> Any:
            return act(call) if call.number == number else call.go()

        out = tmp_path / f"{number}-{kind}"
        code = packs(rendered, out, meet)
        assert code in codes, f"{out.name} ended with {code}: {(tmp_path / 'log').read_text()}"
        if (out / INDEX_NAME).exists():
            PackedImages(out)  # an index is there only when everything is
        assert packs(rendered, out, lambda call: call.go()) == 0, (tmp_path / "log").read_text()
        assert {name: data for name, data in content(out).items() if not name.startswith(".")} == whole
        shutil.rmtree(out)
        count += 1
    assert count > 40
