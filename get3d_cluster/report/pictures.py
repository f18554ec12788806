"""Which pictures and files of a run belong together."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from get3d_cluster.report.axes import short_number
from get3d_cluster.report.words import link

_TURNTABLES = (".gif", ".webp")


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSeries:
    """Pictures of one kind over the run."""

    title: str
    pictures: tuple[tuple[str, str], ...]
    """Link and caption, oldest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshCard:
    """One exported shape."""

    title: str
    picture: str
    """Link to a turntable, else to its views, else to the texture, else empty."""
    files: tuple[tuple[str, str], ...]
    """Link and label."""
    is_sheet: bool = False
    """A picture of many shapes, not the files of one."""


def sample_series(samples: Sequence[Path]) -> list[SampleSeries]:
    """Gather pictures whose names differ in numbers only, such as ``fakes-000100.png`` and ``fakes-000200.png``."""
    groups: dict[str, list[Path]] = {}
    for path in samples:
        groups.setdefault(re.sub(r"[0-9]+", "#", path.as_posix()), []).append(path)
    return [
        SampleSeries(title=_title(paths[0]), pictures=tuple((link(p), _caption(p)) for p in paths))
        for paths in groups.values()
    ]


def mesh_cards(meshes: Sequence[Path], run_path: Path) -> list[MeshCard]:
    """Gather the files of each exported shape: those of one folder that share their name up to its first dot."""
    groups: dict[Path, list[Path]] = {}
    for path in meshes:
        groups.setdefault(path.with_name(path.name.partition(".")[0] or path.name), []).append(path)
    return [_mesh_card(stem, paths, run_path) for stem, paths in groups.items()]


def _mesh_card(stem: Path, paths: Sequence[Path], run_path: Path) -> MeshCard:
    moving = [p for p in paths if p.suffix.lower() in _TURNTABLES]
    still = [p for p in paths if p.suffix.lower() in {".png", ".jpg", ".jpeg"}]
    views = [
        p for p in still if p.suffixes[:-1]
    ]  # such as shape-00001.views.png; the plain one is its texture
    shown = [*moving, *views]
    pictures = shown or still
    return MeshCard(
        title=stem.relative_to("meshes").as_posix(),
        picture=link(pictures[0]) if pictures else "",
        files=tuple(
            (link(p), f"{p.suffix[1:].upper()} {_size(run_path / p)}") for p in paths if p not in shown
        ),
        is_sheet=paths == still,
    )


def _size(path: Path) -> str:
    try:
        return short_number(path.stat().st_size) + "B"
    except OSError:
        return ""


def _title(path: Path) -> str:
    words = re.sub(r"[0-9]+", " ", path.relative_to("samples").with_suffix("").as_posix())
    return (
        " ".join(re.split(r"[-_./\s]+", words)).strip().removesuffix(" step").removesuffix(" images")
        or "generated"
    )


def _caption(path: Path) -> str:
    """Say what a name says; sheets of a training have the number of images seen as theirs."""
    if path.stem.isdecimal():
        return f"{int(path.stem):,} images"
    return re.sub(r"0*([0-9]+)", lambda m: f"{int(m[1]):,}", path.stem).replace("-", " ").replace("_", " ")
