"""A dataset on a server that speaks S3: the same images and the same weights as from a folder, whatever goes wrong."""

import dataclasses
import hashlib
import http.client
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from get3d_cluster.data.config import ReadConfig
from get3d_cluster.data.dataset import ImageDataset
from get3d_cluster.data.format import PackedImages, digest_of
from get3d_cluster.data.source import open_source
from get3d_cluster.errors import DifferenceError, StorageError, UsageError
from get3d_cluster.storage import open_storage, remote
from jobs import check
from tests.launching import wait_until
from tests.train_setup import dataset as make_dataset
from tests.train_setup import tiny_config, trainer

BUCKET, NUM_IMAGES = "bucket", 20
CACHE_GB = 5e-6
"""Room for about half of the images: pieces go and come all the time."""


class Server:
    """An S3 server on this machine, in a process of its own."""

    def __init__(self) -> None:
        while not self._is_up():
            self.stop()  # another process was faster to take that port

    def _is_up(self) -> bool:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "1000000000"}
        self.process = subprocess.Popen(
            words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: self._answers() or self.process.poll() is not None)
        return self.process.poll() is None

    def _answers(self) -> bool:
        try:
            self.post("/moto-api/reset", b"")
        except OSError:
            return False
        return True

    def post(self, path: str, body: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST", path, body)
        connection.getresponse().read()
        connection.close()

    def allow(self, *, everybody: bool) -> None:
        """Ask for valid credentials from now on, or for none."""
        self.post("/moto-api/reset-auth", b"1000000000" if everybody else b"0")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield server
    server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "data")


@pytest.fixture
def url(server: Server, folder: Path, tmp_path: Path) -> str:
    """Where the dataset lies on the server."""
    place = f"{BUCKET}-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    fs, _ = remote.connect("s3://")
    fs.mkdir(place)
    for path in folder.iterdir():
        fs.pipe_file(f"{place}/data/{path.name}", path.read_bytes())
    return f"s3://{place}/data"


def put(url: str, name: str, data: bytes) -> None:
    fs, root = remote.connect(url)
    fs.pipe_file(f"{root}/{name}", data)


def cached(tmp_path: Path, **settings) -> ReadConfig:
    return ReadConfig(**{"cache": tmp_path / "cache", "cache_gb": CACHE_GB, "memory_mb": 0} | settings)


def test_images_from_s3_are_those_of_the_folder(url: str, folder: Path) -> None:
    near, far = PackedImages(folder), PackedImages(url)
    assert far.fingerprint == near.fingerprint
    assert [far.read(i) for i in range(NUM_IMAGES)] == [near.read(i) for i in range(NUM_IMAGES)]


def test_a_training_on_s3_ends_with_the_same_weights(url: str, folder: Path, tmp_path: Path) -> None:
    weights = []
    for number, path in enumerate((folder, url)):
        config = tiny_config(folder, "num_images=24")
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))
        work = trainer(config, tmp_path / f"run{number}")
        while not work.is_done():
            work.step()
        weights.append(work.generator.state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def read_all(url: str, read: ReadConfig, rounds: int, answer: str) -> None:
    """Read everything in a process of its own, again and again; leave a digest of what came."""
    images, digest = ImageDataset(url, 8, read=read), hashlib.sha256()
    for start in range(rounds):
        numbers = [(start + n * 7) % NUM_IMAGES for n in range(NUM_IMAGES)]
        images.expect(numbers)
        for begin in range(0, NUM_IMAGES, 5):
            batch, _ = images.batch(numbers[begin : begin + 5])
            digest.update(batch.numpy().tobytes())
    Path(answer).write_text(digest.hexdigest())


def test_workers_share_a_small_cache_while_some_of_them_are_killed(
    url: str, folder: Path, tmp_path: Path
) -> None:
    rounds, rng = 6, random.Random(0)
    read_all(str(folder), ReadConfig(), rounds, str(tmp_path / "wanted"))
    context = multiprocessing.get_context("fork")  # a spawned one imports torch for seconds
    answers = [tmp_path / f"answer{n}" for n in range(3)]
    staying = [
        context.Process(target=read_all, args=(url, cached(tmp_path, threads=4), rounds, str(answer)))
        for answer in answers
    ]
    for worker in staying:
        worker.start()
    while any(worker.is_alive() for worker in staying):
        killed = context.Process(target=read_all, args=(url, cached(tmp_path), 10**6, os.devnull))
        killed.start()
        time.sleep(0.3 + rng.random())
        killed.kill()
        killed.join()
        assert killed.exitcode == -signal.SIGKILL
    assert [worker.exitcode for worker in staying] == [0, 0, 0]
    assert {answer.read_text() for answer in answers} == {(tmp_path / "wanted").read_text()}
    kept = [path for path in (tmp_path / "cache").glob("*/*") if path.is_file()]
    assert kept
    assert sum(path.stat().st_size for path in kept) <= CACHE_GB * 1e9


def test_credentials_that_may_not_read_are_told_at_once(url: str, server: Server) -> None:
    images = PackedImages(url)
    server.allow(everybody=False)
    try:
        begun_s = time.monotonic()
        with pytest.raises(UsageError, match=r"cannot read 02958343/0000/003: .*credentials") as caught:
            images.read(3)
        assert time.monotonic() - begun_s < sum(remote.WAITS_S)  # it was not tried again
        assert "credentials" in caught.value.way_out
    finally:
        server.allow(everybody=True)
    images.read(3)


def test_a_server_that_does_not_answer_for_a_moment_is_waited_for(url: str, server: Server) -> None:
    images = PackedImages(url)
    server.process.send_signal(signal.SIGSTOP)
    threading.Timer(1.0, server.process.send_signal, [signal.SIGCONT]).start()
    assert digest_of(images.read(2)) == images.samples[2].xxh3_64


def test_a_server_that_stays_away_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = PackedImages(url)
    monkeypatch.setattr(remote, "WAITS_S", (0.05,))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # by the backend itself, for each of ours
    with socket.socket() as nobody:  # a port at which no one answers
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        images._source = open_source(url)
        with pytest.raises(
            StorageError, match=r"cannot read 02958343/0000/003: s3://.*shard-00000.tar .*reach"
        ):
            images.read(3)


def test_a_forked_child_reads_on_with_a_connection_of_its_own(url: str) -> None:
    images = PackedImages(url)
    wanted = images.read(4)
    child = os.fork()
    if not child:
        os._exit(0 if images.read(4) == wanted else 1)
    assert images.read(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_shard_that_was_replaced_is_told_by_reading_and_listed_by_the_check(
    url: str, folder: Path, tmp_path: Path
) -> None:
    images = PackedImages(url)
    content = bytearray((folder / "shard-00000.tar").read_bytes())
    content[images.samples[7].offset + 20] ^= 1
    put(url, "shard-00000.tar", bytes(content))
    assert images.read(6)
    with pytest.raises(UsageError, match=r"02958343/0001/003 .* damaged"):
        images.read(7)
    session = SimpleNamespace(
        rank=0,
        world_size=1,
        attempt=1,
        is_lead=True,
        run=SimpleNamespace(path=tmp_path / "run"),
        events=SimpleNamespace(write=lambda *_, **__: None),
    )
    work = check.make(check.Config(data=url), session)
    with pytest.raises(DifferenceError, match="1 damaged"):
        while not work.is_done():
            work.step()
    (row,) = (json.loads(line) for line in (tmp_path / "run/check.jsonl").read_text().splitlines())
    assert row["key"] == "02958343/0001/003"
    put(url, "shard-00000.tar", bytes(content[:-512]))
    with pytest.raises(UsageError, match=r"shard-00000.tar has \d+ bytes instead of"):
        PackedImages(url)


def test_a_bucket_or_file_that_is_not_there_is_named(url: str) -> None:
    with pytest.raises(UsageError, match=r"s3://no-such-bucket/data/index.json is missing"):
        PackedImages("s3://no-such-bucket/data")
    with pytest.raises(UsageError, match=r"/other/index.json is missing"):
        PackedImages(f"{url}/other")


def test_checkpoints_live_on_s3_too(url: str) -> None:
    storage = open_storage(f"{url}/run")
    storage.write("step-1", {"a": b"12", "manifest.json": b"{}"})
    assert storage.list() == ["step-1"]
    assert bytes(storage.read("step-1", "a")) == b"12"
    with pytest.raises(StorageError, match="exists already"):
        storage.write("step-1", {"a": b"13", "manifest.json": b"{}"})
    storage.delete("step-1")
    assert storage.list() == []


def test_files_and_sockets_are_closed(url: str, tmp_path: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    read = cached(tmp_path, threads=4)
    images = ImageDataset(url, 8, read=read)
    images.batch(range(NUM_IMAGES))
    before = count()
    for _ in range(5):
        images.expect(range(NUM_IMAGES))
        images.batch(range(NUM_IMAGES))
    assert count() <= before + 10  # connections that are kept for the next requests
