"""GET3D's data rendering as it is described, for comparison: run by a Python that has bpy, with one JSON file.

Written from a description of the algorithm, not from its code: a fresh Blender for each object, the factory scene with
its lamp, one huge area light, 32 samples, Blender's default denoiser, one still render after the other. The poses are
given instead of drawn, so that images can be compared; so may be the number of samples, for a converged reference.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

import bpy


def main(job: dict) -> None:
    scene = set_up(job)
    load(job["path"], job["size"])
    arm = camera_arm(scene)
    seconds = []
    for number, (rotation, elevation) in enumerate(job["poses"]):
        arm.rotation_euler = (math.radians(elevation), 0.0, math.radians(rotation))
        scene.render.filepath = str(Path(job["out"]) / f"{number:03d}.png")
        begun, begun_cpu = time.monotonic(), time.process_time()
        bpy.ops.render.render(write_still=True)
        seconds.append((time.monotonic() - begun, time.process_time() - begun_cpu))
    (Path(job["out"]) / "seconds.json").write_text(json.dumps(seconds))


def set_up(job: dict) -> bpy.types.Scene:
    bpy.ops.wm.read_factory_settings()
    scene = bpy.context.scene
    bpy.data.objects.remove(bpy.data.objects["Cube"], do_unlink=True)
    bpy.data.objects.remove(bpy.data.objects["Camera"], do_unlink=True)
    render, cycles = scene.render, scene.cycles
    render.engine = "CYCLES"
    render.resolution_x = render.resolution_y = job["resolution"]
    render.film_transparent = True
    render.threads_mode, render.threads = "FIXED", job["threads"]
    render.image_settings.file_format, render.image_settings.color_mode = "PNG", "RGBA"
    render.dither_intensity = job["dither"]
    cycles.device, cycles.samples, cycles.seed = "CPU", job["samples"], job["seed"]
    cycles.use_adaptive_sampling = False  # as before Blender 3.0
    cycles.use_denoising = job["denoise"]  # with Blender's own defaults
    cycles.filter_width = 0.01
    cycles.diffuse_bounces = cycles.glossy_bounces = 1
    cycles.transparent_max_bounces = cycles.transmission_bounces = 3
    scene.view_settings.view_transform, scene.view_settings.look = (
        "Filmic",
        "None",
    )  # the default before Blender 4.0
    bpy.ops.object.light_add(type="AREA", location=(0, 0, 0.5))
    light = bpy.context.object
    light.data.energy = 30000
    light.scale = (100, 100, 100)
    return scene


def load(path: str, size: float) -> None:
    bpy.ops.object.select_all(action="DESELECT")
    bpy.ops.wm.obj_import(
        filepath=path, forward_axis="NEGATIVE_Z", up_axis="Y", use_split_objects=False, use_split_groups=False
    )
    body = bpy.context.selected_objects[0]
    body.scale *= size / max(body.dimensions)
    bpy.context.view_layer.update()


def camera_arm(scene: bpy.types.Scene) -> bpy.types.Object:
    """Return the empty around which the camera turns, 1.2 away from it and looking at it."""
    arm = bpy.data.objects.new("arm", None)
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.data.lens, camera.data.sensor_width = 35, 32
    camera.location, camera.parent = (0, 1.2, 0), arm
    look = camera.constraints.new("TRACK_TO")
    look.target, look.track_axis, look.up_axis = arm, "TRACK_NEGATIVE_Z", "UP_Y"
    for each in (arm, camera):
        scene.collection.objects.link(each)
    scene.camera = camera
    return arm


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
    sys.stdout.flush()
    os._exit(0)
