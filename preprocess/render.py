"""Render models to images: one Blender process, each view judged, each model published whole.

A model gets two more tries after a crash, a hang or a damaged image, each in a fresh process; a model that is at fault
itself gets none, since rendering it again gives the same pixels. Then it is quarantined and the others go on.
"""

import shutil
import tempfile
from enum import StrEnum
from pathlib import Path

from get3d_cluster.core.cameras import RADIUS, blender_position, quaternion
from get3d_cluster.errors import StorageError
from preprocess.blender import GIVEN_UP, Blender, RejectedError, WorkerFailedError
from preprocess.images import Tree, cameras_of, key, seed_of, worker_settings
from preprocess.quality import Gates, Pixels, decode, defect_of, encode, without_hidden_colour
from preprocess.shapenet import ModelFile

NUM_RETRIES = 2
MODELS_PER_PROCESS = 300
"""Blender is restarted after so many: long-lived processes are reported to grow."""
LEAST_FREE_BYTES = 16_000_000
FACTS = ("tris", "objects", "materials", "bbox", "warnings")
"""Fields of the reply to ``load`` that are kept."""


class Ended(StrEnum):
    """What became of a model."""

    FINISHED = "finished"
    QUARANTINED = "quarantined"


class Renderer:
    """Renders claimed models view by view with one Blender process, which it starts when there is something to do."""

    def __init__(self, tree: Tree, blender: Blender, *, gates: Gates, threads: int, timeout_s: float) -> None:
        self.tree = tree
        self.blender = blender
        self.gates = gates
        self.threads = threads
        self.timeout_s = timeout_s
        self._scratch = Path(tempfile.mkdtemp(prefix="get3d-render-"))
        self._loaded = ""
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
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _load(self, item: ModelFile) -> None:
        if self.blender.is_running and self._loaded == key(item):
            return
        if self._num_loaded >= MODELS_PER_PROCESS:
            self.blender.kill()
        if not self.blender.is_running:
            self._start()
        self.blender.trim_log()
        self._loaded, self._num_loaded = "", self._num_loaded + 1
        image = self.tree.image
        reply = self.blender.ask(
            "load",
            self.timeout_s,
            obj=str(item.obj.absolute()),
            longest_side=image.longest_side,
            center=image.center,
        )
        self._loaded = key(item)
        self.tree.put_facts(item, {name: reply[name] for name in FACTS})

    def _start(self) -> None:
        self.blender.start()
        self._loaded, self._num_loaded = "", 0
        who = self.blender.hello()
        self.tree.agree("renderer.json", {name: who[name] for name in ("renderer", "version", "build")})
        self.blender.ask("configure", self.timeout_s, **worker_settings(self.tree.image, self.threads))

    def _render(self, item: ModelFile, view: int) -> None:
        camera = cameras_of(self.tree.image, item)[view]
        raw = self._scratch / "view.png"
        raw.unlink(missing_ok=True)  # an older view must not pass for this one
        self.blender.ask(
            "render",
            self.timeout_s,
            position=blender_position(camera.rotation_deg, camera.elevation_deg, RADIUS),
            quaternion=quaternion(camera.rotation_deg, camera.elevation_deg),
            seed=seed_of(self.tree.image, item, view),
            out=str(raw),
        )
        pixels = self._read(raw)
        defect = defect_of(pixels, self.tree.image.resolution, self.gates)
        if defect is not None:
            raise RejectedError(defect.code, f"view {view}: {defect.message}")
        self.tree.put_view(item, view, encode(without_hidden_colour(pixels)))

    def _read(self, path: Path) -> Pixels:
        try:
            return decode(path.read_bytes())
        except (OSError, ValueError) as error:
            if shutil.disk_usage(self._scratch).free < LEAST_FREE_BYTES:
                raise StorageError(
                    f"{self._scratch} is full", "free space there, or set TMPDIR to another disk"
                ) from error
            raise WorkerFailedError("damaged", f"Blender wrote no good image: {error}") from error

    def _failed(self, item: ModelFile, failure: WorkerFailedError) -> Ended | None:
        self.blender.kill()  # whatever state it is in, the next attempt begins in a fresh process
        if failure.reason == GIVEN_UP:
            return None
        self._failures[key(item)] = self._failures.get(key(item), 0) + 1
        if self._failures[key(item)] <= NUM_RETRIES:
            return None
        return self._give_up(item, failure.reason, str(failure))

    def _give_up(self, item: ModelFile, reason: str, message: str) -> Ended:
        self.tree.quarantine(
            item,
            {
                "synset": item.synset,
                "model": item.model,
                "obj": str(item.obj),
                "reason": reason,
                "message": message,
                "attempts": self._failures.get(key(item), 0) or 1,
                "log": self.blender.log_tail(),
            },
        )
        return Ended.QUARANTINED
