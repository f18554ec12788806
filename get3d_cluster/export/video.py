"""Turntables as MP4, by an ffmpeg that is found on this machine; nothing is bundled.

An encoder is a program of its own: `ffmpeg` on the PATH, or the one that `pip install imageio-ffmpeg` brings. The same
frames through the same ffmpeg give the same bytes.
"""

import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from get3d_cluster.errors import UsageError
from get3d_cluster.export.mesh import Pixels
from get3d_cluster.storage.local import write_atomic

INSTALL = "install ffmpeg, or: pip install imageio-ffmpeg"
_TIMEOUT_S = 300.0


def find_encoder() -> Path | None:
    """Return an ffmpeg, or None if this machine has none."""
    found = shutil.which("ffmpeg")
    if found:
        return Path(found)
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        return None
    import imageio_ffmpeg

    try:
        return Path(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:  # the package without its program
        return None


def write_mp4(
    path: Path,
    frames: Pixels,  # [N, H, W, 3]
    encoder: Path,
    *,
    fps: int = 12,
) -> None:
    """Encode frames as H.264 that browsers and phones play.

    Raises: UsageError with the last words of ffmpeg if it fails; StorageError if ``path`` cannot be written.
    """
    frames = _even(frames)
    with tempfile.TemporaryDirectory(prefix="get3d-mp4-") as folder:
        made = Path(folder) / "turn.mp4"
        command = _command(encoder, made, frames.shape[2], frames.shape[1], fps)
        try:
            done = subprocess.run(
                command, input=frames.tobytes(), capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UsageError(f"{encoder} does not run: {error}", f"mp4=off, or {INSTALL}") from error
        if done.returncode or not made.is_file():
            words = " ".join(done.stderr.decode(errors="replace").split())[-300:]
            raise UsageError(
                f"{encoder} made no MP4 (exit {done.returncode}): {words}", f"mp4=off, or {INSTALL}"
            )
        write_atomic(path, made.read_bytes())


def _even(frames: Pixels) -> Pixels:
    """Repeat the last row and column where their number is odd: H.264 halves the colours."""
    odd = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    return np.pad(frames, odd, mode="edge")


def _command(encoder: Path, target: Path, width: int, height: int, fps: int) -> list[str]:
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    # One thread and no dates or versions in the file: the same bytes each time.
    fixed = ["-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"]
    coded = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    return [
        str(encoder),
        "-nostdin",
        "-hide_banner",
        "-loglevel",
        "error",
        "-y",
        *raw,
        *fixed,
        *coded,
        str(target),
    ]
