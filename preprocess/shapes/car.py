"""The parts of a car: a shell, wheels, the darkness behind them, and what is mounted on it."""

import numpy as np

from preprocess.shapes.car_body import Body, Lines, drawn_body, lines_of
from preprocess.shapes.car_paint import BODY, DARK, LAST_ROW, NOSE, PAINT, SIGN, TAIL, WHEEL, car_texture
from preprocess.shapes.draw import Draw
from preprocess.shapes.mesh import CapUvs, Part, around, box, flat, loft
from preprocess.shapes.texture import Array, Chart


def car(kind: str, draw: Draw) -> tuple[list[Part], Array]:
    """Return the parts of a car and its canvas."""
    body = drawn_body(kind, draw)
    lines = lines_of(body)
    half = _half_rings(body, lines)
    parts = [_shell(body, half), *_wheels(body, lines), *_wells(body, lines), *_mounted(body, lines, draw)]
    return parts, car_texture(body, lines, half, draw)


def _shell(body: Body, half: Array) -> Part:
    rings = np.concatenate([half, half[:, -2:0:-1] * np.array([-1.0, 1.0, 1.0])], axis=1)
    row = np.arange(rings.shape[1])
    across = np.minimum(row, len(row) - row) / LAST_ROW
    side_uvs = BODY.uv(*np.meshgrid(np.linspace(0, 1, len(rings)), across, indexing="ij"))
    return loft(rings, side_uvs, _face_uvs(TAIL, body), _face_uvs(NOSE, body))


def _half_rings(body: Body, lines: Lines) -> Array:
    """Return the right half of each section, underside to roof: [S, 13, 3]."""
    w, low, belt = lines.half_width, lines.low, lines.belt
    side, above = belt - low, lines.roof - belt
    tumble = 0.22 * np.clip(above, 0, None) * (body.width / 2) / 0.9
    rail = 0.87 * w - np.clip(tumble, 0, 0.17 * w)
    crown = np.where(above < -0.02, 0.0, 0.035)
    points = [
        (0 * w, low), (0.78 * w, low), (0.96 * w, low + 0.04), (w, low + 0.25 * side), (w, low + 0.65 * side),
        (0.985 * w, belt - 0.05), (0.94 * w, belt - 0.005), (0.89 * w, belt + 0.02 * above),
        ((0.885 * w + rail) / 2, belt + 0.5 * above + 0.3 * crown), (rail, belt + 0.93 * above + 0.4 * crown),
        (rail * 0.93, belt + above + 0.55 * crown), (rail * 0.5, belt + above + 0.9 * crown),
        (0 * w, belt + above + crown),
    ]  # fmt: skip
    return np.stack([np.stack([x, y, lines.z], -1) for x, y in points], 1)


def _face_uvs(chart: Chart, body: Body) -> CapUvs:
    return lambda points: chart.uv(np.abs(points[:, 0]) / (body.width / 2), points[:, 1] / (body.roof + 0.1))


def _wheels(body: Body, lines: Lines) -> list[Part]:
    half_widths = {axle: float(np.interp(axle, lines.z, lines.half_width)) for axle in body.axles}
    return [
        _wheel(body.wheel, side, half_width * 0.995, axle)
        for axle, half_width in half_widths.items()
        for side in (-1, 1)
    ]


def _wheel(radius: float, side: int, reach: float, axle: float) -> Part:
    profile = np.array([(0.25, 0.03), (0.62, 0.02), (0.68, 0.0), (0.93, 0.0), (1.0, 0.05), (1.0, 0.2)])
    scale, depth = profile.T[..., None]
    angles = around(16)
    x = np.broadcast_to(side * reach - side * depth, (len(profile), 16))
    y, z = radius + radius * scale * np.sin(angles), axle + radius * scale * np.cos(angles)
    rings = np.stack([x, y, z], -1)
    disc = _disc_uvs(radius, axle)
    return loft(rings, disc(rings.reshape(-1, 3)).reshape(*x.shape, 2), disc, flat(DARK))


def _disc_uvs(r: float, axle: float) -> CapUvs:
    return lambda points: WHEEL.uv(0.5 + (points[:, 2] - axle) / r / 2, 0.5 - (points[:, 1] - r) / r / 2)


def _wells(body: Body, lines: Lines) -> list[Part]:
    """Fill the arches behind the wheels with darkness."""
    return [_well(body, lines, axle) for axle in body.axles]


def _well(body: Body, lines: Lines, axle: float) -> Part:
    reach = 1.1 * body.wheel
    lowest = float(np.interp(axle + np.array([-reach, 0, reach]), lines.z, lines.belt).min())
    top, bottom = min(2.1 * body.wheel, lowest - 0.09), body.floor - 0.02
    size = (0.72 * body.width, top - bottom, 2 * reach)
    return box((0, (top + bottom) / 2, axle), size, DARK, bevel=0.12)


def _mounted(body: Body, lines: Lines, draw: Draw) -> list[Part]:
    return [*_mirrors(body, lines), *_on_roof_or_tail(body, draw.between(0, 1))]


def _mirrors(body: Body, lines: Lines) -> list[Part]:
    w = float(np.interp(body.screen[0], lines.z, lines.half_width))
    z = min(body.screen[0] - 0.22, body.length / 2 - 0.3)
    y = float(np.interp(z, lines.z, lines.belt)) + 0.09
    return [box((side * (w + 0.05), y, z), (0.2, 0.14, 0.1), PAINT, bevel=0.035) for side in (-1, 1)]


def _on_roof_or_tail(body: Body, chance: float) -> list[Part]:
    middle = (body.screen[1] + max(body.rear[0], -body.length / 2)) / 2
    if body.kind == "sports" and chance < 0.7:
        return _spoiler(body)
    if body.kind == "suv" and chance < 0.6:
        return [box((s * 0.6, body.roof + 0.07, middle), (0.06, 0.06, 1.6), DARK) for s in (-1, 1)]
    if body.kind == "sedan" and chance < 0.3:
        return [box((0, body.roof + 0.1, middle + 0.1), (0.5, 0.17, 0.2), SIGN, bevel=0.04)]
    if body.kind == "bus":
        return [box((0, body.roof + 0.08, -0.1 * body.length), (1.2, 0.24, 1.8), PAINT, bevel=0.06)]
    return []


def _spoiler(body: Body) -> list[Part]:
    z = -body.length / 2 + 0.2
    y = body.belt + 0.24
    wing = box((0, y, z), (0.84 * body.width, 0.05, 0.26), PAINT, bevel=0.02)
    return [wing, *(box((s * 0.5, y - 0.16, z), (0.06, 0.32, 0.12), DARK, bevel=0.01) for s in (-1, 1))]
