"""The program that runs inside Blender: loads one model at a time and renders views of it on request.

JSON lines in on stdin and out on a file descriptor of its own; the protocol is in docs/blender_worker.md. It decides
nothing: where the camera stands, which lights burn, which seed a view has and what counts as a good image is said in
each request or judged by the caller. Standard library and Blender only, so that it runs in Blender's own Python.

Licence of this file: Apache-2.0, which is compatible with GPL-3.0-or-later. Running it combines it with Blender (bpy),
which is GPL-3.0: whoever distributes that combination does so under the GPL. Nothing else in this project imports bpy,
and nothing imports this file; a program without Blender may speak the same protocol.
SPDX-License-Identifier: Apache-2.0
"""

import ctypes
import gc
import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROTOCOL = 1
PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""
CROP_MARGIN_PX = 2

Request = dict[str, Any]
Reply = dict[str, Any]


class RefusedError(Exception):
    """A request that cannot be met; ``code`` is one word for the caller, the message is for a person."""

    def __init__(self, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.code = code
        self.more = more


class Worker:
    """One Blender scene: configured once, then one object after the other."""

    def __init__(self) -> None:
        self.bpy: Any = None
        self.settings: Request = {}
        self.corners: list[Any] = []
        """Corners of the loaded object's box in world space; empty while nothing is loaded."""

    def hello(self, _request: Request) -> Reply:
        self.bpy = _import_blender()
        app = self.bpy.app
        return {
            "protocol": PROTOCOL,
            "renderer": "blender",
            "version": app.version_string,
            "build": app.build_hash.decode(),
            "machine": platform.machine(),
            "devices": ["CPU"],
            "pid": os.getpid(),
        }

    def configure(self, request: Request) -> Reply:
        settings = {key: value for key, value in request.items() if key != "op"}
        self.settings = settings
        self.unload({})
        canonical = json.dumps(settings, sort_keys=True).encode()
        return {"settings": settings, "digest": hashlib.sha256(canonical).hexdigest()[:16]}

    def load(self, request: Request) -> Reply:
        path = Path(request["obj"])
        source = _read_source(path)
        self.unload({})
        self.bpy.ops.wm.obj_import(filepath=str(path), forward_axis="NEGATIVE_Z", up_axis="Y")
        meshes = [each for each in self.bpy.context.scene.objects if each.type == "MESH"]
        tris = sum(_num_triangles(each.data) for each in meshes)
        if not tris:
            raise RefusedError("no-geometry", f"{path.name} holds no faces")
        box = self._normalise(meshes, request)
        images = [image for image in self.bpy.data.images if image.source == "FILE"]
        materials = [slot for each in meshes for slot in each.data.materials if slot]
        return {
            "tris": tris,
            "objects": len(meshes),
            "materials": len(set(materials)),
            "bbox": _to_obj_axes(*box),
            "warnings": _source_warnings(path, source) + _texture_warnings(images),
        }

    def render(self, request: Request) -> Reply:
        if not self.corners:
            raise RefusedError("bad-request", "render before load")
        scene = self.bpy.context.scene
        scene.camera.location = request["position"]
        scene.camera.rotation_quaternion = request["quaternion"]
        scene.cycles.seed = request["seed"]
        scene.render.filepath = request["out"]
        if self.settings["crop"]:
            self._crop(scene)
        started = time.monotonic()
        self.bpy.ops.render.render(write_still=True)
        return {"out": request["out"], "seconds": time.monotonic() - started}

    def unload(self, _request: Request) -> Reply:
        # read_homefile and not read_factory_settings: the latter resets the preferences too. Render data kept
        # between views belongs to one object; a fresh file drops it, which keeps memory flat over many objects.
        self.bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
        self.corners = []
        gc.collect()
        if self.settings:
            self._set_up()
        return {}

    def _normalise(self, meshes: list[Any], request: Request) -> tuple[Any, Any]:
        from mathutils import Matrix, Vector  # exists inside Blender only

        self.bpy.context.view_layer.update()
        corners = [each.matrix_world @ Vector(corner) for each in meshes for corner in each.bound_box]
        low = Vector([min(corner[axis] for corner in corners) for axis in range(3)])
        high = Vector([max(corner[axis] for corner in corners) for axis in range(3)])
        longest = max(high - low)
        if not (math.isfinite(longest) and longest > 0):
            raise RefusedError("no-extent", f"the longest side of the object is {longest}")
        center = (low + high) / 2 if request["center"] else Vector((0, 0, 0))
        scale = request["longest_side"] / longest
        into_view = Matrix.Scale(scale, 4) @ Matrix.Translation(-center)
        for each in meshes:
            each.matrix_world = into_view @ each.matrix_world
        ends = (into_view @ low, into_view @ high)
        self.corners = [Vector((a.x, b.y, c.z)) for a in ends for b in ends for c in ends]
        return low, high

    def _crop(self, scene: Any) -> None:
        """Restrict the render to the pixels that the object's box covers: the rest is empty anyway."""
        self.bpy.context.view_layer.update()
        to_camera = scene.camera.matrix_world.inverted()
        seen = [to_camera @ corner for corner in self.corners]
        scene.render.use_border = all(corner.z < 0 for corner in seen)  # the camera looks along its -Z
        if not scene.render.use_border:
            return
        lens = self.settings["lens_mm"] / self.settings["sensor_mm"]
        margin = (CROP_MARGIN_PX + self.settings["filter_width_px"]) / self.settings["resolution"]
        across = [0.5 - lens * corner.x / corner.z for corner in seen]
        upward = [0.5 - lens * corner.y / corner.z for corner in seen]
        scene.render.border_min_x, scene.render.border_max_x = (
            max(0.0, min(across) - margin),
            min(1.0, max(across) + margin),
        )
        scene.render.border_min_y, scene.render.border_max_y = (
            max(0.0, min(upward) - margin),
            min(1.0, max(upward) + margin),
        )

    def _set_up(self) -> None:
        settings, scene = self.settings, self.bpy.context.scene
        _set_output(scene, settings)
        _set_sampling(scene, settings)
        _set_colours(scene, settings)
        self._add_camera(scene, settings)
        self._set_world(scene, settings["world"])
        for light in settings["lights"]:
            self._add_light(scene, light)

    def _add_camera(self, scene: Any, settings: Request) -> None:
        camera = self.bpy.data.cameras.new("camera")
        camera.lens, camera.sensor_width = settings["lens_mm"], settings["sensor_mm"]
        camera.clip_start, camera.clip_end = 0.1, 100.0
        scene.camera = self.bpy.data.objects.new("camera", camera)
        scene.camera.rotation_mode = "QUATERNION"
        scene.collection.objects.link(scene.camera)

    def _set_world(self, scene: Any, colour: list[float]) -> None:
        scene.world = self.bpy.data.worlds.new("world")
        scene.world.use_nodes = True
        scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (*colour, 1.0)

    def _add_light(self, scene: Any, light: Request) -> None:
        from mathutils import Vector

        data = self.bpy.data.lights.new("light", light["type"].upper())
        data.energy, data.color = light["energy"], light.get("colour", (1.0, 1.0, 1.0))
        if data.type == "AREA":
            data.size = light["size_m"]
        elif data.type == "POINT":
            data.shadow_soft_size = light["size_m"]
        else:
            data.angle = light["angle_rad"]
        lamp = self.bpy.data.objects.new("light", data)
        lamp.location = light["position"]
        aim = Vector(light["towards"]) - Vector(light["position"])
        lamp.rotation_mode = "QUATERNION"
        lamp.rotation_quaternion = aim.to_track_quat("-Z", "Y")
        scene.collection.objects.link(lamp)


def _set_output(scene: Any, settings: Request) -> None:
    render = scene.render
    render.engine = "CYCLES"
    render.resolution_x = render.resolution_y = settings["resolution"]
    render.resolution_percentage = 100
    render.film_transparent = True
    render.use_persistent_data = True
    render.use_compositing = render.use_sequencer = False
    render.threads_mode, render.threads = "FIXED", settings["threads"]  # AUTO ignores the CPUs we were given
    render.dither_intensity = 0.0
    image = render.image_settings
    image.file_format, image.color_mode, image.color_depth = "PNG", "RGBA", "8"
    image.compression = 15


def _set_sampling(scene: Any, settings: Request) -> None:
    cycles, bounces = scene.cycles, settings["bounces"]
    cycles.device = "CPU"
    cycles.samples = settings["samples"]
    cycles.use_adaptive_sampling = settings["adaptive_threshold"] > 0
    cycles.adaptive_threshold = settings["adaptive_threshold"]
    cycles.adaptive_min_samples = settings["min_samples"]
    cycles.use_animated_seed = False
    cycles.pixel_filter_type = "BLACKMAN_HARRIS"
    cycles.filter_width = settings["filter_width_px"]
    cycles.max_bounces = bounces["total"]
    cycles.diffuse_bounces, cycles.glossy_bounces = bounces["diffuse"], bounces["glossy"]
    cycles.transmission_bounces, cycles.transparent_max_bounces = (
        bounces["transmission"],
        bounces["transparent"],
    )
    cycles.use_denoising = settings["denoise"] != "none"
    if cycles.use_denoising:
        cycles.denoiser = "OPENIMAGEDENOISE"
        cycles.denoising_input_passes = "RGB_ALBEDO_NORMAL"
        cycles.denoising_prefilter = "NONE"
        cycles.denoising_quality = settings["denoise"].upper()


def _set_colours(scene: Any, settings: Request) -> None:
    scene.display_settings.display_device = "sRGB"
    view = scene.view_settings
    view.view_transform, view.look = settings["view_transform"], "None"
    view.exposure, view.gamma = 0.0, 1.0
    view.use_curve_mapping = False


def _import_blender() -> Any:
    try:
        import bpy  # the reply to hello says what is missing
    except ImportError as error:
        raise RefusedError("import", str(error), missing=_missing_libraries()) from error
    return bpy


def _missing_libraries() -> list[str]:
    """Return the names of the shared libraries that Blender needs and this machine lacks."""
    spec = importlib.util.find_spec("bpy")
    if spec is None or not spec.origin or not spec.origin.endswith(".so"):
        return []
    listed = subprocess.run(["ldd", spec.origin], capture_output=True, text=True, check=False).stdout
    return sorted({line.split()[0] for line in listed.splitlines() if line.endswith("not found")})


def _read_source(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RefusedError("unreadable", f"cannot read {path}: {error.strerror}") from error


def _source_warnings(path: Path, source: bytes) -> list[str]:
    """Return what the importer would pass over in silence: missing material files, numbers that are none."""
    names = [
        match[1].decode(errors="replace").strip()
        for match in re.finditer(rb"^mtllib[ \t]+(.+)", source, re.M)
    ]
    warnings = [f"missing-mtl {name}" for name in names if not (path.parent / name).is_file()]
    if not names and re.search(rb"^usemtl\b", source, re.M):
        warnings.append("missing-mtl: the file uses materials and names no library")
    if re.search(rb"^v[ \t].*(?:nan|inf)", source, re.M | re.I):
        warnings.append("bad-vertices: some coordinates are not finite")
    return warnings


def _texture_warnings(images: list[Any]) -> list[str]:
    # size is (0, 0) for a missing, empty or broken file; has_data is False for good images too.
    return sorted(f"missing-texture {Path(image.filepath).name}" for image in images if not all(image.size))


def _num_triangles(mesh: Any) -> int:
    mesh.calc_loop_triangles()
    return len(mesh.loop_triangles)


def _to_obj_axes(low: Any, high: Any) -> list[list[float]]:
    """Turn a box from Blender's axes (Z up) to those of the file (Y up): (x, y, z) to (x, z, -y)."""
    return [[low.x, low.z, -high.y], [high.x, high.z, -low.y]]


def _answer(operations: dict[str, Callable[[Request], Reply]], line: str) -> Reply:
    try:
        request = json.loads(line)
        return {"ok": True, **operations[request["op"]](request)}
    except RefusedError as error:
        return {"ok": False, "code": error.code, "message": str(error), **error.more}
    except (KeyError, ValueError, TypeError) as error:
        return {"ok": False, "code": "bad-request", "message": f"{type(error).__name__}: {error}"}
    except Exception as error:  # noqa: BLE001  Blender raises anything; the caller decides what follows
        return {"ok": False, "code": "failed", "message": f"{type(error).__name__}: {error}"}


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent goes, so that no orphan keeps rendering."""
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main(arguments: list[str]) -> None:
    """Serve requests until ``quit`` or the end of stdin. Arguments: the replies' descriptor, the parent's pid."""
    replies_to, parent = int(arguments[0]), int(arguments[1])
    _die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # notices are for the parent, which stops us when it is time
    worker = Worker()
    operations = {
        "hello": worker.hello,
        "configure": worker.configure,
        "load": worker.load,
        "render": worker.render,
        "unload": worker.unload,
        "quit": lambda _request: {},
    }
    with os.fdopen(replies_to, "w", encoding="utf-8") as replies:
        for line in sys.stdin:
            reply = _answer(operations, line)
            replies.write(json.dumps(reply) + "\n")
            replies.flush()
            if reply["ok"] and '"quit"' in line:
                break
    os._exit(0)  # Blender's own clean-up at exit may hang


if __name__ == "__main__":
    main(sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:])
