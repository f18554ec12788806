"""The plain job in which every worker notes its last step in the attempt's folder, so that tests can compare them."""

import importlib
import itertools
import time
from dataclasses import dataclass

from get3d_cluster.runtime.env import node_name
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.runtime.session import Session, Work
from tests.plain import job

KIND = job.KIND


@dataclass(frozen=True, kw_only=True)
class Config(job.Config):
    """Settings of the plain job, and a node that does not work."""

    hang_on: str = ""
    """On this node the third step of an attempt never ends."""


def make(config: Config, session: Session) -> Work:
    plain = importlib.import_module("tests.plain.job").make(config, session)
    step_once = plain.step
    steps = itertools.count(1)
    note = session.run.attempt_dir(session.attempt) / f"noted.rank{session.rank:04d}"

    def step() -> None:
        if next(steps) == 3 and node_name() == config.hang_on:
            time.sleep(600)
        step_once()
        note.write_text(str(plain.done))

    plain.step = step
    return plain


def noted(run: RunFolder, attempt: int) -> dict[int, int]:
    """Return the last step of each worker of an attempt by its rank."""
    paths = run.attempt_dir(attempt).glob("noted.rank*")
    return {int(path.name[10:]): int(path.read_text()) for path in paths}
