"""Models as people really have them: each writes one into a folder of models, and says how it must end.

``(reason, words)``: quarantined with that reason, its message holds the words; ``("", words)``: rendered, and its facts
hold the words; ``("left-out", words)``: not tried, listed with the words.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SYNSET = "02958343"
CORNERS = [(x, y, z) for x in (-0.2, 0.2) for y in (-0.1, 0.15) for z in (-0.5, 0.4)]
FACES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
MTL = "newmtl body\nKd 0.8 0.3 0.2\nmap_Kd {}\n"


def box(corners=CORNERS, *, faces=FACES, library: str = "model.mtl", material: str = "body") -> str:
    lines = [f"mtllib {library}", *(f"v {x!r} {y!r} {z!r}" for x, y, z in corners)]
    lines += ["vt 0 0", "vt 1 0", "vt 1 1", "vt 0 1", f"usemtl {material}"]
    lines += ["f " + " ".join(f"{v + 1}/{t % 4 + 1}" for t, v in enumerate(face)) for face in faces]
    return "\n".join(lines) + "\n"


def texture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(60, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def good(
    folder: Path, *, obj: str | bytes | None = None, mtl: str | bytes = MTL.format("images/t.png")
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    texture(folder / "images" / "t.png")
    text = box() if obj is None else obj
    (folder / "model.obj").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "model.mtl").write_bytes(mtl if isinstance(mtl, bytes) else mtl.encode())


def missing_mtl(folder: Path) -> None:
    good(folder)
    (folder / "model.mtl").unlink()


def corrupt_texture(folder: Path) -> None:
    good(folder)
    (folder / "images" / "t.png").write_bytes(b"\x89PNG\r\n\x1a\nnot any more")


def texture_is_a_folder(folder: Path) -> None:
    good(folder, mtl=MTL.format("images"))


def absolute_texture(folder: Path) -> None:
    texture(folder / "elsewhere" / "paint.png")
    good(folder, mtl=MTL.format((folder / "elsewhere" / "paint.png").absolute()))


def windows_texture_beside(folder: Path) -> None:
    good(folder, mtl=MTL.format(r"C:\Users\me\textures\skin.png"))
    texture(folder / "skin.png")


def latin_names(folder: Path) -> None:
    good(
        folder,
        obj=box(material="k\xe4fer").encode("latin-1"),
        mtl=MTL.replace("body", "k\xe4fer").format("gr\xfcn.png").encode("latin-1"),
    )
    texture(folder / "plain.png")
    (folder / "plain.png").rename(Path(folder / "x").with_name("gr\udcfcn.png"))


def ngon(folder: Path) -> None:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = [(0.4 * float(np.cos(a)), y, 0.4 * float(np.sin(a))) for y in (-0.1, 0.1) for a in angles]
    sides = [(i, (i + 1) % 40, 40 + (i + 1) % 40, 40 + i) for i in range(40)]
    good(folder, obj=box(ring, faces=[tuple(range(39, -1, -1)), tuple(range(40, 80)), *sides]))


def million_faces(folder: Path) -> None:
    n = 708  # 707 x 707 squares of two triangles
    xs, ys = np.meshgrid(np.linspace(-0.5, 0.5, n), np.linspace(-0.5, 0.5, n))
    heights = 0.1 * np.sin(9 * xs) * np.cos(7 * ys)
    first = (np.arange(n - 1)[:, None] * n + np.arange(n - 1) + 1).ravel()
    tris = np.concatenate(
        [np.stack([first, first + n, first + 1], 1), np.stack([first + 1, first + n, first + n + 1], 1)]
    )
    folder.mkdir(parents=True)
    with (folder / "model.obj").open("w") as file:
        np.savetxt(file, np.stack([xs.ravel(), heights.ravel(), ys.ravel()], 1), fmt="v %.4f %.4f %.4f")
        np.savetxt(file, tris, fmt="f %d %d %d")


def truncated_glb(folder: Path) -> None:
    text = json.dumps({"asset": {"version": "2.0"}, "meshes": [{"primitives": []}]}).encode()
    folder.mkdir(parents=True)
    head = b"glTF" + struct.pack("<II", 2, 4000) + struct.pack("<II", len(text), 0x4E4F534A)
    (folder / "model.glb").write_bytes(head + text)


def vertex_colours(folder: Path) -> None:
    folder.mkdir(parents=True)
    kinds = [f"property float {axis}" for axis in "xyz"] + [
        f"property uchar {c}" for c in ("red", "green", "blue")
    ]
    head = ["ply", "format ascii 1.0", "element vertex 8", *kinds]
    head += ["element face 6", "property list uchar int vertex_indices", "end_header"]
    rows = [f"{x} {y} {z} 10 200 30" for x, y, z in CORNERS]
    rows += ["4 " + " ".join(map(str, face)) for face in FACES]
    (folder / "model.ply").write_text("\n".join([*head, *rows]) + "\n")


def scaled(factor: float) -> Callable[[Path], None]:
    return lambda folder: good(folder, obj=box([(x * factor, y * factor, z * factor) for x, y, z in CORNERS]))


def text(obj: str | bytes) -> Callable[[Path], None]:
    return lambda folder: good(folder, obj=obj)


def linked(target: str) -> Callable[[Path], None]:
    return lambda folder: folder.symlink_to(target)


Ending = tuple[str, str]
UGLY: dict[str, tuple[Callable[[Path], None], Ending]] = {
    "good": (good, ("", "")),
    "missing-mtl": (missing_mtl, ("missing-material", "model.mtl, named by model.obj, cannot be read")),
    "missing-texture": (
        lambda folder: good(folder, mtl=MTL.format("images/gone.png")),
        ("missing-texture", "gone.png, named by model.obj, cannot be read"),
    ),
    "corrupt-texture": (corrupt_texture, ("missing-texture", "t.png, named by")),
    "texture-is-a-folder": (texture_is_a_folder, ("missing-texture", "images, named by")),
    "absolute-texture": (absolute_texture, ("", "")),
    "absolute-texture-gone": (
        lambda folder: good(folder, mtl=MTL.format("/nonexistent/wood.jpg")),
        ("missing-texture", "wood.jpg, named by"),
    ),
    "windows-texture": (windows_texture_beside, ("", "")),
    "windows-texture-gone": (
        lambda folder: good(folder, mtl=MTL.format(r"D:\stuff\lack.png")),
        ("missing-texture", "lack.png, named by"),
    ),
    "latin-names": (latin_names, ("", "")),
    "latin-texture-gone": (
        lambda folder: good(folder, mtl=MTL.format("caf\xe9.png").encode("latin-1")),
        ("missing-texture", "caf\\udce9.png, named by"),
    ),
    "endless-library": (
        text(box(library="x" * 300)),
        ("missing-material", "named by model.obj, cannot be read"),
    ),
    "nan-vertex": (
        text(box().replace("v 0.2 0.15 0.4", "v nan 0.15 0.4")),
        ("bad-vertices", "model.obj has the coordinate nan in line 9"),
    ),
    "no-faces": (text(box(faces=[])), ("no-geometry", "model.obj holds no faces")),
    "only-lines": (text(box(faces=[]) + "l 1 2\nl 2 3\n"), ("no-geometry", "holds no faces, only lines")),
    "huge": (scaled(1e7), ("", "")),
    "tiny": (scaled(1e-7), ("", "")),
    "outlier": (
        text(box([*CORNERS, (1e30, 0.0, 0.0)], faces=[*FACES, (0, 1, 8)])),
        ("blank", "nothing is visible"),
    ),
    "all-in-one-point": (text(box([(1.0, 1.0, 1.0)] * 8)), ("no-extent", "longest side")),
    "flat": (text(box([(x, 0.0, z) for x, _, z in CORNERS], faces=[(0, 1, 5, 4)])), ("", "")),
    "broken-faces": (
        text(box().replace("f 1/1", "f one/1").replace("f 5/1", "f ").replace("f 3/1", "f ???")),
        ("broken-faces", "of 6 faces of model.obj are broken; the first is line 15"),
    ),
    "faces-of-nothing": (
        text(box(faces=[*FACES, (90, 91, 92), (93, 94, 95)])),
        ("broken-faces", "2 of 8 faces of model.obj are broken; they name vertices that are not there"),
    ),
    "html": (text("<!doctype html><title>404</title>"), ("not-a-model", "no OBJ file")),
    "binary": (text(bytes(range(256)) * 9), ("not-a-model", "is no text")),
    "empty": (text(""), ("empty-file", "model.obj is empty")),
    "cut-off": (truncated_glb, ("truncated", "model.glb is cut off")),
    "ngon": (ngon, ("", "")),
    "vertex-colours": (vertex_colours, ("", "")),
    "invisible": (
        lambda folder: good(folder, mtl=MTL.format("images/t.png") + "d 0\n"),
        ("blank", "nothing is visible"),
    ),
    'it\'s a "good" one; 50% (ok)': (good, ("", "")),
    "Käfer 日本": (good, ("", "")),
    "z-link-to-good": (linked("good"), ("left-out", "is a link to 02958343/good, which is rendered")),
    "z-link-to-itself": (linked("z-link-to-itself"), ("left-out", "is a link that leads nowhere")),
    "z-link-up": (linked(".."), ("left-out", "is a link to a folder above it")),
    "no-model": (lambda folder: texture(folder / "images" / "t.png"), ("left-out", "holds no model")),
    "latin-\udce9": (good, ("left-out", "its name is not UTF-8")),
}
LARGE: dict[str, tuple[Callable[[Path], None], Ending]] = {"million-faces": (million_faces, ("", ""))}


def write(models: Path, names: dict[str, tuple[Callable[[Path], None], Ending]] = UGLY) -> dict[str, Ending]:
    """Write the models, "good" in two synsets; return how each must end, by its name as lists have it."""
    endings = {}
    (models / SYNSET).mkdir(parents=True, exist_ok=True)
    for name, (make, ending) in names.items():
        make(models / SYNSET / name)
        endings[name.encode(errors="backslashreplace").decode()] = ending
    good(models / "03001627" / "good")
    return endings
