"""What became of a dataset, for people: summary.html and sheet.png in the output folder, made from its files alone."""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from preprocess.images import Settings, Tree, key
from preprocess.quality import Pixels, decode
from preprocess.shapenet import ModelFile

PAGE, SHEET, LOG = "summary.html", "sheet.png", "render.jsonl"
SHEET_COLUMNS, MAX_ROWS, TILE_PX = 12, 10, 96
SAMPLED = 1000
"""Models whose cameras are counted, spread over all of them: enough for a histogram."""
NUM_SLOWEST, NUM_FAILED, NUM_LEFT_OUT = 12, 200, 3
ROTATION_BINS, ELEVATION_BINS = 36, 18
SKY, GROUND = (250, 251, 252), (226, 230, 234)
"""Behind the objects of the sheet, top to bottom: neither white nor black ones vanish."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A bar of a histogram."""

    x: float
    width: float
    height: float
    """Share of the tallest."""
    label: str


def is_summed_up(tree: Tree) -> bool:
    """Say whether the summary is newer than the last model that ended."""
    try:
        return (tree.out / PAGE).stat().st_mtime_ns >= (tree.out / LOG).stat().st_mtime_ns
    except FileNotFoundError:
        return (tree.out / PAGE).is_file()


def sum_up(tree: Tree, items: Sequence[ModelFile]) -> None:
    """Write the summary of ``items``, all of which have ended. Raises: StorageError."""
    there = {synset: tree.published(synset) for synset in {item.synset for item in items}}
    if (tree.out / "quarantine").is_dir():
        tree.list_quarantined()
    verdicts = _rows(tree.out / "quarantine.jsonl")
    failed = {f"{row['synset']}/{row['model']}" for row in verdicts}
    finished = [item for item in items if item.model in there[item.synset] and key(item) not in failed]
    sheet = _sheet(tree, finished)
    if sheet is not None:
        tree.write(SHEET, sheet)
    page = _page(tree, finished, verdicts, has_sheet=sheet is not None)
    tree.write(PAGE, page.encode(errors="backslashreplace"))  # names of folders may be bytes of any kind


def _page(tree: Tree, finished: Sequence[ModelFile], verdicts: Sequence[Settings], *, has_sheet: bool) -> str:
    rows = {f"{row['synset']}/{row['model']}": row for row in _rows(tree.out / LOG)}
    left_out = _rows(tree.out / "left_out.jsonl")
    rotations, elevations = _cameras(tree, finished)
    low, high = tree.image.elevation_range_deg
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    done = [rows[key(item)] for item in finished if key(item) in rows]
    return environment.get_template("summary_page.html").render(
        name=tree.out.absolute().name,
        numbers=_numbers(tree, finished, verdicts, left_out, done),
        sheet=SHEET if has_sheet else "",
        reasons=Counter(str(row["reason"]) for row in verdicts).most_common(),
        failed=verdicts[:NUM_FAILED],
        num_failed=len(verdicts),
        left_out=list(_grouped(left_out)),
        slowest=[_slow(tree, row) for row in sorted(done, key=lambda row: -row["seconds"])[:NUM_SLOWEST]],
        rotation=_bars(rotations, ROTATION_BINS, (0.0, 360.0)),
        elevation=_bars(elevations, ELEVATION_BINS, (low, max(high, low + 1))),
        low=f"{low:g}",
        high=f"{high:g}",
        settings=[(name, _shown(value)) for name, value in _settings(tree).items()],
    )


def _numbers(
    tree: Tree,
    finished: Sequence[ModelFile],
    verdicts: Sequence[Settings],
    left_out: Sequence[Settings],
    done: Sequence[Settings],
) -> list[tuple[str, str]]:
    seconds = [row["seconds"] for row in done]
    images = len(finished) * tree.image.num_views
    numbers = [
        ("models finished", f"{len(finished):,}"),
        ("images", f"{images:,}"),
        ("quarantined", f"{len(verdicts):,}"),
        ("left out", f"{len(left_out):,}"),
    ]
    if seconds:
        numbers += [
            ("seconds per model, median", f"{np.median(seconds):.1f}"),
            ("of all workers together", _duration(sum(seconds))),
        ]
    return numbers


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{seconds / 3600:,.0f} h"


def _settings(tree: Tree) -> Settings:
    facts: Settings = {}
    for name in ("render.json", "renderer.json"):
        with contextlib.suppress(OSError, ValueError):
            read = json.loads((tree.out / name).read_bytes())
            facts |= read.get("settings", read)
    return facts


def _shown(value: Any) -> str:
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)


def _grouped(left_out: Sequence[Settings]) -> Iterator[tuple[str, int, str]]:
    """Yield each reason with the number of models and the first few of them."""
    ordered = sorted(left_out, key=lambda row: str(row["why"]))
    groups = [(why, list(group)) for why, group in groupby(ordered, key=lambda row: str(row["why"]))]
    for why, group in sorted(groups, key=lambda each: -len(each[1])):
        names = [f"{row['synset']}/{row['model']}".strip("/") for row in group[:NUM_LEFT_OUT]]
        yield why, len(group), ", ".join(names) + (", ..." if len(group) > NUM_LEFT_OUT else "")


def _slow(tree: Tree, row: Settings) -> Settings:
    item = ModelFile(synset=row["synset"], model=row["model"], path=Path())
    facts = tree.facts(item)
    covered = [view["coverage"] for view in facts.get("views", [])]
    return {
        "name": key(item),
        "seconds": f"{row['seconds']:.1f}",
        "tris": f"{facts.get('tris', 0):,}",
        "coverage": f"{np.mean(covered):.0%}" if covered else "",
    }


def _cameras(tree: Tree, finished: Sequence[ModelFile]) -> tuple[list[float], list[float]]:
    rotations: list[float] = []
    elevations: list[float] = []
    for item in _spread(finished, SAMPLED):
        around, above = tree.cameras(item)
        rotations += around
        elevations += above
    return rotations, elevations


def _bars(values: Sequence[float], num_bins: int, limits: tuple[float, float]) -> list[Bar]:
    counts, edges = np.histogram(values, bins=num_bins, range=limits)
    top, width = max(1, counts.max()), 100 / num_bins
    return [
        Bar(
            x=index * width,
            width=width,
            height=100 * float(count / top),
            label=f"{edges[index]:.0f} to {edges[index + 1]:.0f} degrees: {count} views",
        )
        for index, count in enumerate(counts)
    ]


def _sheet(tree: Tree, finished: Sequence[ModelFile]) -> bytes | None:
    """Return a picture of the dataset: a view each of many models, or many views of a few. None without models."""
    if not finished:
        return None
    most = SHEET_COLUMNS * MAX_ROWS
    chosen = _spread(finished, most)
    views_each = min(tree.image.num_views, max(1, 2 * SHEET_COLUMNS // len(chosen)))
    tiles = [_tile(tree.view_path(item, view)) for item in chosen for view in range(views_each)][:most]
    columns = min(SHEET_COLUMNS, len(tiles))
    num_rows = -(-len(tiles) // columns)
    tiles += [_backdrop()] * (num_rows * columns - len(tiles))
    grid = np.stack(tiles).reshape(num_rows, columns, TILE_PX, TILE_PX, 3)
    picture = grid.swapaxes(1, 2).reshape(num_rows * TILE_PX, columns * TILE_PX, 3)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _tile(path: Path) -> Pixels:
    """Return a view in small over the backdrop; the backdrop alone if it cannot be read."""
    try:
        pixels = decode(path.read_bytes())
    except (OSError, ValueError):
        return _backdrop()
    premultiplied = Image.fromarray(pixels).convert("RGBa")  # or hidden black would darken the silhouette
    small = premultiplied.resize((TILE_PX, TILE_PX), Image.Resampling.BOX).convert("RGBA")
    over = Image.fromarray(_backdrop()).convert("RGBA")
    over.alpha_composite(small)
    return np.asarray(over.convert("RGB"))


def _backdrop() -> Pixels:
    steps = np.linspace(SKY, GROUND, TILE_PX)
    return np.broadcast_to(steps[:, None], (TILE_PX, TILE_PX, 3)).astype(np.uint8)


def _spread(items: Sequence[ModelFile], most: int) -> list[ModelFile]:
    """Return at most so many, evenly from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


def _rows(path: Path) -> list[Settings]:
    """Return the lines of a list; one that a kill cut short is passed over."""
    rows = []
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]
