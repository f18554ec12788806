"""The texture of a car: paint, glass, lights and wheels, coloured by where a texel lies in space."""

from dataclasses import dataclass

import numpy as np

from preprocess.shapes.car_body import Body, Lines
from preprocess.shapes.draw import Draw
from preprocess.shapes.texture import Array, Chart, Colour, canvas_of, plain

BODY = Chart(x=0, y=0, width=512, height=256)
NOSE = Chart(x=0, y=256, width=128, height=128)
TAIL = Chart(x=128, y=256, width=128, height=128)
WHEEL = Chart(x=256, y=256, width=128, height=128)
DARK = Chart(x=384, y=256, width=64, height=64)
PAINT = Chart(x=448, y=256, width=64, height=64)
SIGN = Chart(x=384, y=320, width=64, height=64)

LAST_ROW = 12
"""Rows of a half ring, from the middle of the underside to that of the roof."""
_SIDE_ROW, _SHOULDER_ROW, _CABIN_ROW, _RAIL_ROW = 2, 6, 7, 9

_RED: Colour = (0.78, 0.08, 0.07)
_YELLOW: Colour = (0.95, 0.74, 0.08)
_BODY_COLOURS: tuple[Colour, ...] = (
    _RED, (0.10, 0.25, 0.62), (0.90, 0.90, 0.88), (0.13, 0.14, 0.16), _YELLOW, (0.62, 0.65, 0.68), (0.08, 0.42, 0.24),
    (0.93, 0.42, 0.06), (0.36, 0.70, 0.84), (0.42, 0.12, 0.16), (0.10, 0.52, 0.55), (0.83, 0.76, 0.62),
    (0.46, 0.28, 0.56), (0.55, 0.74, 0.25),
)  # fmt: skip
_GLASS: Colour = (0.07, 0.09, 0.12)
_BLACK: Colour = (0.045, 0.045, 0.05)
_TRIM: Colour = (0.16, 0.16, 0.17)
_HEADLIGHT: Colour = (0.95, 0.95, 0.86)
_TAILLIGHT: Colour = (0.72, 0.03, 0.03)
_HUBS: tuple[Colour, ...] = ((0.72, 0.73, 0.75), (0.5, 0.51, 0.53), (0.82, 0.8, 0.74), (0.2, 0.2, 0.22))

# A style that stands twice is twice as likely.
_STYLES = {
    "sports": ("stripes", "stripes", "plain", "one-stripe"),
    "bus": ("band", "roof"),
    "van": ("band", "roof", "plain", "sill"),
    "suv": ("sill", "roof", "plain"),
    "pickup": ("sill", "band", "plain"),
}
_OTHER_STYLES = ("plain", "plain", "roof", "sill", "stripes", "band")
_DOORS = {"sports": (1,), "hatchback": (1, 2), "pickup": (1, 2)}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scheme:
    """Colours and decoration of a car."""

    body: Colour
    second: Colour
    hub: Colour
    spokes: int
    style: str
    doors: int
    panel: bool
    """A van without rear side windows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Texels:
    """Where the texels of the shell lie, all [H, W]."""

    x: Array
    y: Array
    z: Array
    row: Array
    """Which row of the half ring, with fractions."""
    belt: Array
    above: Array
    """Roof above belt."""


def car_texture(body: Body, lines: Lines, half: Array, draw: Draw) -> Array:
    """Paint the canvas of a car whose sections are ``half`` [S, 13, 3]."""
    scheme = _scheme(body, draw)
    canvas = canvas_of(scheme.body)
    BODY.paint(canvas, lambda s, t: _shell_colours(body, lines, scheme, _texels(lines, half, s, t)))
    NOSE.paint(canvas, lambda s, t: _end_colours(body, lines, scheme, s, t, is_nose=True))
    TAIL.paint(canvas, lambda s, t: _end_colours(body, lines, scheme, s, t, is_nose=False))
    WHEEL.paint(canvas, lambda s, t: _wheel_colours(scheme, s, t))
    DARK.paint(canvas, lambda s, _t: plain(s, _BLACK))
    SIGN.paint(canvas, lambda s, _t: plain(s, (0.97, 0.9, 0.45)))
    return canvas


def _scheme(body: Body, draw: Draw) -> _Scheme:
    base = draw.one_of([c for c in _BODY_COLOURS if body.kind != "bus" or sum(c) > 1])
    second = draw.one_of([c for c in ((0.93, 0.93, 0.91), _TRIM, _RED, _YELLOW) if c != base])
    shade = draw.between(0.92, 1.08)
    hub, spokes = draw.one_of(_HUBS), draw.one_of((5, 6, 8))
    style = draw.one_of(_STYLES.get(body.kind, _OTHER_STYLES))
    doors = _DOORS.get(body.kind, (2,))
    return _Scheme(
        body=tuple(min(c * shade, 0.96) for c in base),
        second=second,
        hub=hub,
        spokes=spokes,
        style=style,
        doors=draw.one_of(doors) if len(doors) > 1 else doors[0],
        panel=body.kind == "van" and draw.between(0, 1) < 0.5,
    )


def _texels(lines: Lines, half: Array, s: Array, t: Array) -> _Texels:
    """Find the texels in space; ``s`` runs along the stations, ``t`` along the half ring."""
    station, row = s * (len(half) - 1), t * LAST_ROW
    x, y, z = np.moveaxis(_interpolated(half, station, row), -1, 0)
    belt, above = (np.interp(station, np.arange(len(half)), v) for v in (lines.belt, lines.roof - lines.belt))
    return _Texels(x=x, y=y, z=z, row=row, belt=belt, above=above)


def _interpolated(half: Array, station: Array, row: Array) -> Array:
    i, j = (
        np.clip(np.floor(v).astype(int), 0, n - 2)
        for v, n in zip((station, row), half.shape[:2], strict=True)
    )
    a, b = (station - i)[..., None], (row - j)[..., None]
    top = half[i, j] * (1 - a) + half[i + 1, j] * a
    return np.asarray(top * (1 - b) + (half[i, j + 1] * (1 - a) + half[i + 1, j + 1] * a) * b)


def _shell_colours(body: Body, lines: Lines, scheme: _Scheme, at: _Texels) -> Array:
    colours = plain(at.row, scheme.body)
    _decorate(colours, body, scheme, at)
    _line_doors(colours, body, scheme, at)
    colours[at.row < _SIDE_ROW + 0.1] = _BLACK
    _glaze(colours, body, scheme, at)
    colours[(at.above < -0.1) & (at.row > _CABIN_ROW + 0.4)] = _TRIM
    _light_ends(colours, body, lines, at)
    return colours


def _decorate(colours: Array, body: Body, scheme: _Scheme, at: _Texels) -> None:
    height = (at.y - body.floor) / (body.belt - body.floor)
    tall = at.above > 0.5 * (body.roof - body.belt)
    is_side, is_top = at.row < _SHOULDER_ROW, at.row > _SHOULDER_ROW
    masks = {
        "plain": np.zeros_like(tall),
        "roof": (at.row > _RAIL_ROW - 0.15) & tall,
        "sill": is_side & (height < 0.33),
        "band": is_side & (height > 0.5) & (height < 0.78),
        "stripes": is_top & (at.x > 0.07) & (at.x < 0.27),
        "one-stripe": is_top & (at.x < 0.16),
    }
    colours[masks[scheme.style]] = scheme.second


def _pillars(body: Body, scheme: _Scheme) -> list[float]:
    """Return where the doors and side windows are parted, front to back."""
    front, back = body.screen[1], max(body.rear[0], -0.44 * body.length)
    if body.kind == "bus":
        return [float(z) for z in np.linspace(0.40 * body.length, -0.44 * body.length, 8)]
    if scheme.doors == 1:
        return [back + 0.25 * (front - back)]
    return [float(z) for z in np.linspace(front, back, scheme.doors + 2)[1:-1]]


def _line_doors(colours: Array, body: Body, scheme: _Scheme, at: _Texels) -> None:
    """Draw door gaps and handles."""
    side = (at.row > _SIDE_ROW + 0.3) & (at.row < _CABIN_ROW)
    gaps = [0.5 * (body.screen[0] + body.screen[1]), *_pillars(body, scheme)[: scheme.doors]]
    for gap in gaps:
        colours[side & (np.abs(at.z - gap) < 0.014) & (at.y > body.floor + 0.1)] *= 0.45
    for gap in gaps[1:]:
        handle = (np.abs(at.z - gap - 0.17) < 0.08) & (np.abs(at.y - body.belt + 0.13) < 0.022)
        colours[side & handle] = _TRIM


def _glaze(colours: Array, body: Body, scheme: _Scheme, at: _Texels) -> None:
    """Paint windows as dark glass: screens across the top rows of the slopes, side windows between belt and rail."""
    slope = at.above / (body.roof - body.belt)
    top = (at.row > _RAIL_ROW + 0.35) & (slope > 0.1) & (slope < 0.9)
    colours[top & ((at.z > body.screen[1] - 0.05) | (at.z < body.rear[0] + 0.05))] = _GLASS
    side = (at.row > _CABIN_ROW + 0.12) & (at.row < _RAIL_ROW - 0.12) & (slope > 0.22)
    limit = body.screen[1] - 0.17 * body.length if scheme.panel else -0.46 * body.length
    side &= (at.z > limit) & (at.z < 0.485 * body.length)
    for pillar in _pillars(body, scheme):
        side &= np.abs(at.z - pillar) > 0.045
    colours[side] = _GLASS
    colours[side & (at.row > _RAIL_ROW - 0.75) & (at.row < _RAIL_ROW - 0.55)] = np.array(_GLASS) * 1.9


def _light_ends(colours: Array, body: Body, lines: Lines, at: _Texels) -> None:
    """Wrap the lights and bumpers around both ends of the shell."""
    near = np.abs(at.z) > body.length / 2 - 0.27
    colours[near & (at.y < body.floor + 0.3 * (body.belt - body.floor)) & (at.y > body.floor)] = _TRIM
    lamp = (np.abs(at.y - _lamp_height(body, lines)) < 0.085) & (at.x > 0.55 * body.width / 2)
    lamp &= near & (at.y < at.belt + 0.02)
    colours[lamp & (at.z > 0)] = _HEADLIGHT
    colours[lamp & (at.z < 0)] = _TAILLIGHT


def _lamp_height(body: Body, lines: Lines) -> float:
    return float(body.floor + 0.62 * (lines.belt[-1] - body.floor))


def _end_colours(body: Body, lines: Lines, scheme: _Scheme, s: Array, t: Array, *, is_nose: bool) -> Array:
    """Colour the flat face at one end; both halves of it share the texels."""
    x, y = s * body.width / 2, t * (body.roof + 0.1)
    half, end = body.width / 2, -1 if is_nose else 0
    belt, above_lamp = float(lines.belt[end]), y - _lamp_height(body, lines)
    colours = plain(s, scheme.body)
    colours[y < body.floor + 0.3 * (body.belt - body.floor)] = _TRIM
    if is_nose:
        _grille(colours, x / half, above_lamp)
    colours[(np.abs(above_lamp) < 0.085) & (x > 0.55 * half)] = _HEADLIGHT if is_nose else _TAILLIGHT
    plate = _lamp_height(body, lines) - (0.2 if is_nose else 0.02)
    colours[(np.abs(y - plate) < 0.055) & (x < 0.24)] = (0.92, 0.92, 0.88)
    if float(lines.roof[end]) - belt > 0.3:
        window = (y > belt + 0.08) & (y < body.roof - 0.22) & (x < 0.72 * half) & ((x > 0.03) | is_nose)
        colours[window] = _GLASS
    return colours


def _grille(colours: Array, outwards: Array, above_lamp: Array) -> None:
    colours[(np.abs(above_lamp) < 0.09) & (outwards < 0.5)] = _BLACK
    bars = np.abs(above_lamp / 0.06 - np.round(above_lamp / 0.06)) < 0.16
    colours[(np.abs(above_lamp) < 0.085) & (outwards < 0.48) & bars] = (0.5, 0.5, 0.52)


def _wheel_colours(scheme: _Scheme, s: Array, t: Array) -> Array:
    dx, dy = 2 * s - 1, 2 * t - 1
    r, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    colours = plain(s, _BLACK)
    colours[(r > 0.76) & (r < 0.8)] = (0.1, 0.1, 0.1)
    colours[r < 0.66] = scheme.hub
    between = np.cos(scheme.spokes * angle) < 0.15
    colours[(r > 0.22) & (r < 0.56) & between] = (0.07, 0.07, 0.08)
    colours[r < 0.1] = (0.15, 0.15, 0.16)
    return colours
