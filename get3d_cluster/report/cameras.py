"""Where real images were taken from, over where generated ones are taken from: histograms to draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from get3d_cluster.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Tick
from get3d_cluster.report.reading import Cameras, Spread

WORTH_A_WORD = 0.02
"""Share of images that lie outside of what the others cover, above which it is said."""

_SCALE = 2
"""Pixels of a picture for a unit of paper."""
_INK, _SOFT, _GRID, _DATA, _DRAWN = "#1c2026", "#636b78", "#eceef2", "#a7c0e7", "#c8571b"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A share of the real images."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """One angle: bars for real images, an outline for generated ones."""

    title: str
    bars: tuple[Bar, ...]
    outline: tuple[tuple[float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    data: str
    drawn: str
    warning: str
    """What to look at; empty if real cameras lie where generated ones do."""


def histograms(cameras: Cameras) -> list[Histogram]:
    """Lay out both angles."""
    return [_histogram("azimuth", cameras.azimuth), _histogram("elevation", cameras.elevation)]


def picture(charts: Sequence[Histogram]) -> Image.Image:
    """Draw histograms below each other, for what shows no vector graphics."""
    height = round(HEIGHT) + 24
    sheet = Image.new("RGB", (round(WIDTH) * _SCALE, len(charts) * height * _SCALE), "white")
    for row, chart in enumerate(charts):
        pen = _Pen(sheet, row * height)
        pen.text(
            LEFT,
            3,
            f"{chart.title} (blue: real images, {chart.data}; orange: generated, {chart.drawn})",
            _INK,
            "la",
        )
        pen = _Pen(sheet, row * height + 24)
        for tick in chart.y_ticks:
            pen.line([(LEFT, tick.at), (WIDTH - RIGHT, tick.at)], _GRID, 1)
            pen.text(LEFT - 7, tick.at, tick.label, _SOFT, "rm")
        for tick in chart.x_ticks:
            pen.text(tick.at, HEIGHT - BOTTOM + 12, tick.label, _SOFT, "mm")
        for bar in chart.bars:
            pen.box(bar)
        pen.line(chart.outline, _DRAWN, 2)
    return sheet


class _Pen:
    """Draws in units of paper, from ``top`` on downwards."""

    def __init__(self, sheet: Image.Image, top: float) -> None:
        self._draw = ImageDraw.Draw(sheet)
        self._top = top

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
        self._draw.line([self._at(x, y) for x, y in points], colour, width * _SCALE)

    def box(self, bar: Bar) -> None:
        corners = [self._at(bar.x, bar.y), self._at(bar.x + bar.width, bar.y + bar.height)]
        self._draw.rectangle(corners, _DATA)

    def text(self, x: float, y: float, text: str, colour: str, anchor: str) -> None:
        self._draw.text(self._at(x, y), text, colour, ImageFont.load_default(11 * _SCALE), anchor=anchor)

    def _at(self, x: float, y: float) -> tuple[int, int]:
        return round(x * _SCALE), round((y + self._top) * _SCALE)


def _histogram(name: str, spread: Spread) -> Histogram:
    across = Axis(spread.edges[0], spread.edges[-1], LEFT, WIDTH - RIGHT)
    tallest = max(*spread.data, *spread.drawn)
    up = Axis(0.0, 105.0 * tallest, HEIGHT - BOTTOM, TOP)
    floor = up.at(0.0)
    bars, outline = [], [(across.at(spread.edges[0]), floor)]
    for (left, right), data, drawn in zip(pairwise(spread.edges), spread.data, spread.drawn, strict=True):
        start, stop, top = across.at(left), across.at(right), up.at(100.0 * data)
        said = f"{left:g}° to {right:g}°: {100 * data:.1f} % of the real images, {100 * drawn:.1f} % of the generated"
        bars.append(Bar(x=start, y=top, width=stop - start, height=floor - top, text=said))
        outline += [(start, up.at(100.0 * drawn)), (stop, up.at(100.0 * drawn))]
    turn = name == "azimuth"
    marks = across.ticks_at(range(0, 361, 90), "°") if turn else across.ticks(6, "°")
    return Histogram(
        title=name,
        bars=tuple(bars),
        outline=(*outline, (across.at(spread.edges[-1]), floor)),
        x_ticks=marks,
        y_ticks=up.ticks(4, " %"),
        data=f"{spread.data_range[0]:.1f}° to {spread.data_range[1]:.1f}°",
        drawn=f"{spread.drawn_range[0]:g}° to {spread.drawn_range[1]:g}°",
        warning=_warning(spread),
    )


def _warning(spread: Spread) -> str:
    """Say how much of either lies in bins in which there is nothing of the other."""
    pairs = list(zip(spread.data, spread.drawn, strict=True))
    found = {
        "of the real images lie where none are generated": sum(data for data, drawn in pairs if not drawn),
        "of the generated images lie where there are no real ones": sum(
            drawn for data, drawn in pairs if not data
        ),
    }
    return "; ".join(f"{100 * share:.0f} % {what}" for what, share in found.items() if share > WORTH_A_WORD)
