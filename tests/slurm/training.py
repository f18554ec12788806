"""Trainings on the private SLURM: disturbed in every way, and compared with one that nobody disturbed."""

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from get3d_cluster.config import read_section
from get3d_cluster.core.job import Cause, Outcome, Resources
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import slurm_files
from get3d_cluster.schedulers.slurm import SlurmScheduler
from tests.slurm.cluster import Cluster
from tests.slurm.noting_job import noted
from tests.workers import PLAIN, final_digest, logs, make_run, run_to_end

NOTING = "tests.slurm.noting_job"
TIMEOUT_S = 90.0


class Training:
    """One run on SLURM, and what a test has to know of it."""

    def __init__(self, cluster: Cluster, run: RunFolder) -> None:
        self.cluster = cluster
        self.run = run

    # ------------------------------------------------------------ what it does

    def submit(self, after: Sequence[RunFolder] = ()) -> str:
        """Queue the run as its configuration says; return the job's id."""
        resources = read_section(Resources, self.run.config_path, "resources")
        return SlurmScheduler().submit(self.run, resources, after)

    def job(self, attempt: int) -> str:
        """Return the id of the job in which an attempt runs."""
        place = slurm_files.read_place(self.run, attempt)
        assert place is not None, self.story()
        return place.job

    def hosts(self, attempt: int) -> tuple[str, ...]:
        place = slurm_files.read_place(self.run, attempt)
        assert place is not None, self.story()
        return place.hosts

    def wait(self, fact: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Return the first true value of ``fact``; a failure tells the whole story of the run."""
        deadline = time.monotonic() + timeout_s
        while not (value := fact()):
            assert time.monotonic() < deadline, f"not after {timeout_s:.0f} s: {what}\n{self.story()}"
            time.sleep(0.1)
        return value

    def wait_steps(self, attempt: int, count: int, timeout_s: float = TIMEOUT_S) -> int:
        """Wait until an attempt has done ``count`` steps; return the step that it has reached."""

        def reached() -> int:
            begun = self.events("start", attempt) + self.events("resume", attempt)
            rows = read_rows(self.run.metrics_path)
            last = max((row["step"] for row in rows), default=0)
            return last if begun and last >= begun[0]["step"] + count else 0

        return int(self.wait(reached, f"{count} steps of attempt {attempt}", timeout_s))

    def wait_outcome(self, attempt: int, timeout_s: float = TIMEOUT_S) -> Outcome:
        found = self.wait(lambda: self.run.outcome(attempt), f"outcome of attempt {attempt}", timeout_s)
        assert isinstance(found, Outcome)
        return found

    def wait_place(self, attempt: int, timeout_s: float = TIMEOUT_S) -> slurm_files.Place:
        """Wait until the job of an attempt has begun; its workers start next."""
        read = functools.partial(slurm_files.read_place, self.run, attempt)
        place = self.wait(read, f"attempt {attempt} has a place", timeout_s)
        assert isinstance(place, slurm_files.Place)
        return place

    def pid(self, attempt: int, rank: int) -> int:
        """Return the process of a worker, found by its environment."""
        folder = self.run.attempt_dir(attempt)
        mark = f"GET3D_EARLY={folder}/early.rank{rank:04d}".encode()

        def found() -> int:
            for process in Path("/proc").iterdir():
                with contextlib.suppress(OSError):
                    is_python = b"_submit" in (process / "cmdline").read_bytes()
                    if is_python and mark in (process / "environ").read_bytes().split(b"\0"):
                        return int(process.name)
            return 0

        return int(self.wait(found, f"process of rank {rank}"))

    def wait_done(self, timeout_s: float = TIMEOUT_S) -> None:
        self.wait(self.run.is_done, "DONE", timeout_s)
        self.wait_outcome(self.run.attempts()[-1])  # is written after DONE

    def wait_absent(self, timeout_s: float = TIMEOUT_S) -> None:
        self.wait(lambda: SlurmScheduler().standing(self.run).state == "absent", "it left", timeout_s)

    # ------------------------------------------------------------ what it left

    def events(self, event: str, attempt: int | None = None) -> list[dict[str, Any]]:
        rows = [row for row in read_rows(self.run.events_path) if row["event"] == event]
        return [row for row in rows if attempt in (None, row["attempt"])]

    def causes(self) -> list[Cause]:
        return [outcome.cause for outcome in self.run.outcomes()]

    def lost(self) -> list[int]:
        """Return the steps that each attempt did and did not save."""
        return [outcome.end_step - outcome.saved_step for outcome in self.run.outcomes()]

    def exits(self, attempt: int) -> dict[int, int]:
        """Return the exit codes of an attempt's workers by rank, as far as they have left."""
        return {end.rank: end.code for end in slurm_files.exits(self.run, attempt)}

    def check_stopped_together(self, attempt: int) -> None:
        """All workers of a saved attempt left in order, after the same step, which is the saved one."""
        outcome = self.wait_outcome(attempt)
        self.wait(lambda: len(self.exits(attempt)) == outcome.world_size, "all workers have left", 20)
        assert set(self.exits(attempt).values()) == {outcome.exit_code}, self.story()
        steps = noted(self.run, attempt)
        assert steps == dict.fromkeys(range(outcome.world_size), outcome.end_step), self.story()
        (told,) = self.events("notice", attempt)
        assert told["step"] == outcome.end_step == outcome.saved_step, self.story()

    def check_end(self, reference: str) -> None:
        """The state is that of the undisturbed run; one attempt at a time published."""
        assert final_digest(self.run) == reference, self.story()
        saves = [(row["attempt"], row["step"], row["digest"]) for row in self.events("save")]
        attempts, steps, _ = zip(*saves, strict=True)
        assert list(attempts) == sorted(attempts), self.story()
        assert list(steps) == sorted(steps), self.story()
        assert len({(step, digest) for _, step, digest in saves}) == len(set(steps)), "one step, two states"
        assert len(self.events("finish")) == 1, self.story()
        rows = [row["step"] for row in read_rows(self.run.metrics_path)]
        assert rows == list(range(1, 1 + len(rows))), "metrics have a gap or a duplicate"
        begun = {row["attempt"]: row["step"] for row in self.events("start") + self.events("resume")}
        stands, cause = 0, None
        for outcome in self.run.outcomes():
            resumed = begun.get(outcome.attempt, stands)
            # The worker of a lost node may save until the next attempt takes over.
            assert resumed == stands or (cause is Cause.NODE_FAILURE and resumed > stands), self.story()
            stands, cause = max(stands, outcome.saved_step), outcome.cause

    def story(self) -> str:
        """Return all that the run and SLURM say, for the failure of a test."""
        files = [self.run.events_path, *sorted(self.run.slurm_dir.glob("*.out"))]
        texts = [f"== {path}\n{path.read_text()[-6000:]}" for path in files if path.exists()]
        queue = self.cluster.squeue("-o", "%i %T %r %N")
        return "\n".join([queue, logs(self.run), *texts, *map(str, self.run.outcomes())])


def make_training(cluster: Cluster, path: Path, *overrides: str, job: str = NOTING) -> Training:
    """Write the folder of a run that goes to SLURM."""
    run = make_run(path, job, *overrides)
    run.write_spec(dataclasses.replace(run.spec(), scheduler="slurm"))
    return Training(cluster, run)


def started(cluster: Cluster, path: Path, *overrides: str, job: str = NOTING) -> Training:
    """Submit a training; return it at once."""
    training = make_training(cluster, path, *overrides, job=job)
    training.submit()
    return training


@functools.cache
def reference(num_steps: int, job: str = PLAIN, *overrides: str) -> str:
    """Return the final digest of the same job, run by one local worker that nobody disturbs."""
    with tempfile.TemporaryDirectory() as folder:
        return run_to_end(make_run(Path(folder) / "whole", job, f"num_steps={num_steps}", *overrides))
