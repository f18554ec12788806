"""The code of a run: a copy that runs, with the commit it came from and what differs from it."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PARTS = ("get3d_cluster", "jobs", "preprocess", "launch.py")
"""What is copied where there is no git."""
MOST_BYTES = 20_000_000
"""Larger untracked files are data that lies about, not code; they are listed in code.json and left out."""
GIT_S = 120.0


def write_snapshot(folder: Path, repository: Path = REPOSITORY, without: Sequence[Path] = ()) -> None:
    """Copy the code to ``folder/code`` and describe it in ``folder/code.json`` and ``folder/code.patch``.

    Takes tracked files and untracked ones that git does not ignore, except those below ``without``.
    """
    tracked = _listed(repository, "-c")
    untracked = _listed(repository, "-o", "--exclude-standard")
    if not any(
        path.startswith("get3d_cluster/") for path in tracked
    ):  # a copy without history, such as a snapshot
        tracked, untracked = _walked(repository), []
    large = [path for path in untracked if _num_bytes(repository / path) > MOST_BYTES]
    excluded = [path.resolve() for path in without]
    chosen = [
        path
        for path in {*tracked, *untracked} - {*large}
        if not any((repository / path).is_relative_to(top) for top in excluded)
    ]
    copied = sum(_copy(repository / path, folder / "code" / path) for path in sorted(chosen))
    _copy_kernels(repository, folder / "code")
    _describe(folder, repository, copied, large)


def _describe(folder: Path, repository: Path, num_files: int, large: Sequence[str]) -> None:
    commit = (_git(repository, "rev-parse", "HEAD") or b"").decode().strip()
    patch = _git(repository, "diff", "HEAD", "--binary") or b""
    if patch:
        (folder / "code.patch").write_bytes(patch)
    facts = {
        "commit": commit,
        "digest": _digest(folder / "code"),
        "patch": "code.patch" if patch else "",
        "files": num_files,
        "left_out": sorted(large),
    }
    (folder / "code.json").write_text(json.dumps(facts, indent=2) + "\n")


def _digest(code: Path) -> str:
    """Return what tells one copy of the code from another: of names and bytes, without compiled kernels."""
    digest = hashlib.sha256()
    for path in sorted(code.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            name, data = os.fsencode(path.relative_to(code)), path.read_bytes()
            digest.update(b"%d %s %d " % (len(name), name, len(data)) + data)
    return digest.hexdigest()[:12]


def _listed(repository: Path, *options: str) -> list[str]:
    output = _git(repository, "ls-files", "-z", *options) or b""
    return [name.decode(errors="surrogateescape") for name in output.split(b"\0") if name]


def _walked(repository: Path) -> list[str]:
    found = [path for part in PARTS for path in (repository / part, *(repository / part).rglob("*"))]
    return [
        str(path.relative_to(repository))
        for path in found
        if path.is_file() and "__pycache__" not in path.parts
    ]


def _git(repository: Path, *arguments: str) -> bytes | None:
    """Return what git prints, or None if there is no git, no repository, or no answer."""
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *arguments], capture_output=True, timeout=GIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _copy(source: Path, target: Path) -> bool:
    if not source.is_symlink() and not source.is_file():
        return False  # deleted but not yet committed, or a submodule
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target, follow_symlinks=False)
    return True


def _copy_kernels(repository: Path, code: Path) -> None:
    """Take numba's compiled kernels along, which it finds by name and the time of their source: seconds at a start."""
    for kernel in (repository / "get3d_cluster").rglob("__pycache__/*.nb[ic]"):
        _copy(kernel, code / kernel.relative_to(repository))


def _num_bytes(path: Path) -> int:
    return path.lstat().st_size if path.exists() else 0
