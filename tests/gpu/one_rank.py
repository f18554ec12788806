"""One worker of a tiny training: python -m tests.gpu.one_rank FOLDER MEETING DEVICE STEPS WITHOUT.

Goes on from the checkpoint in FOLDER if there is one; prints the digest of the state after each step; rank 0 saves the
last one, as a run does, or by torch.save where safetensors is missing.
"""

import os
import sys
from pathlib import Path
from typing import Any

from tests.gpu.setting import Setting, digest, stand_in, tiny_test, trainer


def main(folder: Path, meeting: Path, device: str, steps: int, without: str) -> None:
    missing = stand_in([name for name in without.split(",") if name])
    import torch

    from get3d_cluster.dist.group import meet
    from get3d_cluster.runtime.env import device_of, read_worker_env

    env = read_worker_env()
    place = device_of(env, 1) if device.startswith("cuda") else device
    torch.set_num_threads(1)
    group = meet(meeting, env.rank, env.world_size, host="here", device=place, timeout_s=120.0)
    scratch = meeting / f"rank{env.rank}"
    setting = Setting(device=place, folder=scratch, without=tuple(missing))
    work = trainer(setting, tiny_test(), group)
    saved = _Saved(folder, safetensors="safetensors" not in missing)
    saved.load_into(work)
    for _ in range(steps):
        work.step()
        print("digest", digest(work), flush=True)
    group.any([False])  # nobody leaves before all are done
    if env.rank == 0:
        saved.save(work)
    group.close()


class _Saved:
    """The newest state in a folder."""

    def __init__(self, folder: Path, *, safetensors: bool) -> None:
        self._file = folder / "state.pt"
        self._checkpoints: Any = None
        if safetensors:
            from get3d_cluster.core.job import CheckpointConfig
            from get3d_cluster.runtime.checkpoint import Checkpoints
            from get3d_cluster.storage import open_storage

            storage = open_storage(folder / "checkpoints")
            self._checkpoints = Checkpoints(storage, CheckpointConfig(), lambda: None)

    def load_into(self, work: Any) -> None:
        import torch

        if self._checkpoints:
            loaded = self._checkpoints.load()
            if loaded:
                work.load(loaded.state)
        elif self._file.exists():
            work.load(torch.load(self._file, map_location="cpu", weights_only=True))

    def save(self, work: Any) -> None:
        import torch

        if self._checkpoints:
            self._checkpoints.save(work.counters.step, work.state(), {})
        else:
            torch.save(dict(work.state()), self._file)


if __name__ == "__main__":
    where, meeting, device, steps, without = sys.argv[1:]
    main(Path(where), Path(meeting), device, int(steps), without)
    sys.stdout.flush()
    os._exit(0)  # as a worker leaves: a thread of gloo may still be about
