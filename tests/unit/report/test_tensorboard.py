"""What TensorBoard shows of a run: each row once, whatever was killed or done again."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from get3d_cluster.data.camera_counts import camera_counts
from get3d_cluster.errors import StorageError
from get3d_cluster.report.tensorboard import FOLDER, MARK, TensorBoard, curves_of, forget_after
from get3d_cluster.runtime.run_folder import RunFolder
from tests import train_setup as setup


def run_at(folder: Path) -> RunFolder:
    run = RunFolder(folder)
    run.path.mkdir()
    return run


def rows(run: RunFolder, first: int, last: int, tint: float = 0.0) -> None:
    """Leave rows up to ``last``, those from ``first`` on new ones, as a resume and the steps after it do."""
    kept = run.metrics_path.read_text().splitlines() if run.metrics_path.exists() else []
    kept = [line for line in kept if json.loads(line)["step"] < first]
    fresh = [
        json.dumps({"step": step, "images": 8 * step, "loss_g": step + tint, "seconds": 1.0})
        for step in range(first, last + 1)
    ]
    run.metrics_path.write_text("\n".join([*kept, *fresh]) + "\n")


def resumed(run: RunFolder, attempt: int, step: int) -> None:
    with run.events_path.open("a") as file:
        file.write(json.dumps({"event": "resume", "attempt": attempt, "step": step, "rank": 0}) + "\n")


def records(file: Path) -> list[Any]:
    data, at, found = file.read_bytes(), 0, []
    while at + 12 <= len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        if at + 16 + size > len(data):
            break  # cut short by a kill
        found.append(Event.FromString(data[at + 12 : at + 12 + size]))
        at += 16 + size
    return found


def shown(run: RunFolder) -> list[tuple[int, float]]:
    """Return steps and values of a curve as TensorBoard does: a start makes it forget all from its step on."""
    found: list[tuple[int, float]] = []
    for file in sorted((run.path / FOLDER).glob("events.*"), key=lambda path: path.name.rpartition(".")[2]):
        for event in records(file):
            if event.session_log.status == SessionLog.START:
                found = [point for point in found if point[0] < event.step]
            found += [
                (event.step, value.simple_value)
                for value in event.summary.value
                if value.tag == "loss/loss_g"
            ]
    return found


def test_each_row_is_shown_once_over_resumes(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    first = TensorBoard(run, 1)
    rows(run, 1, 4)
    first.catch_up()
    rows(run, 5, 9)
    first.catch_up()
    rows(run, 7, 11, tint=0.5)  # resumed at step 6: 7 to 9 are done again
    resumed(run, 2, 6)
    TensorBoard(run, 2).catch_up()
    assert shown(run) == [(s, s + (0.5 if s > 6 else 0.0)) for s in range(1, 12)]


def test_rows_that_were_not_flushed_before_a_kill_are_no_gap(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    rows(run, 1, 4)
    TensorBoard(run, 1).catch_up()
    (file,) = (run.path / FOLDER).glob("events.*")
    whole = file.read_bytes()
    rows(run, 5, 9)  # written to metrics.jsonl only
    resumed(run, 2, 9)
    rows(run, 10, 12)
    TensorBoard(run, 2).catch_up()
    assert [step for step, _ in shown(run)] == list(range(1, 13))
    file.write_bytes(whole[:-5])  # and where the mark was lost as well
    (run.path / FOLDER / MARK).unlink()
    resumed(run, 3, 12)
    TensorBoard(run, 3).catch_up()
    assert [step for step, _ in shown(run)] == list(range(1, 13))


def test_the_newest_sheet_comes_along(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    run.samples_dir.mkdir()
    for images, colour in ((100, "red"), (200, "blue")):
        Image.new("RGB", (6, 4), colour).save(run.samples_dir / f"{images:09d}.png")
    rows(run, 1, 2)
    TensorBoard(run, 1).catch_up()
    (file,) = (run.path / FOLDER).glob("events.*")
    (sheet,) = [
        value.image for event in records(file) for value in event.summary.value if value.tag == "samples"
    ]
    assert (sheet.width, sheet.height) == (6, 4)
    assert sheet.encoded_image_string.startswith(b"\x89PNG")


def test_what_cannot_be_written_is_said_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from get3d_cluster.report import tensorboard

    run = run_at(tmp_path / "run")
    board = TensorBoard(run, 1)
    rows(run, 1, 3)
    board.catch_up()
    rows(run, 4, 6)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tensorboard.os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            board.catch_up()
    board.catch_up()
    assert [step for step, _ in shown(run)] == [1, 2, 3, 4, 5, 6]


def test_curves_are_numbers_in_groups() -> None:
    row = {
        "step": 3,
        "images": 24,
        "epoch": 1,
        "loss_g": 1.5,
        "r1_rgb": None,
        "logit_fake_rgb": -2.0,
        "name": "x",
    }
    assert curves_of(row) == {
        "progress/images": 24.0,
        "progress/epoch": 1.0,
        "loss/loss_g": 1.5,
        "logits/logit_fake_rgb": -2.0,
    }


def test_a_training_writes_its_last_row(tmp_path: Path) -> None:
    config = setup.tiny_config(
        setup.dataset(tmp_path / "data"), "watch.tensorboard_every_s=1000", "num_images=48"
    )
    work = setup.trainer(config, tmp_path / "run")
    while not work.is_done():
        work.step()
    steps = [step for step, _ in shown(RunFolder(tmp_path / "run"))]
    assert steps == list(range(1, work.position().step + 1))
    assert np.isfinite([value for _, value in shown(RunFolder(tmp_path / "run"))]).all()


def test_real_images_and_cameras_are_shown_once_over_resumes_and_late_ones_as_well(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    rows(run, 1, 4)
    TensorBoard(run, 1).catch_up()
    run.dataset_dir.mkdir()
    Image.new("RGB", (6, 4), "red").save(run.reals_path)
    run.cameras_path.write_text(json.dumps(camera_counts([0.0, 90.0], [5.0, 6.0], (0.0, 30.0))))
    board = TensorBoard(run, 1)
    for last in (6, 8):
        rows(run, last - 1, last)
        board.catch_up()
    assert pictures(run) == {"cameras": [6], "samples_real": [6]}
    resumed(run, 2, 7)
    rows(run, 8, 12)
    TensorBoard(run, 2).catch_up()
    assert pictures(run) == {"cameras": [6], "samples_real": [6]}
    resumed(run, 3, 3)  # from before they were shown: TensorBoard forgets them
    rows(run, 4, 9)
    TensorBoard(run, 3).catch_up()
    assert pictures(run) == {"cameras": [9], "samples_real": [9]}


def pictures(run: RunFolder) -> dict[str, list[int]]:
    """Return the steps at which TensorBoard shows each picture."""
    found: list[tuple[int, str]] = []
    for file in sorted((run.path / FOLDER).glob("events.*"), key=lambda path: path.name.rpartition(".")[2]):
        for event in records(file):
            if event.session_log.status == SessionLog.START:
                found = [(step, tag) for step, tag in found if step < event.step]
            found += [(event.step, value.tag) for value in event.summary.value if value.HasField("image")]
    return {tag: [step for step, name in found if name == tag] for _, tag in sorted(found)}


@pytest.mark.parametrize("is_open", [True, False])
def test_what_a_roll_back_took_back_is_forgotten(tmp_path: Path, is_open: bool) -> None:
    run = run_at(tmp_path / "run")
    board = TensorBoard(run, 1)
    rows(run, 1, 9)
    board.catch_up()
    rows(run, 5, 4)  # the rows are cut after step 4
    if is_open:
        board.rewind(4)
    else:  # by an attempt that has shown nothing yet
        forget_after(run, 4)
        board = TensorBoard(run, 2)
        resumed(run, 2, 8)
    rows(run, 5, 7, tint=0.5)
    board.catch_up()
    assert shown(run) == [(s, s + (0.5 if s > 4 else 0.0)) for s in range(1, 8)]
