"""What people look at first: a contact sheet, a matrix of interpolations, a page that leads to every file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from get3d_cluster.export.pictures import contact_sheet, over_background, turntable_gif, write_png
from get3d_cluster.storage.local import write_atomic

COLUMNS = 6
"""Shapes in a row of the contact sheet."""
MOST_ON_SHEET = 60
MOST_ON_PAGE = 500
MATRIX_FPS = 6.0

Pixels = NDArray[np.uint8]


class Gallery:
    """Lays out the pictures below ``out``."""

    def __init__(self, out: Path, title: str, view_px: int) -> None:
        self._out = out
        self._title = title
        self._view_px = view_px

    def write_sheet(self, names: Sequence[str]) -> dict[str, str]:
        """Lay the pictures of the first shapes out on one sheet, colours above geometry; none: there is no sheet."""
        if not names:
            return {}
        shown = names[:MOST_ON_SHEET]
        columns = min(COLUMNS, len(shown))
        num_rows = -(-len(shown) // columns)
        pairs = np.stack([_split(self._picture(name, 2)) for name in shown])
        blank = np.broadcast_to(_blank(self._view_px, 1), (2, self._view_px, self._view_px, 3))
        padded = np.stack([*pairs, *[blank] * (num_rows * columns - len(shown))])  # [R C, 2, H, W, 3]
        cells = padded.reshape(num_rows, columns, 2, *padded.shape[2:]).swapaxes(1, 2)
        captions = [
            text for row in range(num_rows) for text in (f"{shown[row * columns]} and following", "geometry")
        ]
        more = f", the first {len(shown)} here" if len(names) > len(shown) else ""
        sheet = contact_sheet(
            cells.reshape(2 * num_rows, columns, *cells.shape[3:]),
            title=self._title + more,
            row_captions=captions,
        )
        write_png(self._out / "sheet.png", sheet)
        return {"sheet": "sheet.png"}

    def write_matrix(
        self, cells: Sequence[Sequence[str]], numbers: Sequence[int], size: int
    ) -> dict[str, str]:
        """Lay the cells out, a row for each geometry, and let three ways through them move.

        ``cells`` are names by row and column, ``numbers`` the shapes on the way, ``size`` the side of the pictures.
        """
        pictures = np.stack([np.stack([self._picture(name, 1, size) for name in row]) for row in cells])
        path = ", ".join(map(str, numbers))
        sheet = contact_sheet(pictures, title=f"down: geometry of shapes {path}; across: their texture")
        write_png(self._out / "matrix.png", sheet)
        files = {"matrix": "matrix.png"}
        if len(cells) > len(numbers):
            ways = {
                "geometry": pictures[:, 0],
                "texture": pictures[0],
                "both": pictures.diagonal().transpose(3, 0, 1, 2),
            }
            for way, frames in ways.items():
                files[f"matrix_{way}"] = f"matrix-{way}.gif"
                there_and_back = np.concatenate([frames, frames[-2:0:-1]])
                turntable_gif(self._out / f"matrix-{way}.gif", there_and_back, fps=MATRIX_FPS)
        return files

    def write_page(self, index: Mapping[str, Any]) -> None:
        """Write index.html: needs nothing but the files beside it, and works without a network."""
        shown = [_Shape(each) for each in index["shapes"][:MOST_ON_PAGE]]
        page = jinja2.Environment(autoescape=True).from_string(_PAGE)
        text = page.render(
            title=self._title, index=index, shapes=shown, settings=_settings(index["made_from"])
        )
        write_atomic(self._out / "index.html", text.encode())

    def _picture(self, name: str, num_panels: int, size: int = 0) -> Pixels:  # [H, panels W, 3]
        """Read a picture; a shape without a surface has none."""
        path = self._out / f"{name}.views.png"
        if not path.is_file():
            return _blank(size or self._view_px, num_panels)
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))


class _Shape:
    """What the page says of a shape."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.name = str(facts["name"])
        self.why_empty = str(facts.get("empty", ""))
        self.picture = next((file for file in facts["files"] if file.endswith(".views.png")), "")
        self.turn = next((file for file in facts["files"] if file.endswith(".gif")), "")
        self.links = [file for file in facts["files"] if file != self.picture]
        self.told = "" if self.why_empty else _told(facts)


def _told(facts: Mapping[str, Any]) -> str:
    faces = f"{facts['num_faces']:,} faces"
    before = f" (of {facts['num_faces_before']:,})" if "num_faces_before" in facts else ""
    parts = "one piece" if facts["num_pieces"] == 1 else f"{facts['num_pieces']} pieces"
    closed = f"closed, volume {facts['volume']:.4f}" if facts["closed"] else "open"
    return f"{faces}{before}, {parts}, {closed}"


def _settings(made_from: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in made_from.items() if value not in ("", 0))


def _split(strip: Pixels) -> Pixels:  # [H, 2 W, 3] -> [2, H, W, 3]
    return np.stack(np.split(strip, 2, axis=1))


def _blank(size: int, num_panels: int) -> Pixels:
    return over_background(np.zeros((size, size * num_panels, 4)))


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light dark }
  body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; max-width: 90rem }
  h1 { font-size: 1.4rem; margin: 0 }
  p { margin: .3rem 0; opacity: .75; overflow-wrap: anywhere }
  ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; padding: 0;
       list-style: none; margin: 1.5rem 0 }
  li { border: 1px solid #8885; border-radius: .5rem; overflow: hidden }
  li div { padding: .5rem .75rem .75rem; font-size: .85rem }
  img { display: block; width: 100%; background: #cdd0d4 }
  figure { margin: 1.5rem 0 } figure img { width: auto; max-width: 100% }
  .ways { display: flex; flex-wrap: wrap; gap: 1rem } .ways figure { margin: 0 }
  a { margin-right: .5rem; white-space: nowrap }
</style>
<h1>{{ title }}</h1>
<p>{{ settings }}</p>
{% if index.num_empty %}<p><b>{{ index.num_empty }} of {{ index.num_shapes }} shapes have no surface.</b></p>{% endif %}
<p><a href="index.json">index.json</a>{% if index.sheet %}<a href="{{ index.sheet }}">sheet.png</a>{% endif %}
{% if not index.mp4 %}No MP4: ffmpeg was not found, or not wanted.{% endif %}</p>
{% if index.matrix %}<figure><img src="{{ index.matrix }}" alt="matrix of geometries and textures"></figure>{% endif %}
<div class="ways">{% for way in ("geometry", "texture", "both") if index["matrix_" ~ way] %}
<figure><img src="{{ index["matrix_" ~ way] }}" alt="{{ way }}"><figcaption>{{ way }}</figcaption></figure>
{% endfor %}</div>
<ul>
{% for shape in shapes %}
<li>{% if shape.picture %}<img loading="lazy" src="{{ shape.turn or shape.picture }}" alt="{{ shape.name }}">{% endif %}
<div><b>{{ shape.name }}</b><br>{{ shape.told or shape.why_empty }}<br>
{% for link in shape.links %}<a href="{{ link }}" download>{{ link.removeprefix(shape.name ~ ".") }}</a>{% endfor %}
</div></li>
{% endfor %}
</ul>
{% if index.num_shapes > shapes|length %}
<p>The first {{ shapes|length }} of {{ index.num_shapes }} shapes; index.json names all.</p>
{% endif %}
</html>
"""
