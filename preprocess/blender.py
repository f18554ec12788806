"""The Blender worker process as its parent sees it: started, asked, and killed when it hangs.

The protocol is in docs/blender_worker.md.
"""

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from get3d_cluster.errors import UsageError
from get3d_cluster.runtime.env import child_environment
from preprocess.scratch import Scratch

WORKER_PROGRAM = Path(__file__).with_name("blender_worker.py")
PROTOCOL = 2
START_TIMEOUT_S = 300.0
"""Blender is 800 MB of files; a cold network file system takes its time."""
EXIT_TIMEOUT_S = 5.0
POLL_S = 0.5
GIVEN_UP = "given-up"
"""Reason of a failure that is nobody's fault: we were told to stop."""
LOG_LIMIT_BYTES = 8_000_000
LOG_TAIL_BYTES = 2000
PACKAGES = {
    "libX11.so.6": "libx11-6",
    "libXrender.so.1": "libxrender1",
    "libXfixes.so.3": "libxfixes3",
    "libXi.so.6": "libxi6",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libSM.so.6": "libsm6",
    "libICE.so.6": "libsm6",
    "libGL.so.1": "libgl1",
}
"""Debian and Ubuntu package of each shared library that a minimal system lacks."""

Reply = dict[str, Any]


class WorkerFailedError(Exception):
    """Blender died, hung or made a damaged image; trying again may help."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RejectedError(Exception):
    """The request or the model itself is at fault; trying again gives the same."""

    def __init__(self, reason: str, message: str, missing: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.missing = missing
        """Shared libraries that the worker lacks, when it cannot load Blender."""


def blender_command(program: Path, replies_to: int) -> list[str]:
    """Return the command line of a worker: ``program`` is a Python that has bpy, or an installed Blender."""
    arguments = [str(WORKER_PROGRAM), "--", str(replies_to), str(os.getpid())]
    if program.name.startswith("blender"):
        return [
            str(program),
            "--background",
            "--factory-startup",
            "--python-exit-code",
            "1",
            "--python",
            *arguments,
        ]
    return [str(program), "-P", *arguments]


def missing_package_error(message: str, libraries: Sequence[str]) -> UsageError:
    """Return what to tell a person whose system lacks shared libraries of Blender."""
    packages = sorted({PACKAGES[name] for name in libraries if name in PACKAGES})
    unknown = [name for name in libraries if name not in PACKAGES]
    what = f"Blender cannot start: {message}"
    if libraries:
        what += f"\nmissing system libraries: {', '.join(libraries)}"
    if packages and not unknown:
        return UsageError(what, f"install them: apt-get install --no-install-recommends {' '.join(packages)}")
    return UsageError(what, "run `make setup` to rebuild .venv-render, and install the libraries named above")


def check_program(program: Path) -> None:
    """Check that the render environment is there. Raises: UsageError."""
    if not os.access(program, os.X_OK):
        raise UsageError(
            f"blender={program} is not there: images are rendered by Blender in an environment of its own",
            "run `make setup`, or set blender= to an installed Blender 4.2 or later",
        )


def _refusal(error: RejectedError) -> UsageError:
    """Return what to tell a person whose Blender started and cannot do what is needed."""
    if error.reason == "import":
        return missing_package_error(str(error), error.missing)
    if error.reason == "no-gpu":
        way_out = (
            "set device=cpu, or ask for GPUs with resources.gpus_per_worker=1 where nvidia-smi shows some"
        )
        return UsageError(str(error), way_out)
    return UsageError(
        f"this Blender cannot be used: {error}",
        "set blender= to an installed Blender 4.2 or later, or leave it out to take that of `make setup`",
    )


class Blender:
    """A worker process; started, asked, and killed when it hangs or we leave. Requests raise ``WorkerFailedError``."""

    def __init__(self, program: Path, log: Path) -> None:
        self.program = program
        self.log = log
        self.scratch = Scratch()
        self.keep_waiting: Callable[[], bool] = lambda: True
        """Asked about twice a second while a reply is awaited; False gives the reply up and kills the process."""
        self._process: subprocess.Popen[bytes] | None = None
        self._replies = -1
        self._unread = b""

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        """Process id; 0 when it does not run."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start a fresh process. Raises: UsageError if the program is not there."""
        assert self._process is None
        check_program(self.program)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        replies, theirs = os.pipe()
        temporary = self.scratch.fresh("blender")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                blender_command(self.program, theirs),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(theirs,),
                env=child_environment(
                    {"TMPDIR": str(temporary), "TEMP": str(temporary), "TMP": str(temporary)}
                ),
                start_new_session=True,  # a Ctrl-C is for us; we decide when Blender ends
            )
        os.close(theirs)
        self._replies, self._unread = replies, b""

    def ask(self, op: str, timeout_s: float, **fields: Any) -> Reply:
        """Send one request and return its reply.

        Raises: WorkerFailedError on a crash or a timeout (the process is then gone); RejectedError if it refuses.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **fields}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._crashed(op) from None
        line = self._read_line(op, timeout_s)
        try:
            reply: Reply = json.loads(line)
            is_ok = bool(reply["ok"])
        except (ValueError, KeyError, TypeError):
            self.kill()
            raise WorkerFailedError("crash", f"Blender's answer to {op} is garbled: {line[:80]!r}") from None
        if not is_ok:
            raise RejectedError(reply["code"], reply["message"], reply.get("missing", ()))
        return reply

    def hello(self) -> Reply:
        """Greet a fresh process and return what it is.

        Raises: UsageError naming the packages if system libraries are missing, or the log's end if it does not start;
        WorkerFailedError if we were told to stop.
        """
        reply = self._begin("hello", START_TIMEOUT_S)
        if reply["protocol"] != PROTOCOL:
            self.kill()
            raise UsageError(
                f"the render worker speaks protocol {reply['protocol']}, not {PROTOCOL}",
                "use the blender_worker.py of this version",
            )
        return reply

    def configure(self, timeout_s: float, **settings: Any) -> Reply:
        """Prepare a greeted process for all models to come. Raises: as ``hello``."""
        return self._begin("configure", timeout_s, **settings)

    def log_tail(self) -> str:
        """Return the end of what Blender printed."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace")
        return ""

    def trim_log(self) -> None:
        """Empty the log when it has grown: Blender prints dozens of lines for each view."""
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > LOG_LIMIT_BYTES:
                os.truncate(self.log, 0)

    def kill(self) -> None:
        """End the process at once; nothing it holds is worth saving. Nothing happens if there is none."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # closing flushes into a pipe without a reader
            self._process.stdin.close()
        os.close(self._replies)
        self._process = None
        self.scratch.close()

    def _read_line(self, op: str, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0:
                self.kill()
                raise WorkerFailedError("timeout", f"no reply to {op} within {timeout_s:g} s")
            if not select.select([self._replies], [], [], min(left, POLL_S))[0]:
                if self.keep_waiting():
                    continue
                self.kill()
                raise WorkerFailedError(GIVEN_UP, f"told to stop during {op}")
            received = os.read(self._replies, 65536)
            if not received:
                raise self._crashed(op)
            self._unread += received
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def _crashed(self, op: str) -> WorkerFailedError:
        assert self._process is not None
        try:
            code = self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        return WorkerFailedError("crash", f"Blender died during {op}, exit code {code}")

    def _begin(self, op: str, timeout_s: float, **fields: Any) -> Reply:
        """Ask what no model has a part in: where it fails, all of them would."""
        try:
            return self.ask(op, timeout_s, **fields)
        except (WorkerFailedError, RejectedError) as error:
            self.kill()
            if error.reason == GIVEN_UP:
                raise
            raise self._unusable(error) from error

    def _unusable(self, error: WorkerFailedError | RejectedError) -> UsageError:
        if isinstance(error, RejectedError):
            return _refusal(error)
        last = self.log_tail().strip().splitlines()[-1:]
        return UsageError(
            f"Blender does not start: {error}\n{''.join(last)}", f"see {self.log}; try `launch.py doctor`"
        )
