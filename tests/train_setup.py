"""A packed dataset of flat discs, a session and a trainer small enough for tests of exactness."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from get3d_cluster import config as configuration
from get3d_cluster.data.format import (
    INDEX_NAME,
    Index,
    Member,
    Sample,
    Shard,
    digest_of,
    index_bytes,
    write_shard,
)
from get3d_cluster.dist.group import Group
from jobs.train import Config
from tests.sessions import session_of

CONFIGS = Path(__file__).parents[1] / "jobs" / "configs"
NUM_MODELS, NUM_VIEWS = 5, 4


def dataset(folder: Path, *, size: int = 8, tint: int = 0, synsets: tuple[str, ...] = ("02958343",)) -> Path:
    """Pack discs of several sizes and colours, seen from all around; models are of the synsets in turn."""
    folder.mkdir(parents=True)
    views = [(model, view) for model in range(NUM_MODELS) for view in range(NUM_VIEWS)]
    keys = [f"{synsets[model % len(synsets)]}/{model:04d}/{view:03d}" for model, view in views]
    pictures = [_disc(size, model, view, tint) for model, view in views]
    data, places = write_shard(
        Member(name=f"{key}.png", data=png) for key, png in zip(keys, pictures, strict=True)
    )
    (folder / "shard-00000.tar").write_bytes(data)
    samples = tuple(
        _sample(key, place, png, view)
        for key, place, png, (_, view) in zip(keys, places, pictures, views, strict=True)
    )
    shard = Shard(name="shard-00000.tar", size=len(data), xxh3_64=digest_of(data))
    (folder / INDEX_NAME).write_bytes(index_bytes(Index(resolution=size, shards=(shard,), samples=samples)))
    return folder


def tiny_config(data: Path, *overrides: str) -> Config:
    return configuration.load(Config, CONFIGS / "tiny_test.yaml", [f"data.path={data}", *overrides])


def trainer(config: Config, folder: Path, group: Group | None = None) -> Any:
    """Return what the job makes, in a run folder below ``folder``."""
    from jobs.train import make

    return make(config, session_of(folder, group))


def _sample(key: str, place: tuple[int, int], png: bytes, view: int) -> Sample:
    values = {
        "key": key,
        "shard": 0,
        "offset": place[0],
        "size": place[1],
        "xxh3_64": digest_of(png),
        "rotation_deg": 360.0 * view / NUM_VIEWS,
        "elevation_deg": 10.0 + 5.0 * view,
    }
    return Sample(**{name: values[name] for name in Sample.__dataclass_fields__})


def _disc(size: int, model: int, view: int, tint: int) -> bytes:
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    radius = size * (0.2 + 0.05 * model) * (1 + 0.1 * math.cos(view))
    inside = np.hypot(rows, columns) < radius
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[inside] = (40 * model + tint, 60 * view, 120, 255)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


__all__ = ["dataset", "tiny_config", "trainer"]
