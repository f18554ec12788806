"""The output folder of rendered images: what decides their pixels, what lies where, and when a model is done.

What is in the output folder, and nothing else:

    img/<synset>/<model>/000.png ...            appears by one rename, complete
    depth/, normal/<synset>/<model>/000.png ... the same, if asked for; there before the images are
    camera/<synset>/<model>/{rotation,elevation}.npy, object.json, transforms.json
    quarantine/<synset>/<model>.json            a model that was given up on, and why
    quarantine.jsonl  render.jsonl              the list of those; a line for each ended model, as it happened
    left_out.jsonl                              what holds no usable model or was not asked for, and why
    summary.html  sheet.png                     for people, written when all models have ended
    render.json  renderer.json                  settings and Blender version of everything in here
    .staging/listing.json                       what the folder of models held, as long as it does not change
    .staging/<digest>/<synset>/<model>/NNN.png  finished views of unfinished models

A model is done when its object.json names this folder's settings and its images are there. Pixels are a function of
settings, seed, synset, model and view: neither interruptions nor the number of workers nor the order show in them.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from get3d_cluster.core.cameras import RADIUS, View, cam_to_world, views_for
from get3d_cluster.core.philox import key_of
from get3d_cluster.data.rendered import image_name
from get3d_cluster.errors import StorageError, UsageError
from get3d_cluster.storage.local import sync_folder
from preprocess.quality import coverage, decode, sha256_of_pixels
from preprocess.shapenet import LeftOut, ModelFile

FORMAT = 2
"""Version of object.json and of what decides the pixels beside the settings: raise it when the worker changes them."""
SENSOR_MM = 32.0
BOUNCES = {"total": 12, "diffuse": 1, "glossy": 1, "transmission": 3, "transparent": 3}
"""Source: GET3D, data rendering."""

DENOISERS: Mapping[str, tuple[str, str]] = {
    "none": ("none", "none"),
    "fast": ("fast", "none"),
    "balanced": ("balanced", "none"),
    "accurate": ("high", "accurate"),
}
"""Quality and prefilter of Open Image Denoise by the names that settings have."""

LISTED = ("synset", "model", "reason", "message")
"""Fields of a verdict that quarantine.jsonl has."""

Settings = dict[str, Any]
"""Settings or facts as JSON."""

LIGHTS: Mapping[str, Settings] = {
    # Source: GET3D's data rendering: a huge area light above the object, and the factory scene's lamp and world.
    "get3d": {
        "world": [0.0509, 0.0509, 0.0509],
        "lights": [
            {
                "type": "area",
                "energy": 30000.0,
                "size_m": 100.0,
                "position": [0, 0, 0.5],
                "towards": [0, 0, 0],
            },
            {
                "type": "point",
                "energy": 1000.0,
                "size_m": 0.1,
                "position": [4.076, 1.005, 5.904],
                "towards": [0, 0, 0],
            },
        ],
    },
    # An overcast sky and a soft sun: no side is black, and white stays below 1.0, which Standard does not clip.
    "studio": {
        "world": [0.62, 0.62, 0.62],
        "lights": [
            {"type": "sun", "energy": 1.1, "angle_rad": 0.5, "position": [2, 1, 4], "towards": [0, 0, 0]},
        ],
    },
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """All that decides the pixels; images of different settings never share an output folder."""

    seed: int = 0
    """Seed of cameras and noise; with synset, model and view it decides both."""
    num_views: int = 24
    """Images of each model. Source: GET3D."""
    resolution: int = 1024
    """Side of the square images in pixels; render at the size of training: half the side is four times as fast."""
    samples: int = 32
    """Most light paths for each pixel; powers of two are the better ones."""
    min_samples: int = 8
    """Fewest light paths for each pixel; fewer than 8 leave holes in the masks of glass."""
    adaptive_threshold: float = 0.05
    """Noise at which a pixel is left before ``samples``; 0 gives every pixel all of them."""
    light_tree: bool = True
    """Choose among lights by what they give; off is a fifth sooner and a little noisier with as few as these."""
    denoise: Literal["none", "fast", "balanced", "accurate"] = "balanced"
    """Quality of Open Image Denoise; "none" keeps textures sharp and is right from 32 fixed samples on, "accurate" is
    Blender's default, thus GET3D's: slow, and it blurs textures."""
    large_tris: int = 0
    """Models with more triangles get ``large_samples`` instead of ``samples``: each of their paths takes longer.
    0: all models are alike."""
    large_samples: int = 8
    """Light paths for each pixel of a model above ``large_tris``."""
    filter_width_px: float = 0.01
    """Width of the pixel filter; 0.01 gives a hard silhouette like GET3D's, 1.5 an antialiased one."""
    longest_side: float = 0.9
    """Longest side of the model's box after scaling. Source: GET3D; 0.7 for chairs."""
    center: bool = True
    """Move the middle of the model's box to the origin."""
    elevation_range_deg: tuple[float, float] = (0.0, 30.0)
    """Cameras stand between these angles above the horizon. Source: GET3D."""
    lens_mm: float = 35.0
    """Focal length before a sensor of 32 mm; train with generator.render.fov_deg = 2 atan(16 / lens_mm).
    Source: GET3D."""
    camera_distance: float = RADIUS
    """From the camera to the origin; train with generator.render.radius equal to it. Source: GET3D."""
    view_transform: Literal["Standard", "Filmic"] = "Filmic"
    """How light becomes colour; Filmic is GET3D's look, Standard keeps white textures white."""
    lights: Literal["get3d", "studio"] = "get3d"
    """Preset of lights and world: GET3D's, or a bright sky without black sides."""
    crop: bool = True
    """Render only what the model's box covers: the same image, sooner."""
    missing_texture: Literal["reject", "magenta", "grey"] = "reject"
    """A model whose texture or material file is missing is quarantined, or rendered with magenta or grey instead.
    GET3D's images have magenta ones."""
    passes: tuple[Literal["depth", "normal"], ...] = ()
    """Rendered beside the images into folders of their own, as PNG with 16 bits; docs/rendering.md has the units."""

    def __post_init__(self) -> None:
        for name in ("num_views", "resolution", "samples", "min_samples", "large_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.num_views > 1000:
            raise ValueError(
                f"num_views={self.num_views} must be at most 1000: images are named 000.png to 999.png"
            )
        if not 0 < self.longest_side < 1:
            raise ValueError(
                f"longest_side={self.longest_side} must be between 0 and 1: the lights stand around it"
            )
        if not self.longest_side < self.camera_distance <= 3:
            raise ValueError(
                f"camera_distance={self.camera_distance} must be above longest_side={self.longest_side}, at most 3"
            )
        if self.lens_mm <= 0:
            raise ValueError(f"lens_mm={self.lens_mm} must be positive")
        if self.filter_width_px < 0.01:
            raise ValueError(f"filter_width_px={self.filter_width_px} must be at least 0.01")
        if self.adaptive_threshold < 0:
            raise ValueError(f"adaptive_threshold={self.adaptive_threshold} must not be negative")
        low, high = self.elevation_range_deg
        if not -90 <= low <= high <= 90:
            raise ValueError(
                f"elevation_range_deg={self.elevation_range_deg} must be ordered and within [-90, 90]"
            )


def key(item: ModelFile) -> str:
    """Return a model's name in claims, logs and lists."""
    return f"{item.synset}/{item.model}"


def digest_of(image: ImageConfig) -> str:
    """Return the name of a set of settings: equal settings, equal images."""
    return hashlib.sha256(_json({"format": FORMAT, **asdict(image)})).hexdigest()[:16]


def seed_of(image: ImageConfig, item: ModelFile, view: int) -> int:
    """Return the seed of one image's noise. One seed for all would print the same noise on the whole dataset."""
    return key_of(str(image.seed), item.synset, item.model, str(view)) & 0x7FFFFFFF


def cameras_of(image: ImageConfig, item: ModelFile) -> list[View]:
    """Return the views of a model."""
    return views_for(image.seed, item.synset, item.model, image.num_views, image.elevation_range_deg)


def sampling_of(image: ImageConfig, tris: int) -> Settings:
    """Return how many paths the pixels of a model get."""
    samples = image.large_samples if 0 < image.large_tris < tris else image.samples
    return {"samples": samples, "min_samples": min(image.min_samples, samples)}


def worker_settings(image: ImageConfig, threads: int, device: str, gpus: Sequence[int] | None) -> Settings:
    """Return the fields of the ``configure`` request."""
    quality, prefilter = DENOISERS[image.denoise]
    return {
        "resolution": image.resolution,
        **sampling_of(image, 0),
        "adaptive_threshold": image.adaptive_threshold,
        "denoise": quality,
        "denoise_prefilter": prefilter,
        "light_tree": image.light_tree,
        "filter_width_px": image.filter_width_px,
        "view_transform": image.view_transform,
        "bounces": BOUNCES,
        "crop": image.crop,
        "lens_mm": image.lens_mm,
        "sensor_mm": SENSOR_MM,
        "missing_texture": "grey" if image.missing_texture == "grey" else "magenta",
        "passes": bool(image.passes),
        "threads": threads,
        "device": device,
        "gpus": None if gpus is None else list(gpus),
        **LIGHTS[image.lights],
    }


def make_output_folder(out: Path) -> None:
    """Make ``out``, unless it is there. Raises: UsageError if it is a file, or not ours to make; StorageError."""
    try:
        with _explained(out, but=(FileExistsError, NotADirectoryError, FileNotFoundError, PermissionError)):
            out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError, PermissionError) as error:
        raise UsageError(
            f"out={out} cannot be made a folder: {error.strerror}", "set out= to a folder of your own"
        ) from error


class Tree:
    """The output folder. Several workers may use it at once, each on models it has claimed.

    Raises StorageError when the disk is full or not writable.
    """

    def __init__(self, out: Path, image: ImageConfig) -> None:
        self.out = out
        self.image = image
        self.digest = digest_of(image)
        self.staging = out / ".staging" / self.digest
        self.claims = self.staging / ".claims"
        self.listing = out / ".staging" / "listing.json"

    def open(self) -> None:
        """Write down the settings, or compare with those of the images that are there.

        Raises: UsageError naming both and the keys that differ, or a folder that cannot be made.
        """
        make_output_folder(self.out)
        self.agree("render.json", {"format": FORMAT, "digest": self.digest, "settings": asdict(self.image)})

    def agree(self, name: str, facts: Settings) -> None:
        """Keep ``facts`` as ``name`` for the first caller; the later ones must bring the same. Raises: UsageError."""
        path = self.out / name
        if not path.is_file():
            self._write(path, _json(facts, indent=2) + b"\n")
        known, ours = _read_json(path), json.loads(_json(facts))
        if known is None:
            raise UsageError(
                f"{path}, which says what the images here are, cannot be read",
                "put it back as it was, or set out= to another folder",
            )
        if known != ours:
            raise UsageError(
                f"{path} belongs to other images: {', '.join(_differences(known, ours))}",
                "set out= to another folder, or use the settings and the Blender of this one",
            )

    def is_done(self, item: ModelFile) -> bool:
        """Say whether all images of a model are published.

        Raises: UsageError if they are there and of other settings, or of unknown ones.
        """
        folder = self._images(item)
        if not folder.is_dir():
            return False
        facts = _read_json(self._cameras(item) / "object.json") or {}
        if facts.get("config") != self.digest:
            raise UsageError(
                f"{folder} was rendered with config {facts.get('config', 'unknown')}, this run has {self.digest}",
                "set out= to another folder, or delete that one to render it again",
            )
        others = (_listed(self._pass(item, name)) for name in self.image.passes)
        return all(self._names() <= there for there in (_listed(folder), *others))

    def times_given_up(self, item: ModelFile) -> int:
        """Return how often a model was quarantined; 0 if it is not."""
        path = self._verdict(item)
        if not path.is_file():
            return 0
        return int((_read_json(path) or {}).get("given_up", 1))

    def published(self, synset: str) -> set[str]:
        """Return the models of a synset whose images are there, by their names alone: quick."""
        return _listed(self.out / "img" / synset)

    def given_up(self, synset: str) -> set[str]:
        """Return the models of a synset that are quarantined."""
        return {name.removesuffix(".json") for name in _listed(self.out / "quarantine" / synset)}

    def take_back(self, item: ModelFile) -> None:
        """Make what is published of an unfinished model staged again: images were lost, or a kill came in between."""
        for published, staged in self._moves(item):
            with _explained(staged):
                for name in self._names() & _listed(published):
                    staged.mkdir(parents=True, exist_ok=True)
                    if not (staged / name).exists():
                        (published / name).rename(staged / name)
                shutil.rmtree(published, ignore_errors=True)

    def missing_views(self, item: ModelFile) -> list[int]:
        """Return the views still to render."""
        present = set.intersection(*(_listed(staged) for _, staged in self._moves(item)))
        return [view for view in range(self.image.num_views) if image_name(view) not in present]

    def put_facts(self, item: ModelFile, facts: Settings) -> None:
        """Keep what Blender said about a model until it is published."""
        self._write(self._facts(item), _json(facts))

    def has_facts(self, item: ModelFile) -> bool:
        return self._facts(item).is_file()

    def put_view(self, item: ModelFile, view: int, png: bytes) -> None:
        """Keep one good view: durable and whole, or not there at all."""
        self._write(self._staged(item) / image_name(view), png)

    def put_pass(self, item: ModelFile, name: str, view: int, png: bytes) -> None:
        """Keep the depth or the normals of a view; its image comes after them."""
        self._write(self._staged_pass(item, name) / image_name(view), png)

    def publish(self, item: ModelFile) -> bool:
        """Make a model whose views are all staged visible, by one rename; it is no longer quarantined then.

        Returns False if a staged file turned out to be damaged; it is deleted then, to be rendered again.
        """
        rows = self._view_rows(item)
        if rows is None:
            return False
        cameras = cameras_of(self.image, item)
        facts = {
            "format": FORMAT,
            "config": self.digest,
            "renderer": _read_json(self.out / "renderer.json"),
            "synset": item.synset,
            "model": item.model,
            "longest_side": self.image.longest_side,
            "views": rows,
            **(_read_json(self._facts(item)) or {}),
        }
        folder = self._cameras(item)
        self._write(folder / "rotation.npy", _npy([view.rotation_deg for view in cameras]))
        self._write(folder / "elevation.npy", _npy([view.elevation_deg for view in cameras]))
        self._write(folder / "transforms.json", _json(self._transforms(item, cameras), indent=1) + b"\n")
        self._write(folder / "object.json", _json(facts, indent=1) + b"\n")
        if self._verdict(item).is_file():  # before the images are there: a model never is both
            self._verdict(item).unlink(missing_ok=True)
        self._move_images(item)
        self._facts(item).unlink(missing_ok=True)
        return True

    def quarantine(self, item: ModelFile, verdict: Settings) -> None:
        """Give up on a model: it is skipped until it gets another chance, or its file in ``quarantine/`` is deleted."""
        given_up = self.times_given_up(item) + 1
        facts = {"config": self.digest, "given_up": given_up, **verdict}
        self._write(self._verdict(item), _json(facts, indent=1) + b"\n")
        self._facts(item).unlink(missing_ok=True)
        for _, staged in self._moves(item):
            shutil.rmtree(staged, ignore_errors=True)
        self._append("quarantine.jsonl", {key: verdict[key] for key in LISTED})

    def list_quarantined(self) -> None:
        """Write quarantine.jsonl anew from the files in ``quarantine/``: one line a model, sorted.

        Meanwhile lines are only appended: thousands of models may fail.
        """
        written = None
        # Again until nothing came in between: of two workers, the one with the older list may write last.
        while (lines := self._quarantined_lines()) != written:
            self._write(self.out / "quarantine.jsonl", lines)
            written = lines

    def list_left_out(self, left_out: Sequence[LeftOut]) -> None:
        """Write down which folders were not even tried."""
        lines = [_json(asdict(each)) + b"\n" for each in left_out]
        self._write(self.out / "left_out.jsonl", b"".join(lines))

    def has_listed_left_out(self) -> bool:
        return (self.out / "left_out.jsonl").is_file()

    def log(self, row: Settings) -> None:
        """Append a line to render.jsonl. For people: what counts is in the files of each model."""
        self._append("render.jsonl", row)

    def _append(self, name: str, row: Settings) -> None:
        path = self.out / name
        with _explained(path), path.open("ab", buffering=0) as file:
            file.write(_json(row) + b"\n")

    def cameras(self, item: ModelFile) -> tuple[list[float], list[float]]:
        """Return the rotations and elevations of a published model, in degrees; nothing if they cannot be read."""
        try:
            rotation, elevation = (
                np.load(self._cameras(item) / f"{name}.npy") for name in ("rotation", "elevation")
            )
        except (OSError, ValueError, EOFError):
            return [], []
        return rotation.tolist(), elevation.tolist()

    def facts(self, item: ModelFile) -> Settings:
        """Return what object.json says of a published model; nothing if it cannot be read."""
        return _read_json(self._cameras(item) / "object.json") or {}

    def view_path(self, item: ModelFile, view: int) -> Path:
        """Return where a published view lies."""
        return self._images(item) / image_name(view)

    def write(self, name: str, data: bytes) -> None:
        """Replace a file in the output folder itself."""
        self._write(self.out / name, data)

    def _write(self, path: Path, data: bytes) -> None:
        """Replace ``path`` at once. Written aside in the staging folder: a kill leaves no stray among the images."""
        aside = self.staging / ".incoming" / secrets.token_hex(8)
        with _explained(path):
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with aside.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                aside.replace(path)
            except OSError:
                aside.unlink(missing_ok=True)
                raise

    def _quarantined_lines(self) -> bytes:
        paths = sorted((self.out / "quarantine").glob("*/*.json"))
        verdicts = [verdict for path in paths if (verdict := _read_json(path))]
        rows = [{key: verdict.get(key, "") for key in LISTED} for verdict in verdicts]
        return b"".join(_json(row) + b"\n" for row in rows)

    def _view_rows(self, item: ModelFile) -> list[Settings] | None:
        rows = []
        for view, camera in enumerate(cameras_of(self.image, item)):
            path = self._staged(item) / image_name(view)
            data = path.read_bytes()
            try:
                pixels = decode(data)
            except ValueError:
                path.unlink()
                return None
            rows.append(
                {
                    "file": path.name,
                    "rotation_deg": camera.rotation_deg,
                    "elevation_deg": camera.elevation_deg,
                    "seed": seed_of(self.image, item, view),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "pixels_sha256": sha256_of_pixels(pixels),
                    "coverage": coverage(pixels),
                    **self._pass_digests(item, path.name),
                }
            )
        return rows

    def _pass_digests(self, item: ModelFile, name: str) -> Settings:
        files = {each: self._staged_pass(item, each) / name for each in self.image.passes}
        return {
            f"{each}_sha256": hashlib.sha256(path.read_bytes()).hexdigest() for each, path in files.items()
        }

    def _transforms(self, item: ModelFile, cameras: Sequence[View]) -> Settings:
        """Return the cameras as other tools read them. Source: the transforms.json of NeRF datasets."""
        distance = self.image.camera_distance
        above = f"../../../img/{item.synset}/{item.model}"
        frames = [
            {
                "file_path": f"{above}/{image_name(view)}",
                "transform_matrix": cam_to_world(camera.rotation_deg, camera.elevation_deg, distance),
            }
            for view, camera in enumerate(cameras)
        ]
        half = self.image.longest_side / 2
        fov_rad = 2 * math.atan(SENSOR_MM / 2 / self.image.lens_mm)
        return {"camera_angle_x": fov_rad, "aabb": [[-half] * 3, [half] * 3], "frames": frames}

    def _move_images(self, item: ModelFile) -> None:
        sync_folder(self._cameras(item))
        for target, staged in self._moves(item):
            with _explained(target):
                for stray in _listed(staged) - self._names():
                    (staged / stray).unlink()
                sync_folder(staged)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    staged.rename(target)
                except OSError:
                    if not self._names() <= _listed(target):
                        raise
                    shutil.rmtree(
                        staged, ignore_errors=True
                    )  # another worker was first, with the same images
                sync_folder(target.parent)

    def _moves(self, item: ModelFile) -> list[tuple[Path, Path]]:
        """Return where each kind of image is published, and where it is staged; the images themselves last."""
        passes = [(self._pass(item, name), self._staged_pass(item, name)) for name in self.image.passes]
        return [*passes, (self._images(item), self._staged(item))]

    def _names(self) -> set[str]:
        return {image_name(view) for view in range(self.image.num_views)}

    def _images(self, item: ModelFile) -> Path:
        return self.out / "img" / item.synset / item.model

    def _cameras(self, item: ModelFile) -> Path:
        return self.out / "camera" / item.synset / item.model

    def _pass(self, item: ModelFile, name: str) -> Path:
        return self.out / name / item.synset / item.model

    def _staged_pass(self, item: ModelFile, name: str) -> Path:
        return self.staging / f".{name}" / item.synset / item.model

    def _staged(self, item: ModelFile) -> Path:
        return self.staging / item.synset / item.model

    def _facts(self, item: ModelFile) -> Path:
        return self.staging / item.synset / f"{item.model}.json"

    def _verdict(self, item: ModelFile) -> Path:
        return self.out / "quarantine" / item.synset / f"{item.model}.json"


def _listed(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))  # noqa: PTH208  names are all that is needed
    except FileNotFoundError:
        return set()


def _json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, sort_keys=True, indent=indent).encode()


def _read_json(path: Path) -> Settings | None:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _npy(values: list[float]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values, dtype=np.float64))
    return file.getvalue()


def _differences(known: Settings, ours: Settings, prefix: str = "") -> list[str]:
    """Return ``key theirs -> ours`` for each leaf that differs."""
    found = []
    for key in sorted(known.keys() | ours.keys()):
        a, b = known.get(key), ours.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} {a} -> {b}")
    return found


@contextlib.contextmanager
def _explained(path: Path, but: tuple[type[OSError], ...] = ()) -> Iterator[None]:
    try:
        yield
    except but:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            "free space or mend the permissions there, then run the same command again: nothing finished was lost",
        ) from error
