"""Curves of the measured numbers, as points to draw. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from get3d_cluster.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Tick, short_number
from get3d_cluster.report.reading import Measurement

MOST_POINTS = 200
MOST_CURVES = 6
"""Curves in one chart; there are as many colours."""

LOG_RATIO = 50.0
"""A chart whose positive values span more than this factor gets a logarithmic axis."""

_FIRST = (
    "frechet",
    "silhouette",
    "distance",
    "fd",
    "iou",
    "loss",
    "r1",
    "logit",
    "sign",
    "grad",
    "weight",
    "update",
)
"""Groups shown first, in this order: what says how good the run is, then how it trains."""

_TITLES = {
    "frechet": "Fréchet distance to real images",
    "silhouette": "overlap with the best matching real silhouettes",
    "loss": "losses",
    "r1": "R1 penalties",
    "logit": "mean logits",
    "sign": "mean signs of logits",
    "grad": "norms of gradients",
    "weight": "norms of weights",
    "update": "change of weights in a step / weights",
}
"""Of the groups of a training; others are named by their word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One named number."""

    name: str
    points: str
    """``x,y x,y ...`` as SVG reads it."""
    last_x: float
    last_y: float
    last: str
    is_floor: bool
    """A reference level, drawn dashed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Curves that share their axes."""

    title: str
    logarithmic: bool
    x_label: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    resumes: tuple[float, ...]
    """Where the run came back after an interruption."""
    note: str = ""
    """What the last row says of this group in words."""


def charts(measurements: Sequence[Measurement], resume_steps: Sequence[int] = ()) -> list[Chart]:
    """Group numbers by the first word of their names, such as ``loss`` in ``loss_g``, one chart a group.

    What was zero all along, such as a count of skipped steps, is left out.
    """
    names = sorted({name for m in measurements for name, value in m.values.items() if value != 0.0})
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_first_word(name), []).append(name)
    pieces = [
        (title, members[start : start + MOST_CURVES])
        for title, members in sorted(groups.items(), key=lambda item: _rank(item[0]))
        for start in range(0, len(members), MOST_CURVES)
    ]
    return [_chart(title, members, measurements, resume_steps) for title, members in pieces]


def _chart(
    title: str, names: Sequence[str], rows: Sequence[Measurement], resume_steps: Sequence[int]
) -> Chart:
    by_images = any(m.images for m in rows)
    series = {
        name: _thinned([(_x(m, by_images), m.values[name]) for m in rows if name in m.values])
        for name in names
    }
    values = [y for points in series.values() for _, y in points]
    logarithmic = min(values) > 0.0 and max(values) / min(values) > LOG_RATIO
    x_axis = Axis(0.0, _x(rows[-1], by_images), LEFT, WIDTH - RIGHT)
    y_axis = Axis(
        *_padded(min(values), max(values), logarithmic), HEIGHT - BOTTOM, TOP, logarithmic=logarithmic
    )
    resumed = [m for step in resume_steps if step > 0 for m in [_nearest(rows, step)]]
    return Chart(
        title=_TITLES.get(title, names[0] if len(names) == 1 else title),
        logarithmic=logarithmic,
        x_label="images seen" if by_images else "step",
        curves=tuple(_curve(name, points, x_axis, y_axis) for name, points in series.items()),
        x_ticks=x_axis.ticks(5),
        y_ticks=y_axis.ticks(4),
        resumes=tuple(sorted({round(x_axis.at(_x(m, by_images)), 1) for m in resumed})),
        note=_note(title, rows[-1].words),
    )


def _curve(name: str, points: Sequence[tuple[float, float]], x_axis: Axis, y_axis: Axis) -> Curve:
    placed = [(x_axis.at(x), y_axis.at(y)) for x, y in points]
    return Curve(
        name=name,
        points=" ".join(f"{x:.1f},{y:.1f}" for x, y in placed),
        last_x=round(placed[-1][0], 1),
        last_y=round(placed[-1][1], 1),
        last=short_number(points[-1][1]),
        is_floor="floor" in name,
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbours, so that a long run is no larger file than a short one; the last point stays itself."""
    size = -(-len(points) // MOST_POINTS)
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]
    return [*means[:-1], points[-1]]


def _padded(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    if logarithmic:
        return low / 1.15, high * 1.15
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    bottom = low - room
    return (0.0 if low >= 0.0 > bottom else bottom), high + room


def _first_word(name: str) -> str:
    return re.split(r"[/._]", name, maxsplit=1)[0]


def _note(group: str, words: Mapping[str, str]) -> str:
    """Name the parameters that a group is mostly made of, such as ``grad_most_g``."""
    found = {key: value for key, value in sorted(words.items()) if key.startswith(f"{group}_most_")}
    return ", ".join(f"{key.removeprefix(f'{group}_most_')} in {value[:80]}" for key, value in found.items())


def _rank(group: str) -> tuple[int, str]:
    return (_FIRST.index(group) if group in _FIRST else len(_FIRST), group)


def _x(row: Measurement, by_images: bool) -> float:
    return float(row.images if by_images else row.step)


def _nearest(rows: Sequence[Measurement], step: int) -> Measurement:
    return min(rows, key=lambda m: abs(m.step - step))
