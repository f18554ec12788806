"""What the files of a run folder say, however incomplete they are.

A report is most wanted of runs that were killed: absent files, torn last lines and unknown fields are normal here,
so nothing in this module raises because of what a file holds.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from get3d_cluster.runtime.checkpoint_files import meta_in

_LARGEST = 1e39
"""Beyond float32, so no measurement; also keeps differences of two values finite. False for NaN."""

REALS, CAMERAS = Path("dataset", "real.png"), Path("dataset", "cameras.json")
_POSITION_KEYS = frozenset({"step", "images", "epoch", "seconds"})
_PICTURES = frozenset({".png", ".gif", ".jpg", ".jpeg", ".webp"})
_MESHES = frozenset({".glb", ".obj", ".mtl", ".ply", ".stl"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One row of events.jsonl."""

    t: float
    """Unix time, seconds."""
    name: str
    attempt: int
    rank: int
    pid: int
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One row of metrics.jsonl; ``values`` are all finite."""

    step: int
    images: int
    epoch: int
    seconds: float
    values: Mapping[str, float]
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """One attempts/NNNN/outcome.json."""

    cause: str
    exit_code: int
    start_step: int
    end_step: int
    saved_step: int
    seconds: float
    message: str
    hosts: tuple[str, ...]
    world_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """One evaluation/step-*.json; ``values`` are all finite."""

    step: int
    images: int
    settings_key: str
    """Numbers with the same one can be compared."""
    features: str
    """What images were compared by."""
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """One angle of all cameras: shares of real and of generated images between edges, in degrees."""

    edges: tuple[float, ...]
    data: tuple[float, ...]
    data_range: tuple[float, ...]
    drawn: tuple[float, ...]
    drawn_range: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cameras:
    """dataset/cameras.json."""

    num_images: int
    azimuth: Spread
    elevation: Spread


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """Everything a report shows."""

    name: str
    spec: Mapping[str, Any]
    done: Mapping[str, Any] | None
    """What the DONE file says; None if there is none."""
    config: str
    events: tuple[Event, ...]
    """In order of time."""
    measurements: tuple[Measurement, ...]
    """In order of steps, one a step."""
    attempts: tuple[int, ...]
    endings: Mapping[int, Ending]
    """By attempt; an attempt that still runs, or was killed before it could write, has none."""
    checkpoints: tuple[int, ...]
    """Steps of the checkpoints that are kept."""
    samples: tuple[Path, ...]
    """Relative to the run folder, in order of their numbers."""
    meshes: tuple[Path, ...]
    logs: Mapping[int, Path] = field(default_factory=dict)
    """Log of rank 0 by attempt, relative to the run folder."""
    evaluations: tuple["Evaluated", ...] = ()
    """What the job evaluate measured, in order of steps."""
    reals: Path | None = None
    """Sheet of real images, relative to the run folder."""
    cameras: Cameras | None = None
    environments: tuple[Mapping[str, Any], ...] = ()
    """Where the run went on in another numeric environment, as the newest checkpoint tells: step, changed."""


def read_run(path: Path) -> RunFacts:
    """Read what there is of the run at ``path``."""
    spec = _object(path / "spec.json") or {}
    events = tuple(sorted(_events(path / "events.jsonl"), key=lambda e: e.t))
    folders = _numbered(path / "attempts", r"(\d+)")
    endings = {attempt: _object(folder / "outcome.json") for attempt, folder in folders.items()}
    logs = {attempt: folder / "rank0000.log" for attempt, folder in folders.items()}
    checkpoints = _numbered(path / "checkpoints", r"step-(\d+)")
    return RunFacts(
        name=str(spec.get("name") or path.absolute().name),
        spec=spec,
        done=_object(path / "DONE") or ({} if (path / "DONE").exists() else None),
        config=_text(path / "config.yaml"),
        events=events,
        measurements=_measurements(path / "metrics.jsonl"),
        attempts=tuple(sorted({*folders, *(e.attempt for e in events if e.attempt > 0)})),
        endings={attempt: _ending(data) for attempt, data in endings.items() if data},
        checkpoints=tuple(checkpoints),
        samples=_files(path, "samples", _PICTURES),
        meshes=_files(path, "meshes", _MESHES | _PICTURES),
        logs={attempt: log.relative_to(path) for attempt, log in logs.items() if log.is_file()},
        evaluations=_evaluations(path / "evaluation"),
        reals=REALS if (path / REALS).is_file() else None,
        cameras=read_cameras(path),
        environments=tuple(meta_in(list(checkpoints.values())[-1]).get("not_bitwise", ()))
        if checkpoints
        else (),
    )


def natural_key(text: str) -> list[tuple[int, str]]:
    """Order names by the numbers in them.

    >>> sorted(["a10", "a9", "a"], key=natural_key)
    ['a', 'a9', 'a10']
    """
    return [
        (int(part), "") if part.isascii() and part.isdigit() else (-1, part)
        for part in re.split(r"([0-9]+)", text)
        if part
    ]


def number(value: object) -> float:
    """Return ``value`` if it is a number one can draw, else 0."""
    return float(value) if isinstance(value, int | float) and _is_drawable(value) else 0.0


def whole(value: object) -> int:
    """Return ``value`` as an integer if it is a number, else 0."""
    return int(number(value))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _object(path: Path) -> dict[str, Any] | None:
    return _parsed(_text(path))


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in _text(path).splitlines():
        row = _parsed(line)
        if row is not None:
            yield row


def _events(path: Path) -> Iterator[Event]:
    for row in _rows(path):
        t = number(row.pop("t", None))
        name = str(row.pop("event", ""))
        if t and name:
            attempt, rank, pid = (whole(row.pop(key, None)) for key in ("attempt", "rank", "pid"))
            yield Event(t=t, name=name, attempt=attempt, rank=rank, pid=pid, fields=row)


def _measurements(path: Path) -> tuple[Measurement, ...]:
    by_step = {whole(row.get("step")): row for row in _rows(path) if "step" in row}
    return tuple(_measurement(by_step[step]) for step in sorted(by_step))


def _measurement(row: Mapping[str, Any]) -> Measurement:
    values = {key: value for key, value in row.items() if key not in _POSITION_KEYS and _is_drawable(value)}
    return Measurement(
        step=whole(row.get("step")),
        images=whole(row.get("images")),
        epoch=whole(row.get("epoch")),
        seconds=number(row.get("seconds")),
        values={key: float(value) for key, value in values.items()},
        words={key: value for key, value in row.items() if isinstance(value, str)},
    )


def _evaluations(folder: Path) -> tuple[Evaluated, ...]:
    found = [_evaluated(data) for path in sorted(folder.glob("step-*.json")) if (data := _object(path))]
    return tuple(sorted(found, key=lambda each: each.step))


def _evaluated(data: Mapping[str, Any]) -> Evaluated:
    listed = data.get("metrics")
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    features = [row["features"].get("name") for row in rows if isinstance(row.get("features"), dict)]
    return Evaluated(
        step=whole(data.get("step")),
        images=whole(data.get("images")),
        settings_key=str(data.get("settings_key") or ""),
        features=str(features[0]) if features else "",
        values={str(row.get("name")): float(row["value"]) for row in rows if _is_drawable(row.get("value"))},
    )


def read_cameras(run_path: Path) -> Cameras | None:
    """Return the histograms of a run's cameras; None if there are none that can be drawn."""
    data = _object(run_path / CAMERAS) or {}
    azimuth, elevation = (_spread(data.get(angle)) for angle in ("azimuth_deg", "elevation_deg"))
    if azimuth is None or elevation is None:
        return None
    return Cameras(num_images=whole(data.get("num_images")), azimuth=azimuth, elevation=elevation)


def _spread(data: object) -> Spread | None:
    """Return a histogram that can be drawn; None if it cannot."""
    given = data if isinstance(data, dict) else {}
    parts = {key: _degrees(given.get(key)) for key in ("edges", "data", "data_range", "drawn", "drawn_range")}
    sizes = [len(part) for part in parts.values()]
    bins = sizes[0] - 1
    rises = all(b > a for a, b in pairwise(parts["edges"]))
    is_whole = (
        bins > 0 and rises and sizes[1:] == [bins, 2, bins, 2] and max(*parts["data"], *parts["drawn"]) > 0
    )
    return Spread(**parts) if is_whole else None


def _degrees(data: object) -> tuple[float, ...]:
    values = data if isinstance(data, list) else []
    return tuple(map(float, values)) if all(map(_is_drawable, values)) else ()


def _ending(data: Mapping[str, Any]) -> Ending:
    hosts = data.get("hosts")
    return Ending(
        cause=str(data.get("cause") or "unknown"),
        exit_code=whole(data.get("exit_code")),
        start_step=whole(data.get("start_step")),
        end_step=whole(data.get("end_step")),
        saved_step=whole(data.get("saved_step")),
        seconds=number(data.get("seconds")),
        message=str(data.get("message") or ""),
        hosts=tuple(map(str, hosts)) if isinstance(hosts, list) else (),
        world_size=whole(data.get("world_size")),
    )


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    found = [(re.fullmatch(pattern, path.name), path) for path in folder.iterdir() if path.is_dir()]
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def _files(run: Path, folder: str, suffixes: frozenset[str]) -> tuple[Path, ...]:
    found = [
        p.relative_to(run) for p in (run / folder).rglob("*") if p.suffix.lower() in suffixes and p.is_file()
    ]
    shown = [p for p in found if not any(part.startswith(".") for part in p.parts)]
    return tuple(sorted(shown, key=lambda p: natural_key(p.as_posix())))


def _is_drawable(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
