"""One worker of a render job as a process, without a scheduler: ``python render_one_rank.py SETTINGS.json``."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from get3d_cluster.core.job import Resources
from get3d_cluster.runtime.events import EventLog
from get3d_cluster.runtime.notices import Notices
from get3d_cluster.runtime.run_folder import RunFolder
from jobs.render import Config, make
from preprocess.images import ImageConfig


def session_of(run: Path, rank: int = 0, world_size: int = 1, grace_s: float = 30.0) -> SimpleNamespace:
    folder = RunFolder(run)
    folder.attempt_dir(1).mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(
        run=folder,
        attempt=1,
        rank=rank,
        world_size=world_size,
        resources=Resources(grace_s=grace_s),
        notices=Notices(),
        device="cpu",
        events=EventLog(folder.events_path, 1, rank),
    )


def run(work, session) -> None:
    try:
        while not work.is_done() and not session.notices.requested:
            work.step()
            work.position()
    finally:
        work.close()


def main(settings: dict) -> None:
    session = session_of(Path(settings["run"]), settings["rank"], settings["world_size"])
    session.notices.install()
    config = Config(
        models=Path(settings["models"]),
        out=Path(settings["out"]),
        blender=Path(settings["blender"]),
        image=ImageConfig(**settings["image"]),
        view_timeout_s=settings.get("view_timeout_s", 60.0),
    )
    run(make(config, session), session)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
