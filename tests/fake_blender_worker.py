"""A render worker without Blender: speaks docs/blender_worker.md and draws a disc. Misbehaves by the model's name.

crash, hang, truncate, garble: always; crash-once: the first time; slow: takes a while; empty: refused; litter: leaves a
temporary file; edge, blank, magenta, black: fails that gate. Each view is counted in the model's file ``rendered``.
"""

import hashlib
import json
import os
import struct
import sys
import tempfile
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


def passes(resolution: int) -> bytes:
    """Return an OpenEXR file as Blender writes it: depth and normals of a plane that faces the camera."""
    names = [f"ViewLayer.{name}" for name in ("Depth.Z", "Normal.X", "Normal.Y", "Normal.Z")]
    channels = b"".join(name.encode() + b"\0" + struct.pack("<iIii", 2, 0, 1, 1) for name in names) + b"\0"
    window = struct.pack("<4i", 0, 0, resolution - 1, resolution - 1)
    attributes = {"channels": channels, "compression": b"\0", "dataWindow": window}
    head = struct.pack("<II", 20000630, 2)
    for name, value in attributes.items():
        head += name.encode() + b"\0kind\0" + struct.pack("<I", len(value)) + value
    values = np.repeat(np.array([1.2, 0, 0, 1], "<f4"), resolution).tobytes()
    lines = [struct.pack("<ii", y, len(values)) + values for y in range(resolution)]
    return head + b"\0" + bytes(8 * resolution) + b"".join(lines)


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
    if model.startswith("litter"):
        tempfile.mkstemp(prefix="litter-")
    out = Path(request["out"])
    Image.fromarray(disc(request, resolution, model)).save(out)
    if request.get("passes"):
        Path(request["passes"]).write_bytes(passes(resolution))
    with (folder / "rendered").open("a") as file:
        file.write(f"{out.name} {request['seed']} {os.getpid()}\n")
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
                reply |= {"device": request["device"].upper(), "device_names": []}
                if request["device"] == "optix":
                    reply = {"ok": False, "code": "no-gpu", "message": "Cycles finds no OPTIX device"}
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
                if folder.name.startswith("garble"):
                    replies.write("}{ not json\n")
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
