"""A model with much in it, for measurements: many parts, fine textures, metal, glass; drawn from a fixed seed."""

from pathlib import Path

import numpy as np
from PIL import Image

MATERIALS = (
    "newmtl paint\nKd 0.7 0.7 0.7\nKs 0.4 0.4 0.4\nNs 120\nmap_Kd images/fine.png\n",
    "newmtl cloth\nKd 0.9 0.9 0.9\nmap_Kd images/weave.png\n",
    "newmtl glass\nKd 0.3 0.35 0.4\nKs 0.9 0.9 0.9\nNs 300\nd 0.35\n",
    "newmtl metal\nKd 0.5 0.5 0.55\nKs 0.9 0.9 0.9\nNs 200\n",
    *(
        f"newmtl plain{index}\nKd {0.1 + 0.12 * index:.2f} {0.8 - 0.1 * index:.2f} 0.4\n"
        for index in range(6)
    ),
)
NAMES = [each.split()[1] for each in MATERIALS]
NUM_PARTS = 240


def write(folder: Path) -> Path:
    """Write the model; return its OBJ file: 121,440 triangles in 240 parts."""
    rng = np.random.Generator(np.random.PCG64(5))
    (folder / "images").mkdir(parents=True)
    for name, cells in (("fine", 256), ("weave", 128)):
        noise = rng.integers(30, 255, (cells, cells, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((1024, 1024), Image.Resampling.NEAREST).save(
            folder / "images" / f"{name}.png"
        )
    (folder / "model.mtl").write_text("\n".join(MATERIALS))
    lines, offset = ["mtllib model.mtl"], 0
    parts = [_part(rng, part) for part in range(NUM_PARTS)]
    everything = np.concatenate([verts for verts, _, _ in parts])
    middle = (everything.min(axis=0) + everything.max(axis=0)) / 2  # as ShapeNet's models are: centred
    for part, (verts, coordinates, faces) in enumerate(parts):
        lines += [f"o part{part}", f"usemtl {NAMES[part % len(NAMES)]}"]
        lines += [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in verts - middle]
        lines += [f"vt {u:.5f} {v:.5f}" for u, v in coordinates]
        lines += ["f " + " ".join(f"{v}/{v}" for v in face) for face in faces + offset + 1]
        offset += len(verts)
    path = folder / "model.obj"
    path.write_text("\n".join(lines) + "\n")
    return path


def _part(rng: np.random.Generator, part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return vertices [V, 3], texture coordinates [V, 2] and triangles [F, 3] of a bumpy superellipsoid."""
    rows, columns = 12, 24
    u, v = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
    around, above = 2 * np.pi * u, np.pi * (v - 0.5)
    power = rng.choice([0.3, 0.6, 1.0])
    x = _rounded(np.cos(above), power) * _rounded(np.cos(around), power)
    y = _rounded(np.sin(above), power)
    z = _rounded(np.cos(above), power) * _rounded(np.sin(around), power)
    place = rng.uniform([-0.17, -0.14, -0.43], [0.17, 0.14, 0.43])
    size = rng.uniform(0.012, 0.055, 3) * (3 if part < 8 else 1)
    verts = np.stack([x, y, z], -1).reshape(-1, 3) * size + place
    coordinates = 2 * np.stack([u, v], -1).reshape(-1, 2)
    first = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    upper = np.stack([first, first + columns, first + 1], -1)
    lower = np.stack([first + 1, first + columns, first + columns + 1], -1)
    return verts, coordinates, np.concatenate([upper, lower])


def _rounded(values: np.ndarray, power: float) -> np.ndarray:
    return np.sign(values) * np.abs(values) ** power
