"""How many images a second come out of a packed dataset, and out of a folder of PNGs: cold and warm, 1 to 8 processes.

    .venv/bin/python -m pytest -m bench -s tests/bench/test_loader.py

The folder is read as GET3D's own loader is described to read it: one PNG and two small camera files for each sample.
All make the same pixels by the same code from there on. Cold: the pages of all files were dropped from memory, which
is checked; names of files stay in memory, since dropping those takes root, so a cold folder is colder in real life.
Other processes disturb the images a second, so stores take turns and the median of their rounds counts; they hardly
disturb the processor time of a sample.
"""

import io
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from get3d_cluster.data.config import ReadConfig
from get3d_cluster.data.dataset import ImageDataset, _Decoder, prepared
from get3d_cluster.data.format import PackedImages
from preprocess import pack

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

NUM_IMAGES = {64: 768, 256: 192, 1024: 48}
VIEWS = 24
WORKERS = (1, 2, 4, 8)
ROUNDS = 3
RESULT = Path(__file__).parent / "results" / "loader.json"
Read = Callable[[int], object]


def picture(size: int, seed: int) -> Image.Image:
    """Return a textured, lit blob on nothing: a fifth of the frame, about a byte a covered pixel as PNG, as renders."""
    rng = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[:size, :size] / size - 0.5
    angle = np.arctan2(y, x)
    radius = 0.25 + 0.03 * np.cos(3 * angle + seed) + 0.01 * np.cos(11 * angle)
    coverage = np.clip((radius - np.hypot(x, y)) * size + 0.5, 0, 1)
    shade = 0.5 + 0.4 * np.cos(4 * x + 3 * y + seed) + 0.08 * (np.floor(20 * x) % 2)
    base = shade[..., None] * rng.uniform(80, 230, 3)
    noise = rng.normal(0, 0.8, (size, size, 1)) * (rng.random((size, size, 1)) < 0.5)
    colours = np.where(coverage[..., None] > 0, np.clip(base + noise, 0, 255), 0)
    return Image.fromarray(
        np.concatenate([colours, 255 * coverage[..., None]], axis=-1).round().astype(np.uint8)
    )


def render(root: Path, size: int) -> Path:
    for model in range(NUM_IMAGES[size] // VIEWS):
        images, cameras = (root / kind / "02958343" / f"{model:04d}" for kind in ("img", "camera"))
        images.mkdir(parents=True)
        cameras.mkdir(parents=True)
        for view in range(VIEWS):
            picture(size, 1000 * model + view % 4).save(images / f"{view:03d}.png", compress_level=3)
        for name in ("rotation", "elevation"):
            np.save(cameras / f"{name}.npy", np.arange(VIEWS, dtype=np.float64))
    return root


def pack_all(rendered: Path, out: Path, store: pack.Store) -> Path:
    plan = pack.planned(rendered, 64, store=store)
    pack.open_folder(out, plan)
    for number in range(len(plan.shards)):
        pack.pack_shard(out, plan, number)
    pack.write_index(out, plan)
    return out


class Folder:
    """Reads a rendered folder view by view."""

    def __init__(self, root: Path, size: int) -> None:
        self._size = size
        self._images = sorted((root / "img").glob("*/*/*.png"))
        self._cameras = [root / "camera" / path.relative_to(root / "img").parent for path in self._images]

    def __call__(self, number: int) -> object:
        path, cameras = self._images[number], self._cameras[number]
        angles = [np.load(cameras / f"{name}.npy")[int(path.stem)] for name in ("rotation", "elevation")]
        with Image.open(path) as image:
            return prepared(image, self._size, "binary"), angles


def packed(root: Path, size: int) -> Read:
    return _Decoder(PackedImages(root), size, "binary").pixels


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def drop(paths: Sequence[Path]) -> float:
    """Drop files from memory; return the share of them whose first page is gone."""
    gone = 0
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(handle, [bytearray(1)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            gone += 1
        os.close(handle)
    return gone / len(paths)


def warm(paths: Sequence[Path]) -> None:
    for path in paths:
        path.read_bytes()


def work(read: Read, numbers: Sequence[int], gate, answers) -> None:
    gate.wait()
    begun_s, cpu_s = time.monotonic(), time.process_time()
    for number in numbers:
        read(number)
    answers.put((begun_s, time.monotonic(), time.process_time() - cpu_s))


def measure(read: Read, count: int, num_workers: int) -> tuple[float, float]:
    """Return samples a second of all workers, and milliseconds of processor time a sample."""
    context = multiprocessing.get_context("fork")
    order = np.random.Generator(np.random.PCG64(num_workers)).permutation(count).tolist()
    gate, answers = context.Barrier(num_workers), context.Queue()
    workers = [
        context.Process(target=work, args=(read, order[rank::num_workers], gate, answers))
        for rank in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    rows = [answers.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    seconds = max(row[1] for row in rows) - min(row[0] for row in rows)
    return count / seconds, 1000 * sum(row[2] for row in rows) / count


def compare(
    readers: dict[str, tuple[Read, list[Path]]], size: int, num_workers: int, state: str
) -> dict[str, float]:
    """Return what each store does, and its rate in rates of the folder, as medians of rounds."""
    rounds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        found = {}
        for store, (read, paths) in readers.items():
            if state == "cold":
                found[f"{store}_dropped"] = drop(paths)
            else:
                warm(paths)
            found[f"{store}_per_s"], found[f"{store}_cpu_ms"] = measure(read, NUM_IMAGES[size], num_workers)
        for store in readers:
            found[f"{store}_times"] = found[f"{store}_per_s"] / found["folder_per_s"]
        for name, value in found.items():
            rounds.setdefault(name, []).append(value)
    return {name: round(float(np.median(values)), 3) for name, values in rounds.items()}


def profile(folder: Path, datasets: dict[str, Path], size: int) -> dict[str, dict[str, float]]:
    """Return milliseconds of processor time that parts of a sample take, by store."""
    found = {}
    for store, root in {"folder": folder, **datasets}.items():
        if store == "folder":
            paths = sorted((folder / "img").glob("*/*/*.png"))[:48]
            reads: list[Callable[[], bytes]] = [path.read_bytes for path in paths]
        else:
            images = PackedImages(root)
            reads = [lambda i=i, images=images: images.read(i) for i in range(48)]
        parts = {"read": 0.0, "decode": 0.0, "premultiply": 0.0}
        size_bytes = 0
        for read in reads:
            marks = [time.process_time()]
            data = read()
            marks.append(time.process_time())
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                marks.append(time.process_time())
                prepared(image, size, "binary")
            marks.append(time.process_time())
            size_bytes += len(data)
            for name, begin, end in zip(parts, marks[:-1], marks[1:], strict=True):
                parts[name] += 1000 * (end - begin) / len(reads)
        found[store] = {name: round(value, 3) for name, value in parts.items()} | {
            "bytes": round(size_bytes / len(reads))
        }
    return found


@pytest.mark.parametrize("size", list(NUM_IMAGES))
def test_packed_images_against_a_folder(size: int, tmp_path: Path) -> None:
    folder = render(tmp_path / "rendered", size)
    datasets = {store: pack_all(folder, tmp_path / store, store) for store in ("png", "tiff")}
    readers: dict[str, tuple[Read, list[Path]]] = {"folder": (Folder(folder, size), files(folder))}
    for store, root in datasets.items():
        readers[store] = packed(root, size), files(root)
    rows = [
        {"px": size, "workers": num_workers, "state": state} | compare(readers, size, num_workers, state)
        for num_workers in WORKERS
        for state in ("cold", "warm")
    ]
    parts = profile(folder, datasets, size)
    show(size, rows, parts)
    keep(str(size), {"rows": rows, "profile_ms": parts})


def show(size: int, rows: Sequence[dict], parts: dict) -> None:
    print(
        f"\n{size} px, {NUM_IMAGES[size]} images     samples/s (CPU ms a sample), times the folder: medians of {ROUNDS}"
    )
    for row in rows:
        cells = [
            f"{store} {row[f'{store}_per_s']:8.1f} ({row[f'{store}_cpu_ms']:6.2f}) "
            f"{row[f'{store}_times']:4.2f}x"
            for store in ("folder", "png", "tiff")
        ]
        print(f"  {row['workers']} workers {row['state']}   " + "   ".join(cells))
    for store, values in parts.items():
        print(f"  {store:6} " + ", ".join(f"{name} {value:g}" for name, value in values.items()))


def keep(name: str, values: dict) -> None:
    RESULT.parent.mkdir(exist_ok=True)
    known = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    known[name] = values
    known["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    RESULT.write_text(json.dumps(known, indent=1) + "\n")


def test_a_step_waits_less_for_images_that_were_expected(tmp_path: Path) -> None:
    """Print how long a training step waits for a batch of 4 at 1024 px: read then, or while the step before ran."""
    size, step_s, batches = 1024, 0.1, 8
    root = pack_all(render(tmp_path / "rendered", size), tmp_path / "packed", "auto")
    waits: dict[str, list[float]] = {"asked for when needed": [], "expected one step ahead": []}
    for name, rows in waits.items():
        images = ImageDataset(root, size, "binary", read=ReadConfig(threads=2, memory_mb=0))
        images.batch(range(4))
        for start in range(4, 4 * batches, 4):
            if name.startswith("expected"):
                images.expect(range(start, start + 4))
            time.sleep(step_s)  # a step on a GPU leaves the processor free
            begun_s = time.monotonic()
            images._ahead.hurry(range(start, start + 4))
            for number in range(start, start + 4):
                images._pixels(number)
            rows.append(1000 * (time.monotonic() - begun_s))
    medians = {name: round(float(np.median(rows)), 2) for name, rows in waits.items()}
    print("\nmilliseconds that a step waits for 4 images of 1024 px:", medians)
    keep("wait_ms", medians)
