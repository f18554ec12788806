"""A render worker without Blender: speaks docs/blender_worker.md and draws a disc. Misbehaves by the model's name.

crash, hang, truncate: always; crash-once: the first time; slow: takes a while; empty: refused;
edge, blank, magenta, black: fails that gate.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image


def disc(request: dict, resolution: int, model: str) -> np.ndarray:
    ys, xs = np.mgrid[:resolution, :resolution] / resolution - 0.5
    x, y, z = request["position"]
    radius = 0.6 if model.startswith("edge") else 0.2 + 0.05 * z
    inside = (xs - 0.05 * x) ** 2 + (ys - 0.05 * y) ** 2 < radius**2
    digest = hashlib.sha256(f"{model} {request['seed']}".encode()).digest()
    pixels = np.zeros((resolution, resolution, 4), np.uint8)
    pixels[..., :3] = [
        128 + digest[i] // 2 for i in range(3)
    ]  # colour where nothing is seen, as Blender leaves it
    if model.startswith("magenta"):
        pixels[..., :3] = (200, 10, 201)
    if model.startswith("black"):
        pixels[..., :3] = 0
    pixels[..., 3] = 255 * inside * (not model.startswith("blank"))
    return pixels


def render(request: dict, model: str, folder: Path, resolution: int) -> None:
    if model.startswith("crash-once"):
        if not (folder / "crashed").exists():
            (folder / "crashed").touch()
            os._exit(139)
    elif model.startswith("crash"):
        os._exit(139)
    if model.startswith("hang"):
        time.sleep(600)
    if model.startswith("slow"):
        time.sleep(0.05)
    out = Path(request["out"])
    Image.fromarray(disc(request, resolution, model)).save(out)
    if model.startswith("truncate"):
        out.write_bytes(out.read_bytes()[:60])


def main(replies_to: int) -> None:
    settings: dict = {}
    folder = Path()
    with os.fdopen(replies_to, "w") as replies:
        for line in sys.stdin:
            request = json.loads(line)
            op, reply = request["op"], {"ok": True}
            if op == "hello":
                reply |= {"protocol": 2, "renderer": "fake", "version": "1", "build": "", "pid": os.getpid()}
                reply |= {"cpu": "fake"}
            elif op == "configure":
                settings = request
                reply |= {"device": "CPU", "device_names": []}
            elif op == "load":
                folder = Path(request["path"]).parent
                print("loading", folder.name, flush=True)
                reply |= {
                    "tris": 1,
                    "faces": 1,
                    "objects": 1,
                    "materials": 0,
                    "bbox": [[0, 0, 0], [1, 1, 1]],
                    "missing_textures": [],
                }
                if folder.name.startswith("empty"):
                    reply = {"ok": False, "code": "no-geometry", "message": "no faces in Blender"}
            elif op == "render":
                render(request, folder.name, folder, settings["resolution"])
            replies.write(json.dumps(reply) + "\n")
            replies.flush()
            if op == "quit":
                return


if __name__ == "__main__":
    main(int(sys.argv[sys.argv.index("--") + 1]))
