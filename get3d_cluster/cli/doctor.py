"""Is this machine fit? Each check says what it found and what to do; nothing heavy is imported."""

import importlib.metadata
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from get3d_cluster.cli import doctor_slurm
from get3d_cluster.cli.checks import Check
from get3d_cluster.cli.output import size
from get3d_cluster.cli.snapshot import REPOSITORY
from get3d_cluster.runtime.env import num_slots

OLDEST_PYTHON = (3, 11)
PACKAGES = ("torch", "numpy", "numba", "safetensors", "omegaconf", "xxhash")
OPTIONAL = {
    "submitit": "SLURM",
    "xatlas": "UV charts of exported meshes",
}
LEAST_FREE_BYTES = 2e9
GOOD_FREE_BYTES = 50e9
QUERY_S = 10.0
BLENDER_LIBRARIES = {
    "libX11.so.6": "libx11-6",
    "libXrender.so.1": "libxrender1",
    "libXfixes.so.3": "libxfixes3",
    "libXi.so.6": "libxi6",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libSM.so.6": "libsm6",
    "libGL.so.1": "libgl1",
}
"""What Blender's Python module loads, and the Debian package that brings it."""


def checks(runs_dir: Path, *, is_probed: bool = False, partition: str = "") -> list[Check]:
    """Look at everything; takes a second or two, with ``is_probed`` a minute at most for two nodes of SLURM."""
    return [
        _python(),
        *(_package(name, "fail", "pip install -r requirements.txt") for name in PACKAGES),
        *(_package(name, "warn", f"pip install {name} ({purpose})") for name, purpose in OPTIONAL.items()),
        _git(),
        _writable(runs_dir),
        _free_disk(runs_dir),
        Check(name="slots", state="ok", found=f"{num_slots()} cores for the local scheduler (GET3D_SLOTS)"),
        _gpu(),
        _render_environment(REPOSITORY),
        _libraries(_run(["ldconfig", "-p"]) or _run(["/sbin/ldconfig", "-p"])),
        *doctor_slurm.checks(runs_dir, is_probed=is_probed, partition=partition),
    ]


def _python() -> Check:
    good = sys.version_info[:2] >= OLDEST_PYTHON
    what_to_do = "" if good else "install Python 3.11 and make the environment anew"
    return Check(
        name="python", state="ok" if good else "fail", found=platform.python_version(), what_to_do=what_to_do
    )


def _package(name: str, without: str, what_to_do: str) -> Check:
    try:
        return Check(name=name, state="ok", found=importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name=name, state=without, found="not installed", what_to_do=what_to_do)


def _git() -> Check:
    if path := shutil.which("git"):
        return Check(name="git", state="ok", found=path)
    what_to_do = "install git, so that a run knows its commit"
    return Check(name="git", state="warn", found="not found", what_to_do=what_to_do)


def _writable(runs_dir: Path) -> Check:
    folder = _existing(runs_dir)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        what_to_do = "choose another folder: --runs DIR"
        return Check(
            name="runs folder", state="fail", found=f"{folder}: {error.strerror}", what_to_do=what_to_do
        )
    return Check(name="runs folder", state="ok", found=f"{runs_dir} can be written")


def _free_disk(runs_dir: Path) -> Check:
    free = shutil.disk_usage(_existing(runs_dir)).free
    state = "ok" if free >= GOOD_FREE_BYTES else "warn" if free >= LEAST_FREE_BYTES else "fail"
    what_to_do = (
        ""
        if state == "ok"
        else "a paper-sized run keeps some 10 GB of checkpoints: free space or use --runs DIR"
    )
    return Check(name="free disk", state=state, found=size(free), what_to_do=what_to_do)


def _gpu() -> Check:
    names = _run(
        ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    ).strip()
    if names:
        return Check(name="GPU", state="ok", found="; ".join(names.splitlines()))
    what_to_do = "without one only the tiny configurations finish in minutes"
    return Check(name="GPU", state="warn", found="none that nvidia-smi knows", what_to_do=what_to_do)


def _render_environment(repository: Path) -> Check:
    environment = repository / ".venv-render"
    if found := sorted(environment.glob("lib/python3*/site-packages/bpy-*.dist-info")):
        return Check(name="Blender", state="ok", found=found[0].name.removesuffix(".dist-info"))
    commands = f"python3.11 -m venv {environment.name} && {environment.name}/bin/pip install -r requirements-render.txt"
    return Check(
        name="Blender", state="warn", found="no render environment", what_to_do=f"to render: {commands}"
    )


def _libraries(listing: str) -> Check:
    """Judge what ``ldconfig -p`` prints."""
    if not listing:
        what_to_do = f"if rendering fails: {_apt(list(BLENDER_LIBRARIES.values()))}"
        return Check(
            name="Blender libraries", state="warn", found="ldconfig does not answer", what_to_do=what_to_do
        )
    there = {line.split()[0] for line in listing.splitlines() if line.strip()}
    missing = {library: package for library, package in BLENDER_LIBRARIES.items() if library not in there}
    if not missing:
        return Check(name="Blender libraries", state="ok", found=f"all {len(BLENDER_LIBRARIES)}")
    what_to_do = f"to render: {_apt(list(missing.values()))}"
    return Check(
        name="Blender libraries", state="warn", found=f"missing {', '.join(missing)}", what_to_do=what_to_do
    )


def _apt(packages: Sequence[str]) -> str:
    return f"apt install --no-install-recommends {' '.join(packages)}"


def _existing(folder: Path) -> Path:
    """Return ``folder`` or the nearest folder above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _run(command: Sequence[str]) -> str:
    """Return what ``command`` prints; empty if it is missing, fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
