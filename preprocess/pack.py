"""Rendered images and cameras -> packed dataset (``get3d_cluster.data.format``), shard by shard.

Reads ``img/<synset>/<model>/NNN.png`` and ``camera/<synset>/<model>/{rotation,elevation}.npy`` below a folder.
What goes into which shard is planned from names, sizes and cameras alone, so every worker plans the same. A shard
and its part of the index (``parts/shard-00000.json``) appear by one rename each; the index is written when all parts
are there. Packing something twice is harmless: the bytes are the same.

Images are stored as rendered, or as TIFF with zstd, which holds the same pixels in four fifths of the bytes and is
decoded five times as fast at 1024 px; below 256 px PNG is faster (measured by tests/bench/test_loader.py).
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from get3d_cluster.data.format import (
    INDEX_NAME,
    Index,
    Member,
    Sample,
    Shard,
    digest_of,
    fits_into_shard,
    index_bytes,
    read_index,
    shard_name,
    write_shard,
)
from get3d_cluster.data.rendered import ANGLES, image_name, read_angles
from get3d_cluster.errors import UsageError
from get3d_cluster.storage.local import write_atomic
from preprocess.images import make_output_folder
from preprocess.lists import Wanted
from preprocess.summary import PAGE, SHEET

PARTS = "parts"
PLAN_NAME = "plan.txt"
RENDER_AGAIN = (
    "delete the model's folder below img/, then render it again, as a run of a new name: "
    "python launch.py run render --name again models=<models> out=<this folder>"
)
"""The job render looks whether images are there, not whether they are whole; a run that is done is not begun again."""
TIFF_FROM_PX = 256
"""Size from which images are stored as TIFF, unless told otherwise."""

Store = Literal["auto", "png", "tiff"]
Angles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One image file, and where its camera stood."""

    path: Path
    size: int
    rotation_deg: float
    elevation_deg: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The images of one model, in the order of their numbers."""

    synset: str
    model: str
    views: tuple[View, ...]
    facts: str
    """sha256 of object.json; empty if there is none."""

    @property
    def size(self) -> int:
        """Bytes of all images."""
        return sum(view.size for view in self.views)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Which models go into which shard."""

    images: Path
    """The rendered folder."""
    resolution: int
    is_tiff: bool
    """Whether images are stored as TIFF instead of as rendered."""
    shards: tuple[tuple[Model, ...], ...]
    digest: str
    """Of everything the plan was made from; marks what was packed from it."""
    not_there: tuple[str, ...] = ()
    """What lists name and the folder does not hold: not rendered, or given up by the job `render`."""

    def num_images(self, number: int) -> int:
        """Count the images of one shard."""
        return sum(len(model.views) for model in self.shards[number])


def planned(
    images: Path,
    shard_mb: int,
    synsets: Sequence[str] = (),
    store: Store = "auto",
    wanted: Wanted | None = None,
) -> Plan:
    """Look through the rendered folder and decide what goes where, of the models of lists or of all.

    Raises: UsageError naming the path if a folder, image or camera is missing or does not fit, or no model is listed.
    """
    models = _found(images, synsets, wanted)
    resolution = _resolution_of(models[0].views[0].path)
    shards = _cut(models, shard_mb * 2**20)
    rows = [
        [
            number,
            model.synset,
            model.model,
            model.facts,
            view.path.name,
            view.size,
            view.rotation_deg,
            view.elevation_deg,
        ]
        for number, shard in enumerate(shards)
        for model in shard
        for view in model.views
    ]
    is_tiff = store == "tiff" or (store == "auto" and resolution >= TIFF_FROM_PX)
    decided = [resolution, rows, *(["tiff"] if is_tiff else [])]
    digest = hashlib.sha256(json.dumps(decided).encode()).hexdigest()
    return Plan(
        images=images,
        resolution=resolution,
        is_tiff=is_tiff,
        shards=shards,
        digest=digest,
        not_there=_not_there(models, synsets, wanted),
    )


def rendered_keys(images: Path, synsets: Sequence[str] = (), wanted: Wanted | None = None) -> list[str]:
    """Return the keys of all views in a rendered folder. Raises: UsageError as ``planned``."""
    return [
        f"{model.synset}/{model.model}/{view.path.stem}"
        for model in _found(images, synsets, wanted)
        for view in model.views
    ]


def open_folder(out: Path, plan: Plan) -> None:
    """Get ``out`` ready for this plan. Raises: UsageError if another dataset is complete there, or it is no folder."""
    make_output_folder(out)
    mark = out / PARTS / PLAN_NAME
    if (out / INDEX_NAME).exists() and _text(mark) != plan.digest:
        raise UsageError(
            f"out={out} holds a dataset packed from other images, cameras, lists, shard_mb or store",
            f"choose another out=, or delete {out} if no run uses it any more",
        )
    if _text(mark) != plan.digest:
        write_atomic(mark, plan.digest.encode())


def is_finished(out: Path, plan: Plan) -> bool:
    """Tell whether the dataset is complete."""
    return (out / INDEX_NAME).is_file() and _text(out / PARTS / PLAN_NAME) == plan.digest


def is_packed(out: Path, plan: Plan, number: int, *, check_digest: bool = False) -> bool:
    """Tell whether a shard and its part of the index are there and belong to this plan."""
    part = _read_part(out, plan, number)
    path = out / shard_name(number)
    if part is None or not path.is_file() or path.stat().st_size != part["shard"]["size"]:
        return False
    return not check_digest or digest_of(path.read_bytes()) == part["shard"]["xxh3_64"]


def pack_shard(out: Path, plan: Plan, number: int) -> None:
    """Read, check and write one shard, then its part of the index.

    Raises: UsageError naming the image that is unreadable or does not fit; StorageError.
    """
    members, cameras = _members(plan, number)
    data, places = write_shard(members)
    samples = [
        Sample(
            key=str(PurePosixPath(member.name).with_suffix("")),
            shard=number,
            offset=offset,
            size=size,
            xxh3_64=digest_of(member.data),
            rotation_deg=cameras[member.name].rotation_deg,
            elevation_deg=cameras[member.name].elevation_deg,
        )
        for member, (offset, size) in zip(members, places, strict=True)
        if member.name in cameras
    ]
    shard = Shard(name=shard_name(number), size=len(data), xxh3_64=digest_of(data))
    part = {"plan": plan.digest, "shard": asdict(shard), "samples": [asdict(sample) for sample in samples]}
    write_atomic(out / shard.name, data)
    write_atomic(_part_path(out, number), json.dumps(part).encode())


def write_index(out: Path, plan: Plan) -> Index:
    """Join the parts, which must all be there, into the index; remove what the plan does not know."""
    parts = [_read_part(out, plan, number) for number in range(len(plan.shards))]
    shards = tuple(Shard(**part["shard"]) for part in parts if part is not None)
    samples = tuple(Sample(**row) for part in parts if part is not None for row in part["samples"])
    assert len(shards) == len(plan.shards)
    _remove_others(out, plan)
    _copy_summary(plan.images, out)
    index = Index(resolution=plan.resolution, shards=shards, samples=samples)
    write_atomic(out / INDEX_NAME, index_bytes(index))
    return read_index(out)


def _found(images: Path, synsets: Sequence[str], wanted: Wanted | None) -> list[Model]:
    root = images / "img"
    if not root.is_dir():
        raise UsageError(f"images={images} holds no rendered images: {root} is missing", "render them first")
    chosen = sorted(set(synsets)) or _folder_names(root)
    for synset in chosen:
        if not (root / synset).is_dir():
            raise UsageError(
                f"synset {synset!r} is no folder of {root}", f"choose from: {', '.join(_folder_names(root))}"
            )
    names = [(synset, model) for synset in chosen for model in _folder_names(root / synset)]
    if not names:
        raise UsageError(f"{root} holds no models", "render them first")
    kept = [name for name in names if not (wanted and wanted.why_not(*name))]
    if not kept:
        assert wanted
        raise UsageError(
            f"none of the {len(names)} models of {root} is named in {wanted.source}",
            f"set lists= and splits= to what names them, such as {'/'.join(names[0])}, or leave both out",
        )
    return [_model(images, *name) for name in kept]


def _not_there(models: Sequence[Model], synsets: Sequence[str], wanted: Wanted | None) -> tuple[str, ...]:
    """Return what is listed and not found, in the chosen categories."""
    missing = [name for name, _ in wanted.missing(models)] if wanted else []
    return tuple(name for name in missing if not synsets or name.rpartition("/")[0] in ("", *synsets))


def _model(images: Path, synset: str, model: str) -> Model:
    if not fits_into_shard(f"{synset}/{model}"):
        raise UsageError(
            f"{images / 'img' / synset / model}: its name is too long for a tar file, or not UTF-8",
            "rename that folder, and the one below camera/",
        )
    folder, cameras = images / "img" / synset / model, images / "camera" / synset / model
    rotation, elevation = (_angles(cameras / f"{name}.npy") for name in ANGLES)
    if len(rotation) != len(elevation):
        raise UsageError(
            f"{cameras}: rotation.npy has {len(rotation)} views, elevation.npy {len(elevation)}", RENDER_AGAIN
        )
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    names = [image_name(view) for view in range(len(rotation))]
    wrong = sorted(set(names) ^ set(sizes))
    if wrong or not names:
        is_missing = bool(wrong) and wrong[0] in names
        problem, way_out = (
            ("is missing", RENDER_AGAIN)
            if is_missing
            else ("has no camera", "take it away, or add its angles there")
        )
        what = f"{folder / wrong[0] if wrong else folder} {problem}: {cameras} lists {len(names)} views"
        raise UsageError(what, way_out)
    views = tuple(
        View(path=folder / name, size=sizes[name], rotation_deg=float(r), elevation_deg=float(e))
        for name, r, e in zip(names, rotation, elevation, strict=True)
    )
    return Model(synset=synset, model=model, views=views, facts=_digest_or_empty(cameras / "object.json"))


def _angles(path: Path) -> Angles:
    try:
        return read_angles(path)
    except FileNotFoundError as error:
        raise UsageError(f"the cameras are missing: {path}", RENDER_AGAIN) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", RENDER_AGAIN) from error


def _resolution_of(path: Path) -> int:
    with Image.open(io.BytesIO(_checked(path, None))) as image:
        return image.size[0]


def _checked(path: Path, resolution: int | None) -> bytes:
    """Return the file of a square RGBA image after decoding it once; None takes any resolution."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            kind, mode, size = image.format, image.mode, image.size
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG chunks
        raise UsageError(f"{path} cannot be read as an image: {error}", RENDER_AGAIN) from error
    expected = (resolution or size[0],) * 2
    if (kind, mode, size) != ("PNG", "RGBA", expected):
        wanted = f"PNG RGBA {expected[0]} x {expected[1]}"
        raise UsageError(f"{path} is {kind} {mode} {size[0]} x {size[1]}, expected is {wanted}", RENDER_AGAIN)
    return data


def _cut(models: Sequence[Model], limit: int) -> tuple[tuple[Model, ...], ...]:
    """Fill shards in order; a model stays whole, and a shard holds one at least."""
    shards: list[list[Model]] = []
    room = 0
    for model in models:
        if not shards or model.size > room:
            shards.append([])
            room = limit
        shards[-1].append(model)
        room -= model.size
    return tuple(tuple(shard) for shard in shards)


def _members(plan: Plan, number: int) -> tuple[list[Member], dict[str, View]]:
    members, cameras = [], {}
    for model in plan.shards[number]:
        prefix = f"{model.synset}/{model.model}"
        for view in model.views:
            data = _checked(view.path, plan.resolution)
            name = f"{prefix}/{view.path.name}"
            if plan.is_tiff:
                data, name = tiff(data), f"{prefix}/{view.path.stem}.tif"
            members.append(Member(name=name, data=data))
            cameras[name] = view
        angles = {
            "rotation_deg": [view.rotation_deg for view in model.views],
            "elevation_deg": [view.elevation_deg for view in model.views],
        }
        members.append(Member(name=f"{prefix}/camera.json", data=json.dumps(angles).encode()))
    return members, cameras


def tiff(png: bytes) -> bytes:
    """Return the same pixels as a TIFF of one strip, compressed by zstd. Raises: UsageError if Pillow cannot."""
    with Image.open(io.BytesIO(png)) as image:
        pixels, out = image.convert("RGBA"), io.BytesIO()
    try:
        pixels.save(out, format="TIFF", compression="zstd", strip_size=4 * pixels.width * pixels.height)
        with Image.open(out) as stored:
            is_same = stored.mode == "RGBA" and stored.tobytes() == pixels.tobytes()
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"Pillow cannot write TIFF with zstd here: {error}", "set store=png") from error
    assert is_same, "TIFF with zstd is lossless"
    return out.getvalue()


def _remove_others(out: Path, plan: Plan) -> None:
    """Remove shards of an earlier plan, and files that killed writers left."""
    known = {shard_name(number) for number in range(len(plan.shards))}
    for path in [*out.glob("shard-*.tar"), *out.glob(".writing-shard-*")]:
        if path.name not in known:
            path.unlink(missing_ok=True)


def _copy_summary(images: Path, out: Path) -> None:
    """Put what the job `render` says of its images beside them, for the reports of trainings."""
    for name in (PAGE, SHEET):
        if (images / name).is_file():
            write_atomic(out / name, (images / name).read_bytes())


def _read_part(out: Path, plan: Plan, number: int) -> dict[str, Any] | None:
    text = _text(_part_path(out, number))
    try:
        part: dict[str, Any] = json.loads(text) if text else {}
    except ValueError:  # damaged: packed again
        return None
    return part if part.get("plan") == plan.digest else None


def _part_path(out: Path, number: int) -> Path:
    return out / PARTS / f"{Path(shard_name(number)).stem}.json"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _digest_or_empty(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _folder_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
