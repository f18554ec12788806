"""The plain job in which every worker notes its last step in the attempt's folder, so that tests can compare them."""

import importlib

from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.runtime.session import Session, Work
from tests.plain.job import KIND, Config

__all__ = ["KIND", "Config", "make", "noted"]


def make(config: Config, session: Session) -> Work:
    plain = importlib.import_module("tests.plain.job").make(config, session)
    step_once = plain.step
    note = session.run.attempt_dir(session.attempt) / f"noted.rank{session.rank:04d}"

    def step() -> None:
        step_once()
        note.write_text(str(plain.done))

    plain.step = step
    return plain


def noted(run: RunFolder, attempt: int) -> dict[int, int]:
    """Return the last step of each worker of an attempt by its rank."""
    paths = run.attempt_dir(attempt).glob("noted.rank*")
    return {int(path.name[10:]): int(path.read_text()) for path in paths}
