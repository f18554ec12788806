"""MP4 where there is an ffmpeg, and plain words where there is none."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from get3d_cluster.errors import UsageError
from get3d_cluster.export import video

FRAMES = np.random.default_rng(0).integers(0, 255, (5, 33, 51, 3), np.uint8)


def encoder() -> Path:
    found = video.find_encoder()
    if found is None:
        pytest.skip(f"no ffmpeg on this machine; {video.INSTALL}")
    return found


def test_frames_of_odd_sizes_become_the_same_mp4_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        video.write_mp4(tmp_path / f"{name}.mp4", FRAMES, encoder())
    data = (tmp_path / "a.mp4").read_bytes()
    assert data[4:8] == b"ftyp"
    assert data == (tmp_path / "b.mp4").read_bytes()
    command = [
        encoder(),
        "-nostdin",
        "-v",
        "error",
        "-i",
        tmp_path / "a.mp4",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
    ]
    read = subprocess.run([*command, "-"], capture_output=True, check=True, timeout=60).stdout
    assert len(read) == 5 * 34 * 52 * 3


def test_without_any_ffmpeg_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    assert video.find_encoder() is None


def test_an_ffmpeg_that_fails_is_quoted_and_leaves_no_file(tmp_path: Path) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\ncat >/dev/null\necho 'Unknown encoder libx264' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(UsageError, match="Unknown encoder libx264") as caught:
        video.write_mp4(tmp_path / "turn.mp4", FRAMES, program)
    assert "mp4=off" in caught.value.way_out
    assert not (tmp_path / "turn.mp4").exists()
    with pytest.raises(UsageError, match="does not run"):
        video.write_mp4(tmp_path / "turn.mp4", FRAMES, tmp_path / "missing")
