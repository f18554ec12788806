"""Proves the promise on a job of one's own: real workers, real signals at random moments, digests compared.

One run goes from start to end undisturbed. A second one of the same config is stopped again and again, by a notice or
by ``kill -9``, in every phase of an attempt, and comes back each time, on the next number of workers of a list. Both
must end with the same SHA-256 of the whole training state.
"""

import dataclasses
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from get3d_cluster.config import find_job, save_text
from get3d_cluster.core.job import JobSpec
from get3d_cluster.errors import ExitCode, Get3dError, UsageError
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder, read_json
from get3d_cluster.runtime.watchdog import read_heartbeat
from get3d_cluster.schedulers.local_machine import visible_gpus
from get3d_cluster.simulate.lookout import Lookout
from get3d_cluster.simulate.verdict import Plan, Stop, Verdict, changed_environments, sentence
from get3d_cluster.simulate.workers import Workers, kill, none_left, start_workers, wait

Aim = Literal["start", "first step", "step", "preview", "measure", "save", "publish", "leave"]

NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
COME_BACK = (ExitCode.SUSPENDED, ExitCode.SUSPENDED_PERIODIC)
AIMS: dict[Aim, int] = {
    "start": 4,
    "first step": 2,
    "step": 4,
    "preview": 1,
    "measure": 1,
    "save": 3,
    "publish": 3,
    "leave": 1,
}
"""How often each moment is aimed at. What was hit is looked up when the signal is sent."""
ONE_OF_ALL = 0.3
"""Share of the kills that hit one worker alone, as when its machine dies."""
POLL_S = 0.02
FAST_POLL_S = 0.003
"""For moments that last milliseconds."""
AHEAD_STEPS = 2
TOLD_S = 10.0
"""Between two lines about the uninterrupted run."""


@dataclass(frozen=True, kw_only=True)
class _Blow:
    """One stop that is to come."""

    world_size: int
    fraction: float
    """Of the run, after which it falls; moments of a start do not wait for it."""
    aim: Aim
    share: float
    """Of the time that the moment lasts, 0 to 1."""
    notice: signal.Signals
    is_kill: bool
    is_alone: bool
    """Whether a kill hits one worker only."""
    rank: int


def simulate(job: str, config: Any, folder: Path, plan: Plan, tell: Callable[[str], None]) -> Verdict:
    """Run both runs below ``folder``, which is emptied first, and compare.

    Raises: UsageError for a plan that cannot be carried out; Get3dError if a run fails for another reason.
    """
    _check(job, config, plan)
    config = _kept_below(folder, config, tell)
    begun_s = time.monotonic()
    cpus = config.resources.cpus_per_worker
    straight = new_run(folder / "straight", job, config)
    tell(f"once through on {plan.reference} workers")
    pace = _once_through(straight, plan.reference, cpus, tell)
    straight_s = time.monotonic() - begun_s
    broken = new_run(folder / "stopped", job, config)
    stops = _Rehearsal(broken, plan, cpus, pace, tell).stop_again_and_again()
    return Verdict(
        digest=_digest(straight),
        other_digest=_digest(broken),
        stops=stops,
        seconds=time.monotonic() - begun_s,
        straight_s=straight_s,
        num_steps=pace.num_steps,
        asked_stops=plan.stops,
        environments=tuple(changed_environments(read_rows(broken.events_path))),
    )


def _kept_below(folder: Path, config: Any, tell: Callable[[str], None]) -> Any:
    """Return the configuration with all of its checkpoints below ``folder``, so that nobody's bucket is touched."""
    checkpoint, far, near = config.checkpoint, folder.absolute() / "far", folder.absolute() / "near"
    for place in (far, near):
        shutil.rmtree(place, ignore_errors=True)
    moved = {"url": far.as_uri() if checkpoint.url else "", "local": str(near) if checkpoint.local else ""}
    for key, moved_to in moved.items():
        if moved_to:
            tell(f"checkpoint.{key}={moved_to} in this rehearsal, not {getattr(checkpoint, key)}")
    return dataclasses.replace(config, checkpoint=dataclasses.replace(checkpoint, **moved))


def _check(job: str, config: Any, plan: Plan) -> None:
    """Raises: UsageError if this machine cannot play the plan with this configuration."""
    if find_job(job).KIND != "steps":
        raise UsageError(
            f"job {job} shares out items and keeps no state to compare", "simulate a job such as train"
        )
    if not 0 <= plan.kill_ratio <= 1 or not 0 <= plan.first < plan.last <= 1:
        raise UsageError(f"kill_ratio={plan.kill_ratio} must lie between 0 and 1", "try --kill-ratio 0.5")
    if plan.stops < 0:
        raise UsageError(f"--stops {plan.stops} must not be negative", "try --stops 3")
    wanted = max(*plan.worlds, plan.reference)
    most = getattr(find_job(job), "most_workers", lambda _: wanted)(config)
    if wanted > most:
        raise UsageError(f"--worlds {wanted}: this run can use {most} workers at most", "name smaller worlds")
    if config.resources.gpus_per_worker and not visible_gpus():
        raise UsageError(
            f"resources.gpus_per_worker={config.resources.gpus_per_worker}, but this machine shows no GPU",
            "set resources.gpus_per_worker=0, or simulate on a machine with a GPU",
        )


def new_run(path: Path, job: str, config: Any) -> RunFolder:
    """Write the folder of a run that no scheduler knows; whatever lies there goes."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    run = RunFolder(path)
    run.config_path.write_text(save_text(config))
    created = datetime.now(UTC).isoformat(timespec="seconds")
    run.write_spec(JobSpec(name=path.name, job=job, kind="steps", created=created))
    return run


@dataclass(kw_only=True)
class _Pace:
    """How long things take, as far as it was seen."""

    start_s: float
    """From the start of an attempt until its first step is done."""
    step_s: float
    save_s: float
    num_steps: int
    saves_by_itself: bool
    """Whether checkpoints come without a notice."""
    shows: bool
    """Whether previews are drawn."""
    measures: bool
    """Whether it is measured how good it is."""


def _once_through(run: RunFolder, world_size: int, cpus: int, tell: Callable[[str], None]) -> _Pace:
    lookout, begun_s = Lookout(run), time.monotonic()
    workers = start_workers(run, world_size, cpus=cpus)
    with none_left(workers):
        told_s = begun_s
        while any(worker.poll() is None for worker in workers) and not any(w.returncode for w in workers):
            lookout.look()
            if time.monotonic() - told_s > TOLD_S:
                told_s = time.monotonic()
                if lookout.first_step_s is not None:
                    tell(_how_far(lookout.fraction(), told_s - begun_s, lookout.first_step_s))
            time.sleep(POLL_S)
        codes = wait(workers)
    lookout.look()
    _complete(run, codes)
    saves = [row for row in read_rows(run.events_path) if row["event"] == "save"]
    beat = read_heartbeat(run.attempt_dir(run.attempts()[-1]), 0)
    num_steps, seconds = lookout.step(), time.monotonic() - begun_s
    start_s = lookout.first_step_s or seconds
    return _Pace(
        start_s=start_s,
        step_s=(seconds - start_s) / max(1, num_steps - 1),
        save_s=max((float(row.get("seconds", 0.0)) for row in saves), default=0.0),
        num_steps=num_steps,
        saves_by_itself=any(row.get("why") == "periodic" for row in saves),
        shows=run.samples_dir.is_dir(),
        measures=bool(beat and beat.measurements),
    )


class _Rehearsal:
    """The run that is stopped, attempt by attempt."""

    def __init__(
        self, run: RunFolder, plan: Plan, cpus: int, pace: _Pace, tell: Callable[[str], None]
    ) -> None:
        self._run = run
        self._plan = plan
        self._cpus = cpus
        self._pace = pace
        self._tell = tell
        self._start_s: dict[int, float] = {plan.reference: pace.start_s}
        self._stops: list[Stop] = []
        self._struck_s = 0.0
        self._told_before = ""
        """The notice that was sent first, so that the blow falls into its save, or into leaving."""
        self._begun_s = time.monotonic()

    def stop_again_and_again(self) -> tuple[Stop, ...]:
        for blow in [*_blows(self._plan, self._pace), None]:
            self._attempt(blow)
            if self._run.is_done():
                break
        return _as_logged(self._run, self._stops)

    def _attempt(self, blow: _Blow | None) -> None:
        """Play one attempt, stopped by ``blow`` or, without one, to its end."""
        world_size = blow.world_size if blow else self._plan.worlds[len(self._stops) % len(self._plan.worlds)]
        struck_before_s, self._told_before = self._struck_s, ""
        if blow and self._is_ahead(blow):
            blow = dataclasses.replace(blow, aim="start")
        lookout = Lookout(self._run)
        workers = start_workers(self._run, world_size, cpus=self._cpus)
        lookout.follow(self._run.attempts()[-1])
        stop: Stop | None = None
        with none_left(workers):
            if blow and self._aim(blow, lookout, workers):
                stop = self._strike(blow, lookout, workers)
            codes = self._wait(lookout, workers)
        self._learn(lookout, world_size, struck_before_s)
        if stop is None and self._told_before:
            stop = _stop(workers, lookout, self._told_before, "leaving", is_kill=False)
        if stop is None or self._run.is_done():
            _complete(self._run, codes)
            return
        self._stops.append(self._ended(stop, codes, lookout))
        self._tell(sentence(len(self._stops), self._plan.stops, self._stops[-1], self._left_s()))

    def _is_ahead(self, blow: _Blow) -> bool:
        """Say whether the run would end before all stops were made, were this one to wait for steps again."""
        return self._run.saved_step() > blow.fraction * self._pace.num_steps + AHEAD_STEPS

    def _aim(self, blow: _Blow, lookout: Lookout, workers: Workers) -> bool:
        """Wait for the moment of ``blow``; say whether the workers were still there then."""
        if blow.aim == "start":
            start_s = self._start_s.get(blow.world_size, max(self._start_s.values()))
            return self._pause(blow.share * start_s, lookout, workers)
        if not self._until(lambda: lookout.resumed_step is not None, lookout, workers):
            return False
        if blow.aim == "first step":
            return self._pause(blow.share * max(2 * self._pace.step_s, 0.2), lookout, workers)
        if not self._until(lambda: lookout.has_done_a_step(blow.fraction), lookout, workers):
            return False
        lookout.forget()
        return self._aim_in_midst(blow, lookout, workers)

    def _aim_in_midst(self, blow: _Blow, lookout: Lookout, workers: Workers) -> bool:
        if blow.aim == "leave" or (blow.aim in ("save", "publish") and not self._can_wait(blow, lookout)):
            self._told_before = f"{blow.notice.name} to rank {blow.rank}"
            self._struck_s = time.monotonic()
            workers[blow.rank].send_signal(blow.notice)
        signs = {
            "preview": lookout.is_showing,
            "measure": lookout.is_measuring,
            "save": lookout.is_saving,
            "publish": lookout.is_publishing,
            "leave": lookout.has_outcome,
        }
        if blow.aim in signs and not self._until(signs[blow.aim], lookout, workers, FAST_POLL_S):
            return False
        lasts_s = {"step": self._pace.step_s, "save": self._pace.save_s}.get(blow.aim, 0.0)
        return self._pause(blow.share * lasts_s, lookout, workers)

    def _can_wait(self, blow: _Blow, lookout: Lookout) -> bool:
        """Say whether to wait for a save that comes by itself; else a notice makes one, or the run would end early."""
        is_on_time = lookout.step() <= blow.fraction * self._pace.num_steps + 1
        return self._pace.saves_by_itself and is_on_time

    def _strike(self, blow: _Blow, lookout: Lookout, workers: Workers) -> Stop:
        """Send the signal; a notice goes to one worker only, as some schedulers do."""
        seen = lookout.phase()
        self._struck_s = time.monotonic()
        if not blow.is_kill:
            how = f"{blow.notice.name} to rank {blow.rank}"
            workers[blow.rank].send_signal(blow.notice)
        elif blow.is_alone and len(workers) > 1:
            how = f"kill -9 of rank {blow.rank}"
            kill(workers[blow.rank : blow.rank + 1])
        else:
            how = "kill -9"
            kill(workers)
            seen = lookout.phase()  # now that nothing moves
        phase = "preview" if blow.aim == "preview" and seen in ("step", "first step") else seen
        both = f"{self._told_before}, then {how}" if self._told_before else how
        return _stop(workers, lookout, both, phase, is_kill=blow.is_kill)

    def _wait(self, lookout: Lookout, workers: Workers) -> list[int]:
        while all(worker.poll() is None for worker in workers):
            lookout.look()
            time.sleep(POLL_S)
        codes = wait(workers)
        lookout.look()
        return codes

    def _ended(self, stop: Stop, codes: Sequence[int], lookout: Lookout) -> Stop:
        """Return the stop with what its attempt left behind. Raises: Get3dError if it failed by itself."""
        attempt = self._run.attempts()[-1]
        outcome = self._run.outcome(attempt)
        is_struck_down = stop.is_kill or any(code < 0 for code in codes)
        if outcome is not None and outcome.exit_code not in COME_BACK and not is_struck_down:
            raise Get3dError(
                f"attempt {attempt} failed: {outcome.message}", f"see {self._run.log_path(attempt, 0)}"
            )
        if outcome is None and not is_struck_down:
            raise _unfinished(self._run, codes)
        left = outcome.end_step if outcome else self._run.reached_step(attempt)
        return dataclasses.replace(
            stop,
            left_step=left,
            resumed_step=self._run.saved_step(),
            leave_s=round(time.monotonic() - self._struck_s, 3),
            start_s=lookout.first_step_s,
        )

    def _learn(self, lookout: Lookout, world_size: int, struck_before_s: float) -> None:
        """Keep how long this attempt took to train, as its own start-up and as the way back from the stop before."""
        if lookout.first_step_s is None:
            return
        self._start_s[world_size] = lookout.first_step_s
        if self._stops:
            since_s = lookout.begun_s + lookout.first_step_s - struck_before_s
            self._stops[-1] = dataclasses.replace(self._stops[-1], recovery_s=round(since_s, 3))

    def _left_s(self) -> float:
        each_s = (time.monotonic() - self._begun_s) / len(self._stops)
        return each_s * (self._plan.stops - len(self._stops))

    def _pause(self, seconds: float, lookout: Lookout, workers: Workers) -> bool:
        end_s = time.monotonic() + seconds
        return self._until(lambda: time.monotonic() >= end_s, lookout, workers, FAST_POLL_S)

    def _until(
        self, is_there: Callable[[], bool], lookout: Lookout, workers: Workers, poll_s: float = POLL_S
    ) -> bool:
        """Wait for something; say whether it came while all workers were there."""
        while all(worker.poll() is None for worker in workers):
            lookout.look()
            if is_there():
                return True
            time.sleep(poll_s)
        return False


def _stop(workers: Workers, lookout: Lookout, how: str, phase: str, *, is_kill: bool) -> Stop:
    return Stop(
        world_size=len(workers),
        how=how,
        phase=phase,
        reached_step=lookout.step(),
        left_step=0,
        resumed_step=0,
        is_kill=is_kill,
        leave_s=0.0,
        pids=tuple(worker.pid for worker in workers),
    )


def _blows(plan: Plan, pace: _Pace) -> list[_Blow]:
    """Return the stops of a plan: a function of its seed, and of what the uninterrupted run showed."""
    choose = random.Random(plan.seed)  # noqa: S311  a rehearsal, reproducible by its seed
    fractions = sorted(choose.uniform(plan.first, plan.last) for _ in range(plan.stops))
    never = {"preview": not pace.shows, "measure": not pace.measures}
    aims = {aim: weight for aim, weight in AIMS.items() if not never.get(aim)}
    kills = _spread(plan.stops, plan.kill_ratio, choose)
    return [
        _Blow(
            world_size=(world := plan.worlds[number % len(plan.worlds)]),
            fraction=fraction,
            aim=choose.choices(list(aims), list(aims.values()))[0],
            share=choose.random(),
            notice=choose.choice(NOTICES),
            is_kill=kills[number],
            is_alone=choose.random() < ONE_OF_ALL,
            rank=choose.randrange(world),
        )
        for number, fraction in enumerate(fractions)
    ]


def _spread(count: int, ratio: float, choose: random.Random) -> list[bool]:
    """Return which of ``count`` are chosen: exactly the share ``ratio`` of them, rounded, in random order."""
    chosen = [number < round(count * ratio) for number in range(count)]
    choose.shuffle(chosen)
    return chosen


def _as_logged(run: RunFolder, stops: Sequence[Stop]) -> tuple[Stop, ...]:
    """Correct where each attempt really resumed by what the next one logged itself."""
    resumed = {
        row["attempt"]: row["step"]
        for row in read_rows(run.events_path)
        if row["event"] in ("start", "resume")
    }
    return tuple(
        dataclasses.replace(stop, resumed_step=resumed.get(number + 2, stop.resumed_step))
        for number, stop in enumerate(stops)
    )


def _complete(run: RunFolder, codes: Sequence[int]) -> None:
    if not run.is_done():
        raise _unfinished(run, codes)


def _unfinished(run: RunFolder, codes: Sequence[int]) -> Get3dError:
    attempt = run.attempts()[-1]
    outcome = run.outcome(attempt)
    why = outcome.message if outcome and outcome.message else f"its workers ended with {list(codes)}"
    kind = UsageError if outcome and outcome.exit_code == ExitCode.USAGE else Get3dError
    return kind(f"attempt {attempt} of {run.path} did not finish: {why}", f"see {run.log_path(attempt, 0)}")


def _digest(run: RunFolder) -> str:
    return str(read_json(run.done_path)["digest"])


def _how_far(fraction: float, spent_s: float, start_s: float) -> str:
    left_s = (spent_s - start_s) * (1 - fraction) / max(fraction, 1e-9)
    return f"{100 * fraction:.0f} %, about {left_s:.0f} s left"


__all__ = ["Plan", "Stop", "Verdict", "new_run", "simulate", "start_workers", "wait"]
