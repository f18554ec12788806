"""Which runs there are below the runs folder, and which one a person means."""

import difflib
import re
from pathlib import Path

from get3d_cluster.errors import UsageError
from get3d_cluster.runtime.run_folder import RunFolder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def all_runs(runs_dir: Path) -> list[RunFolder]:
    """Return the runs below ``runs_dir`` by name. Folders that begin with a dot are being written."""
    if not runs_dir.is_dir():
        return []
    found = sorted(path.parent for path in runs_dir.glob("*/spec.json"))
    return [RunFolder(path) for path in found if not path.name.startswith(".")]


def find_run(runs_dir: Path, named: str) -> RunFolder:
    """Return the run ``named`` below ``runs_dir``, or at that path. Raises: UsageError with the nearest name."""
    for path in (runs_dir / named, Path(named)):
        if (path / "spec.json").is_file():
            return RunFolder.open(path)
    names = [run.name for run in all_runs(runs_dir)]
    near = difflib.get_close_matches(named, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    listing = (
        f"runs are: {', '.join(names[:10])}" if names else "there are no runs; another folder: --runs DIR"
    )
    raise UsageError(f"there is no run {named} below {runs_dir}{hint}", listing)


def check_name(name: str) -> str:
    """Return ``name`` if it can name a run. Raises: UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r} cannot be a folder's name", "use letters, digits, dots, dashes, underscores"
        )
    return name
