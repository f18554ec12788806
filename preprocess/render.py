"""Render models to images: one Blender process, each view judged, each model published whole.

A model gets two more tries after a crash, a hang or a damaged image, each in a fresh process; a model that is at fault
itself gets none, since rendering it again gives the same pixels. Then it is quarantined and the others go on.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from get3d_cluster.core.cameras import blender_position, quaternion
from get3d_cluster.errors import StorageError
from preprocess.blender import GIVEN_UP, Blender, RejectedError, WorkerFailedError
from preprocess.images import Tree, cameras_of, key, sampling_of, seed_of, worker_settings
from preprocess.passes import depth_words, encode_words, normal_words, read_exr
from preprocess.quality import Gates, Pixels, decode, defect_of, encode, without_hidden_colour
from preprocess.shapenet import LeftOut, ModelFile, look_again
from preprocess.sources import Source, first_bad_face, look_into, printable

NUM_RETRIES = 2
MODELS_PER_PROCESS = 300
"""Blender is restarted after so many: long-lived processes are reported to grow."""
LEAST_FREE_BYTES = 16_000_000
FACTS = ("tris", "objects", "materials", "bbox")
"""Fields of the reply to ``load`` that are kept."""
PASS_WORDS = {"depth": depth_words, "normal": normal_words}


class Ended(StrEnum):
    """What became of a model."""

    FINISHED = "finished"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What one Blender process may use, and how long."""

    threads: int
    timeout_s: float
    """Of loading a model, and of rendering a view."""
    device: Literal["cpu", "gpu", "cuda", "optix"] = "cpu"
    """"gpu" is OptiX, or CUDA if there is no OptiX."""
    gpus: tuple[int, ...] | None = None
    """Numbers of the GPUs among those that can be seen; None means all of them."""


class Renderer:
    """Renders claimed models view by view with one Blender process, which it starts when there is something to do."""

    def __init__(self, tree: Tree, blender: Blender, *, gates: Gates, machine: Machine) -> None:
        self.tree = tree
        self.blender = blender
        self.gates = gates
        self.machine = machine
        self.last: dict[str, Any] = {}
        """Why the last model was given up."""
        self._on: dict[str, Any] = {}
        """What decides bits beside the settings: instructions of the CPU, and the GPUs."""
        self._loaded = ""
        self._tris = 0
        self._num_loaded = 0
        self._failures: dict[str, int] = {}

    def step(self, item: ModelFile) -> Ended | None:
        """Render the next missing view of a model, or publish it; say how it ended once it has.

        Raises: UsageError if Blender does not start; StorageError if a disk is full.
        """
        missing = self.tree.missing_views(item)
        try:
            if missing or not self.tree.has_facts(item):
                self._load(item)
            if missing:
                self._render(item, missing[0])
                return None
        except RejectedError as rejected:
            return self._give_up(item, rejected.reason, str(rejected))
        except WorkerFailedError as failure:
            return self._failed(item, failure)
        return Ended.FINISHED if self.tree.publish(item) else None

    def close(self) -> None:
        """End Blender and remove the scratch folder. Finished views are safe; at most one is lost."""
        self.blender.kill()
        self.blender.scratch.close()

    def _load(self, item: ModelFile) -> None:
        if self.blender.is_running and self._loaded == key(item):
            return
        path, source = self._looked_into(item)
        if self._num_loaded >= MODELS_PER_PROCESS:
            self.blender.kill()
        if not self.blender.is_running:
            self._start()
        self.blender.trim_log()
        self._loaded, self._num_loaded = "", self._num_loaded + 1
        image = self.tree.image
        reply = self.blender.ask(
            "load",
            self.machine.timeout_s,
            path=str(path.absolute()),
            longest_side=image.longest_side,
            center=image.center,
        )
        missing = sorted({*source.missing, *map(printable, reply["missing_textures"])})
        self._judge(path, source, reply["faces"], missing)
        self._loaded, self._tris = key(item), reply["tris"]
        found = {"missing": missing, "warnings": source.warnings, "on": self._on}
        self.tree.put_facts(item, {name: reply[name] for name in FACTS} | found)

    def _looked_into(self, item: ModelFile) -> tuple[Path, Source]:
        """Return the model's file as it lies there now, and what it says of itself. Raises: RejectedError."""
        now = look_again(item)
        if isinstance(now, LeftOut):
            raise RejectedError("gone", f"it was there when the folder was listed; now it {now.why}")
        source = look_into(now.path)
        if source.fault:
            raise RejectedError(source.fault.code, source.fault.message)
        return now.path, source

    def _judge(self, path: Path, source: Source, num_faces: int, missing: Sequence[str]) -> None:
        """Compare what Blender made of a file with what the file says. Raises: RejectedError."""
        if missing and self.tree.image.missing_texture == "reject":
            kind = "missing-material" if missing[0] in source.missing else "missing-texture"
            raise RejectedError(kind, f"{', '.join(missing[:3])}, named by {path.name}, cannot be read")
        told = source.num_faces or num_faces
        if told - num_faces > self.gates.max_dropped_faces * told:
            first = first_bad_face(path.read_bytes()) if path.suffix.lower() == ".obj" else ""
            where = f"; the first is {first}" if first else "; they name vertices that are not there"
            raise RejectedError(
                "broken-faces", f"{told - num_faces} of {told} faces of {path.name} are broken{where}"
            )

    def _start(self) -> None:
        self.blender.start()
        self._loaded, self._num_loaded = "", 0
        who = self.blender.hello()
        machine = self.machine
        settings = worker_settings(self.tree.image, machine.threads, machine.device, machine.gpus)
        used = self.blender.configure(machine.timeout_s, **settings)
        same = {name: who[name] for name in ("renderer", "version", "build")} | {"device": used["device"]}
        self.tree.agree("renderer.json", same)
        self._on = {"cpu": who["cpu"], "devices": used["device_names"]}

    def _render(self, item: ModelFile, view: int) -> None:
        camera = cameras_of(self.tree.image, item)[view]
        folder = self.blender.scratch.fresh("view")  # an older view must not pass for this one
        raw, passes = folder / "view.png", folder / "passes.exr"
        self.blender.ask(
            "render",
            self.machine.timeout_s,
            position=blender_position(
                camera.rotation_deg, camera.elevation_deg, self.tree.image.camera_distance
            ),
            quaternion=quaternion(camera.rotation_deg, camera.elevation_deg),
            seed=seed_of(self.tree.image, item, view),
            **sampling_of(self.tree.image, self._tris),
            out=str(raw),
            passes=str(passes) if self.tree.image.passes else "",
        )
        pixels = self._read(raw)
        gates = self.gates.without_magenta() if self.tree.image.missing_texture == "magenta" else self.gates
        defect = defect_of(pixels, self.tree.image.resolution, gates)
        if defect is not None:
            raise RejectedError(defect.code, f"view {view}: {defect.message}")
        self._put_passes(item, view, passes, pixels)
        self.tree.put_view(item, view, encode(without_hidden_colour(pixels)))

    def _put_passes(self, item: ModelFile, view: int, path: Path, pixels: Pixels) -> None:
        if not self.tree.image.passes:
            return
        try:
            channels = read_exr(path.read_bytes())
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error
        for name in self.tree.image.passes:
            self.tree.put_pass(item, name, view, encode_words(PASS_WORDS[name](channels, pixels)))

    def _read(self, path: Path) -> Pixels:
        try:
            return decode(path.read_bytes())
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> StorageError | WorkerFailedError:
        folder = self.blender.scratch.path
        if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
            return StorageError(f"{folder} is full", "free space there, or set TMPDIR to another disk")
        return WorkerFailedError("damaged", f"Blender wrote no good image: {error}")

    def _failed(self, item: ModelFile, failure: WorkerFailedError) -> Ended | None:
        self.blender.kill()  # whatever state it is in, the next attempt begins in a fresh process
        if failure.reason == GIVEN_UP:
            return None
        self._failures[key(item)] = self._failures.get(key(item), 0) + 1
        if self._failures[key(item)] <= NUM_RETRIES:
            return None
        return self._give_up(item, failure.reason, str(failure))

    def _give_up(self, item: ModelFile, reason: str, message: str) -> Ended:
        message = printable(message)
        self.last = {"reason": reason, "message": message}
        self.tree.quarantine(
            item,
            {
                "synset": item.synset,
                "model": item.model,
                "file": str(item.path),
                "reason": reason,
                "message": message,
                "attempts": self._failures.pop(key(item), 0) or 1,
                "log": self.blender.log_tail(),
            },
        )
        return Ended.QUARANTINED
