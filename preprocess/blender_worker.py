"""The program that runs inside Blender: loads one model at a time and renders views of it on request.

JSON lines in on stdin and out on a file descriptor of its own; the protocol is in docs/blender_worker.md. It decides
nothing: where the camera stands, which lights burn, which seed a view has and what counts as a good image is said in
each request or judged by the caller. Standard library and Blender only, so that it runs in Blender's own Python.

Licence of this file: Apache-2.0, which is compatible with GPL-3.0-or-later. Running it combines it with Blender (bpy),
which is GPL-3.0: whoever distributes that combination does so under the GPL. Nothing else in this project imports bpy,
and nothing imports this file; a program without Blender may speak the same protocol.
SPDX-License-Identifier: Apache-2.0
"""

import array
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

PROTOCOL = 2
PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""
CROP_MARGIN_PX = 2
GREY = (0.5, 0.5, 0.5, 1.0)
"""Stands in for a missing texture when asked to."""
CPU_KERNELS = ("avx512f", "avx2", "sse4_2")
"""What Cycles and its denoiser choose their kernels by: another one gives other bits."""
GPU_KINDS = {"cuda": ("CUDA",), "optix": ("OPTIX",), "gpu": ("OPTIX", "CUDA")}
"""Blender's names of what ``device`` asks for, the preferred first."""

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
        self.device = "CPU"
        self.corners: list[Any] = []
        """Corners of the loaded object's box in world space; empty while nothing is loaded."""
        self._own_objects: list[Any] = []

    def hello(self, _request: Request) -> Reply:
        self.bpy = _import_blender()
        app = self.bpy.app
        return {
            "protocol": PROTOCOL,
            "renderer": "blender",
            "version": app.version_string,
            "build": app.build_hash.decode(),
            "cpu": _cpu(),
            "pid": os.getpid(),
        }

    def configure(self, request: Request) -> Reply:
        settings = {key: value for key, value in request.items() if key != "op"}
        self.settings = settings
        self.device, names = self._choose_device(settings["device"], settings["gpus"])
        self.unload({})
        canonical = json.dumps(settings, sort_keys=True).encode()
        digest = hashlib.sha256(canonical).hexdigest()[:16]
        return {"settings": settings, "digest": digest, "device": self.device, "device_names": names}

    def load(self, request: Request) -> Reply:
        path = Path(request["path"])
        if not path.is_file():
            raise RefusedError("unreadable", f"there is no file {path}")
        self.unload({})
        self._import(path)
        meshes = [each for each in self.bpy.context.scene.objects if each.type == "MESH"]
        tris = sum(_num_triangles(each.data) for each in meshes)
        if not tris:
            raise RefusedError("no-geometry", f"{path.name} holds no faces that Blender can read")
        if not all(_is_finite(each.data) for each in meshes):
            raise RefusedError("bad-vertices", f"{path.name} has coordinates that are no numbers")
        box = self._normalise(meshes, request)
        missing = [image for image in self.bpy.data.images if image.source == "FILE" and _is_missing(image)]
        if self.settings["missing_texture"] == "grey":
            _paint_grey(missing)
        if path.suffix.lower() == ".ply":
            self._show_vertex_colours(meshes)
        return {
            "tris": tris,
            "faces": sum(len(each.data.polygons) for each in meshes),
            "objects": len(meshes),
            "materials": len({slot for each in meshes for slot in each.data.materials if slot}),
            "bbox": _to_obj_axes(*box),
            "missing_textures": sorted({_name_of(image) for image in missing}),
        }

    def render(self, request: Request) -> Reply:
        if not self.corners:
            raise RefusedError("bad-request", "render before load")
        scene = self.bpy.context.scene
        scene.camera.location = request["position"]
        scene.camera.rotation_quaternion = request["quaternion"]
        scene.cycles.samples = request.get("samples", self.settings["samples"])
        scene.cycles.adaptive_min_samples = request.get("min_samples", self.settings["min_samples"])
        scene.cycles.seed = request["seed"]
        scene.render.filepath = request["out"]
        if self.settings["crop"]:
            self._crop(scene)
        started = time.monotonic()
        self.bpy.ops.render.render(write_still=True)
        if request.get("passes"):
            self._write_passes(scene, request["passes"])
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

    def _choose_device(self, wanted: str, gpus: list[int] | None) -> tuple[str, list[str]]:
        """Switch on what Cycles computes with; return its kind and the names of the devices.

        Never falls back from GPU to CPU: that would be a hundred times slower without a word. The CPU is switched off
        beside GPUs: what it computes has other bits. Source: Blender's manual, Cycles render devices; bpy.types
        .AddonPreferences of Cycles (compute_device_type, refresh_devices, devices[].use).
        """
        if wanted == "cpu":
            return "CPU", []
        preferences = self.bpy.context.preferences.addons["cycles"].preferences
        for kind in GPU_KINDS[wanted]:
            try:
                preferences.compute_device_type = kind
            except TypeError:
                continue  # this Blender was built without it
            preferences.refresh_devices()
            found = [each for each in preferences.devices if each.type == kind]
            used = found if gpus is None else [found[index] for index in gpus if index < len(found)]
            if not used:
                continue
            for each in preferences.devices:
                each.use = any(each == other for other in used)
            return kind, [each.name for each in used]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
        which = "" if gpus is None else f" with number {gpus}"
        raise RefusedError(
            "no-gpu",
            f"Cycles finds no {' or '.join(GPU_KINDS[wanted])} device{which} (CUDA_VISIBLE_DEVICES={visible})",
        )

    def _import(self, path: Path) -> None:
        suffix = path.suffix.lower()
        if suffix in (".glb", ".gltf"):
            self.bpy.ops.import_scene.gltf(filepath=str(path))
        elif suffix == ".ply":
            self.bpy.ops.wm.ply_import(filepath=str(path), forward_axis="NEGATIVE_Z", up_axis="Y")
        else:
            # Split into objects, a model is slower to render; its faces are the same.
            whole = {"use_split_objects": False, "use_split_groups": False}
            self.bpy.ops.wm.obj_import(filepath=str(path), forward_axis="NEGATIVE_Z", up_axis="Y", **whole)
        own = self._own_objects
        for each in list(self.bpy.context.scene.objects):
            if each.type in ("LIGHT", "CAMERA") and each not in own:  # the views' light and camera are ours
                self.bpy.data.objects.remove(each, do_unlink=True)
            else:
                each.animation_data_clear()

    def _show_vertex_colours(self, meshes: list[Any]) -> None:
        """Give a mesh with colours at its vertices, and no material, a material that shows them."""
        for each in meshes:
            if each.data.materials or not each.data.color_attributes:
                continue
            material = self.bpy.data.materials.new("colours")
            material.use_nodes = True
            nodes, links = material.node_tree.nodes, material.node_tree.links
            source = nodes.new("ShaderNodeVertexColor")
            source.layer_name = each.data.color_attributes[0].name
            links.new(source.outputs["Color"], nodes["Principled BSDF"].inputs["Base Color"])
            each.data.materials.append(material)

    def _write_passes(self, scene: Any, out: str) -> None:
        image = scene.render.image_settings
        image.file_format, image.color_depth, image.exr_codec = "OPEN_EXR_MULTILAYER", "32", "NONE"
        try:
            self.bpy.data.images["Render Result"].save_render(out, scene=scene)
        finally:
            _set_file_format(image)

    def _normalise(self, meshes: list[Any], request: Request) -> tuple[Any, Any]:
        from mathutils import Matrix, Vector  # exists inside Blender only

        self.bpy.context.view_layer.update()
        corners = [each.matrix_world @ Vector(corner) for each in meshes for corner in each.bound_box]
        low = Vector([min(corner[axis] for corner in corners) for axis in range(3)])
        high = Vector([max(corner[axis] for corner in corners) for axis in range(3)])
        longest = max(high - low)
        if not (math.isfinite(longest) and longest > 0):
            raise RefusedError("no-extent", f"all its points are in one place: its longest side is {longest}")
        center = (low + high) / 2 if request["center"] else Vector((0, 0, 0))
        scale = request["longest_side"] / longest
        into_view = Matrix.Scale(scale, 4) @ Matrix.Translation(-center)
        worlds = [each.matrix_world.copy() for each in meshes]
        for each, world in zip(meshes, worlds, strict=True):
            each.parent = None  # or it would move with its parent, and then once more
            each.matrix_world = into_view @ world
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
        _set_sampling(scene, settings, self.device)
        _set_colours(scene, settings)
        self._add_camera(scene, settings)
        self._set_world(scene, settings["world"])
        for light in settings["lights"]:
            self._add_light(scene, light)
        layer = self.bpy.context.view_layer
        layer.use_pass_z = layer.use_pass_normal = settings["passes"]
        self._own_objects = list(scene.objects)

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
    _set_file_format(render.image_settings)


def _set_file_format(image: Any) -> None:
    image.file_format, image.color_mode, image.color_depth = "PNG", "RGBA", "8"
    image.compression = 15


def _set_sampling(scene: Any, settings: Request, device: str) -> None:
    cycles, bounces = scene.cycles, settings["bounces"]
    cycles.device = "CPU" if device == "CPU" else "GPU"
    cycles.samples = settings["samples"]
    cycles.use_adaptive_sampling = settings["adaptive_threshold"] > 0
    cycles.adaptive_threshold = settings["adaptive_threshold"]
    cycles.adaptive_min_samples = settings["min_samples"]
    cycles.use_light_tree = settings["light_tree"]
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
        cycles.denoising_prefilter = settings["denoise_prefilter"].upper()
        cycles.denoising_quality = settings["denoise"].upper()
        cycles.denoising_use_gpu = device != "CPU"


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


def _cpu() -> str:
    """Return the machine and the widest instructions that kernels are chosen by, such as ``x86_64 avx2``."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    flags = set(re.findall(r"\w+", "".join(re.findall(r"^flags.*$", text, re.M)[:1])))
    return " ".join([platform.machine(), *[name for name in CPU_KERNELS if name in flags][:1]])


def _is_missing(image: Any) -> bool:
    # size is (0, 0) for a missing, empty or broken file; has_data is False for good images too.
    return not all(image.size)


def _name_of(image: Any) -> str:
    return Path(image.filepath.replace("\\", "/")).name or str(image.name)


def _paint_grey(images: list[Any]) -> None:
    for image in images:
        image.source = "GENERATED"
        image.generated_width = image.generated_height = 1
        image.generated_color = GREY


def _is_finite(mesh: Any) -> bool:
    values = array.array("f", bytes(12 * len(mesh.vertices)))
    mesh.vertices.foreach_get("co", values)
    return math.isfinite(sum(values))


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
