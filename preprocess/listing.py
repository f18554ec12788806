"""What lies in a folder of models, remembered: a folder that did not change is not looked through again.

A folder is known by its own times of change, which every new, removed or renamed entry sets. What is inside a model's
own folder they do not tell, so the job looks again at each model that it takes (``shapenet.look_again``), and what was
left out, or is a link, is looked at anew each time: what is remembered is never believed further than that.
"""

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from get3d_cluster.errors import StorageError
from get3d_cluster.storage.local import write_atomic

FORMAT = 1
SUFFIXES = (".obj", ".glb", ".gltf", ".ply")
"""What Blender reads; the first is taken of several files of one name."""
MODEL_FILES = ("model.obj", "models/model_normalized.obj", "model.glb", "model.gltf", "model.ply")
"""Where a model lies in its own folder, the first that is there."""
UNSETTLED_S = 2.0
"""A folder that changed no longer ago may change again within one tick of its file system's clock."""
THREADS = 16
"""Network file systems answer each look after a while; waiting is done side by side."""
CHUNK = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What an entry of a folder is: a model, or why it is none."""

    name: str
    """Of the entry: the model's folder or file."""
    file: str = ""
    """Where the model's file lies in its own folder; empty for a file among others."""
    why: str = ""
    """Why it cannot be used; empty if it can."""
    is_folder: bool = False
    is_link: bool = False


class Listings:
    """Looks through folders of models; keeps what it saw in ``path`` if one is given."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known = _read(path)
        self._is_new = False

    def read(self, folder: Path, *, only_model_names: bool = False) -> dict[str, Look]:
        """Return what ``folder`` holds, by the models' names; nothing if it cannot be read.

        Entries that are neither folders nor model files, and hidden ones, are passed over. With ``only_model_names``
        a folder counts as a model only if its file has one of the usual names: others are categories.
        """
        key = f"{os.path.realpath(folder)}{'/' if only_model_names else ''}"
        stamp, known = _stamp(folder), self._known.get(key)
        if stamp and known and known["stamp"] == stamp:
            looks = [Look(name=name, file=file, is_folder=bool(file)) for name, file in known["models"]]
            looks += _looked_through(folder, known["again"], only_model_names)
        else:
            looks = _looked_through(folder, _names(folder), only_model_names)
            self._keep(key, stamp, looks)
        return _by_model(looks)

    def save(self) -> None:
        """Keep what was seen; of several that do so at once the last stays. A full disk is no reason to fail."""
        if self._path is None or not self._is_new:
            return
        data = json.dumps({"format": FORMAT, "folders": self._known}).encode()
        with contextlib.suppress(StorageError):
            write_atomic(self._path, data)
            self._is_new = False

    def _keep(self, key: str, stamp: list[int], looks: Sequence[Look]) -> None:
        if not stamp or time.time_ns() - max(stamp) < UNSETTLED_S * 1e9:
            return
        sure = [(look.name, look.file) for look in looks if not look.why and not look.is_link]
        again = [look.name for look in looks if look.why or look.is_link]
        self._known[key] = {"stamp": stamp, "models": sure, "again": again}
        self._is_new = True


def looked_at(path: Path, *, only_model_names: bool = False) -> Look:
    """Say what one entry of a folder is."""
    is_link, name = path.is_symlink(), path.name
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        why = "is a link that leads nowhere" if is_link else f"cannot be read: {error.strerror or error}"
        return Look(name=name, why=why, is_link=is_link)
    if not is_folder:
        why = "" if path.is_file() else "is no file"
        return Look(name=name, why=why, is_link=is_link)
    if is_link and _leads_up(path):
        return Look(name=name, why="is a link to a folder above it", is_link=True)
    file = next((each for each in MODEL_FILES if os.path.isfile(f"{path}/{each}")), "")  # noqa: PTH113  twice as fast
    why = ""
    if not file:
        file, why = ("", "is a category") if only_model_names else _only_model_file(path)
    return Look(name=name, file=file, why=why, is_folder=True, is_link=is_link)


def _looked_through(folder: Path, names: Iterable[str], only_model_names: bool) -> list[Look]:
    ordered = list(names)
    chunks = [ordered[start : start + CHUNK] for start in range(0, len(ordered), CHUNK)]

    def looks(chunk: Sequence[str]) -> list[Look]:
        return [looked_at(folder / name, only_model_names=only_model_names) for name in chunk]

    if len(chunks) == 1:
        return looks(chunks[0])
    with ThreadPoolExecutor(THREADS) as pool:
        return [look for part in pool.map(looks, chunks) for look in part]


def _by_model(looks: Iterable[Look]) -> dict[str, Look]:
    """Give each model its name: a folder's own, a file's without its suffix; one look for each name."""
    found: dict[str, Look] = {}
    for look in sorted(looks, key=_preference):
        model = look.name if look.is_folder or not _is_model_name(look.name) else Path(look.name).stem
        if model not in found:
            found[model] = look
        elif not look.why:
            found[look.name] = Look(
                name=look.name, why=f"has the name of {found[model].name}, which is taken"
            )
    return found


def _preference(look: Look) -> tuple[bool, bool, int, str]:
    suffix = Path(look.name).suffix.lower()
    return (
        bool(look.why),
        not look.is_folder,
        SUFFIXES.index(suffix) if suffix in SUFFIXES else len(SUFFIXES),
        look.name,
    )


def _names(folder: Path) -> list[str]:
    """Return the entries that may be models: folders, links, and files by their suffix."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if _may_be_model(entry)]
    except OSError:
        return []


def _may_be_model(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return False
    if _is_model_name(entry.name) or entry.is_dir(follow_symlinks=False):
        return True
    # To a folder, or broken. Path.is_file raises where a link leads to a place that must not be looked at.
    return entry.is_symlink() and not os.path.isfile(entry.path)  # noqa: PTH113


def _only_model_file(folder: Path) -> tuple[str, str]:
    """Return the one model file of a folder whatever its name; else nothing, and why."""
    try:
        names = sorted(name for name in os.listdir(folder) if _is_model_name(name))  # noqa: PTH208
    except OSError as error:
        return "", f"cannot be read: {error.strerror or error}"
    files = [name for name in names if os.path.isfile(folder / name)]  # noqa: PTH113  raises for no link
    if len(files) == 1:
        return files[0], ""
    if files:
        return "", f"holds {len(files)} models ({', '.join(files[:3])}) and none is called {MODEL_FILES[0]}"
    if names:
        return "", f"its {names[0]} is no file, or a link that leads nowhere"
    return "", f"holds no model: no {MODEL_FILES[0]}, no {MODEL_FILES[1]}, no other {', '.join(SUFFIXES)}"


def _is_model_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _leads_up(path: Path) -> bool:
    real, parent = Path(os.path.realpath(path)), Path(os.path.realpath(path.parent))
    return real == parent or real in parent.parents


def _stamp(folder: Path) -> list[int]:
    try:
        found = folder.stat()
    except OSError:
        return []
    return [found.st_mtime_ns, found.st_ctime_ns]


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        return {}
    return dict(data["folders"])
