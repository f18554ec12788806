"""A private SLURM for tests: started in a folder of its own, and gone with the process that made it."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DOCKER = Path(__file__).parents[2] / "docker" / "slurm"
PROGRAM = DOCKER / "one_host.py"
DEFAULTS: dict[str, object] = {"grace": 10, "cancel_grace": 10, "kill_wait": 5, "user_signal": "no"}


def why_not() -> str:
    """Say why no SLURM can be started here; empty when it can."""
    check = subprocess.run(
        ["sh", str(DOCKER / "packages.sh"), "--check"], capture_output=True, text=True, check=False
    )
    return check.stderr.strip()


def flags(settings: dict[str, object]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def wait_until(
    ready: Callable[[], object], what: str, seconds: float = 60.0, show: Callable[[], str] = str
) -> None:
    """Wait for a fact."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"not after {seconds} s: {what}\n{show()}"
        time.sleep(0.1)


class Cluster:
    """One SLURM, its commands, and what happens to it: preemption, death of a node, settings."""

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        self.folder = folder
        self.first = DEFAULTS | settings
        self.settings = dict(self.first)
        self.killed: set[str] = set()
        self.nodes = int(str(settings.get("nodes", 4)))
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self.environment = clean | {"SLURM_CONF": str(folder / "slurm.conf")}

    # ------------------------------------------------------------ life

    def program(self, command: str, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, str(PROGRAM), command, str(self.folder), *words],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command} {words}: {done.stdout}{done.stderr}"

    def start(self) -> None:
        self.program("up", *flags(self.settings))

    def stop(self) -> None:
        self.program("down")

    def change(self, **settings: object) -> None:
        """Write slurm.conf anew and have the controller read it."""
        self.program("set", *flags(settings))
        self.settings |= settings

    def set_grace(self, partition: str, seconds: int) -> None:
        self.change(**{"low": {"grace": seconds}, "cancel": {"cancel_grace": seconds}}[partition])

    def set_user_signal(self, on: bool) -> None:
        self.change(user_signal="yes" if on else "no")

    def kill_slurmd(self, node: str) -> None:
        """Kill the daemon of one node; the processes of its jobs live on."""
        self.program("kill", f"--daemon={node}")
        self.killed.add(node)

    def start_slurmd(self, node: str) -> None:
        self.program("start", f"--daemon={node}")
        self.killed.discard(node)

    # ------------------------------------------------------------ commands

    def run(self, *command: str, ok: bool = True) -> str:
        """Return what a command of SLURM prints; with ok=False also when it fails."""
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert not ok or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def scontrol(self, *words: str) -> str:
        return self.run("scontrol", *words)

    def squeue(self, *words: str) -> str:
        return self.run("squeue", "-h", *words)

    def sacct(self, job: str, *fields: str) -> list[list[str]]:
        """Return the rows of one job's allocation, earlier incarnations first."""
        rows = self.run("sacct", "-XDnP", "-j", job, "-o", ",".join(fields)).splitlines()
        return [row.split("|") for row in rows]

    def submit(self, script: str, *words: str) -> str:
        """Submit the text of a batch script; return the job's id."""
        path = self.folder / f"{time.monotonic_ns()}.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        output = ("-o", f"{self.folder}/%j.out", "--open-mode=append")
        return self.run("sbatch", "--parsable", *output, *words, str(path))

    def job(self, job: str) -> dict[str, str]:
        """Return the controller's record of a job, empty when it has forgotten it."""
        words = self.run("scontrol", "show", "job", "-o", job, ok=False).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: str) -> str:
        return self.job(job).get("JobState", "")

    def wait_until(self, ready: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        """Wait for a fact; the failure shows the queue."""
        wait_until(ready, what, seconds, self.squeue)

    def wait_state(self, job: str, *states: str, seconds: float = 60.0) -> None:
        self.wait_until(lambda: self.state(job) in states, f"{job} is one of {states}", seconds)

    # ------------------------------------------------------------ what happens

    def preempt(self, nodes: int | str, seconds: float) -> str:
        """Submit a job that takes whole nodes from others: so many, or those of a node list."""
        which = f"--nodes={nodes}" if isinstance(nodes, int) else f"--nodelist={nodes}"
        high = "--qos=high" if self.settings.get("preempt") == "qos" else "--partition=high"
        return self.submit(f"exec sleep {seconds}", high, which, "--exclusive", "-J", "preemptor")

    def clear(self) -> None:
        """End all jobs, bring all nodes back, and undo what a test has set."""
        if self.settings != self.first:
            self.change(**self.first)
        for node in sorted(self.killed):
            self.start_slurmd(node)
        self.wait_until(self.cleared, "no jobs, and all nodes idle")

    def cleared(self) -> bool:
        """End jobs and revive nodes; say whether nothing was left to do."""
        jobs = self.squeue("-r", "-o", "%A").split()
        if jobs:
            self.run("scancel", *jobs, ok=False)
            self.program("kill", "--daemon=jobs")  # scancel alone waits KillWait for deaf ones
        for node in self.nodes_in("down", "drain"):
            self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", ok=False)
        return not jobs and len(self.nodes_in("idle")) == self.nodes

    def nodes_in(self, *states: str) -> list[str]:
        return self.run("sinfo", "-hN", "-p", "low", "-t", ",".join(states), "-o", "%N").split()


@contextlib.contextmanager
def running(**settings: object) -> Iterator[Cluster]:
    """Start a cluster for a with block; whatever happens to this process, it is taken down."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of a socket has 107 characters
    watcher = subprocess.Popen(
        [sys.executable, str(PROGRAM), "watch", str(folder), "--wipe"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    cluster = Cluster(folder, settings)
    try:
        cluster.start()
        yield cluster
    finally:
        # The watcher sees the end of its input here, too, so that there is one way down.
        watcher.communicate(timeout=60)
