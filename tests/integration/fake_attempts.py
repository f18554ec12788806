"""Runs whose workers follow a script, for tests of schedulers.

Attempts start from the code in the run folder, so a package put there takes the place of the real worker.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import get3d_cluster
from get3d_cluster.core.job import Cause, JobSpec, Outcome
from get3d_cluster.runtime.run_folder import RunFolder
from tests.launching import wait_until

SOURCE = Path(get3d_cluster.__file__).parent
TIMEOUT_S = 60

WORKER = """
import json, os, signal, sys, time
from pathlib import Path

run, rank, attempt = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["GET3D_ATTEMPT"])
folder = run / "attempts" / f"{attempt:04d}"
script = json.loads((run / "script.json").read_text())
part = {"seconds": 0.1, "on_term": "leave", "exits": {}, "save": 0}
part |= script.get("*", {}) | script.get(str(attempt), {})
told = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: told.append(time.time()))
if (folder / "notice.json").exists():  # as the real worker: a stop may be faster than the handlers
    told.append(time.time())


def write(name, data):
    aside = folder / f".{name}.{rank}"
    aside.write_text(json.dumps(data))
    aside.replace(folder / name)


def leave(cause, code):
    if rank == 0:
        step = part["save"] * attempt
        write("outcome.json", {"attempt": attempt, "cause": cause, "exit_code": code, "saved_step": step,
                               "start_step": max(0, step - part["save"]), "end_step": step})
    sys.exit(code)


names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GET3D_NODE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
env = {name: os.environ.get(name) for name in names}
print("worker", rank, "is up", flush=True)
write(f"started.{rank}", {"pid": os.getpid(), "group": os.getpgid(0), "file": __file__, "env": env})
end = time.monotonic() + part["seconds"]
while time.monotonic() < end and not (run / "released").exists():
    time.sleep(0.02)
    if told and not (folder / f"told.{rank}").exists():
        notice = folder / "notice.json"
        write(f"told.{rank}", {"at": told[0], "notice": json.loads(notice.read_text()) if notice.exists() else None})
    if told and part["on_term"] == "leave":
        cause = json.loads((folder / "notice.json").read_text())["cause"]
        leave(cause, 78 if cause == "cancelled" else 75)
if str(rank) in part["exits"]:
    sys.exit(part["exits"][str(rank)])
if rank == 0:
    (run / "DONE").write_text("")
leave("finished", 0)
"""


def make_run(
    path: Path, script: dict[str, Any] | None = None, config: str = "", kind: str = "steps"
) -> RunFolder:
    """Write a run whose attempts follow ``script``: attempt number or * -> seconds, on_term, exits, save."""
    package = path / "code" / "get3d_cluster"
    shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "worker.py").write_text(WORKER)
    (path / "script.json").write_text(json.dumps(script or {}))
    (path / "config.yaml").write_text(config)
    run = RunFolder(path)
    run.write_spec(JobSpec(name=path.name, job="fake", kind=kind, created="2026-01-01T00:00:00"))
    return run


def release(run: RunFolder) -> None:
    """Let the workers of this run come to their end now, however long they were to take."""
    (run.path / "released").touch()


def started(run: RunFolder, attempt: int, rank: int = 0) -> dict[str, Any]:
    """Wait until a worker is up; return what it says of itself."""
    return wait_for_file(run.attempt_dir(attempt) / f"started.{rank}")


def told(run: RunFolder, attempt: int, rank: int = 0) -> dict[str, Any]:
    """Wait until a worker got TERM; return when, and the notice it found."""
    return wait_for_file(run.attempt_dir(attempt) / f"told.{rank}")


def ended(run: RunFolder, attempt: int) -> Outcome:
    """Wait for the outcome of an attempt."""
    return wait_for(lambda: run.outcome(attempt), f"outcome of attempt {attempt} of {run.name}")


def wait_for_file(path: Path) -> dict[str, Any]:
    wait_for(path.exists, str(path))
    return json.loads(path.read_text())


def wait_for(fact: Callable[[], Any], what: str = "", timeout_s: float = TIMEOUT_S) -> Any:
    """Return the first true value of ``fact``."""
    return wait_until(fact, timeout_s, what)


def causes(run: RunFolder) -> list[Cause]:
    return [outcome.cause for outcome in run.outcomes()]
