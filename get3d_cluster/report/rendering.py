"""What became of rendered models: read from the folder that a run rendered, packed, checked or learned from."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from get3d_cluster.config.yaml12 import parsed

PAGE, SHEET = "summary.html", "sheet.png"
"""As the job `render` writes them; `pack` puts copies beside its index."""
NUM_FAILED = 40

_KEYS = (("images",), ("out",), ("data", "path"), ("data",))
"""Where the configuration of a job may name such a folder."""
_SIGNS = (PAGE, SHEET, "quarantine.jsonl", "render.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A model that is not among the images."""

    model: str
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendering:
    """A folder of rendered images, or of a dataset that was packed from one."""

    folder: Path
    page: Path | None
    sheet: Path | None
    num_finished: int
    """0 where only copies of page and sheet are."""
    num_left_out: int
    reasons: tuple[tuple[str, int], ...]
    """Why models failed, and how many, most first."""
    failures: tuple[Failure, ...]
    """The first of them."""


def rendering_of(config: str) -> Rendering | None:
    """Return what the folder holds that a run's configuration names; None if it names none that is here."""
    return next((_read(folder) for folder in _folders(config) if _is_rendering(folder)), None)


def _folders(config: str) -> Iterator[Path]:
    values: Any = None
    with contextlib.suppress(yaml.YAMLError, RecursionError):
        values = parsed(config)
    for keys in _KEYS:
        value = values
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, str) and "://" not in value and Path(value).is_absolute():
            yield Path(value)


def _is_rendering(folder: Path) -> bool:
    return any(_is_file(folder / name) for name in _SIGNS)


def _read(folder: Path) -> Rendering:
    verdicts = list(_rows(folder / "quarantine.jsonl"))
    return Rendering(
        folder=folder,
        page=folder / PAGE if _is_file(folder / PAGE) else None,
        sheet=folder / SHEET if _is_file(folder / SHEET) else None,
        num_finished=sum(1 for _ in folder.glob("img/*/*")),
        num_left_out=sum(1 for _ in _rows(folder / "left_out.jsonl")),
        reasons=tuple(Counter(str(row.get("reason", "")) for row in verdicts).most_common()),
        failures=tuple(_failure(row) for row in verdicts[:NUM_FAILED]),
    )


def _failure(row: Mapping[str, Any]) -> Failure:
    synset, model, reason, message = (
        str(row.get(key, "")) for key in ("synset", "model", "reason", "message")
    )
    return Failure(model=f"{synset}/{model}", reason=reason, message=message)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
