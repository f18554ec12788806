"""How a run stands, as a pure function of the facts about it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from get3d_cluster.cli.facts import Facts
from get3d_cluster.cli.output import duration
from get3d_cluster.core.job import Cause, Outcome, RunState
from get3d_cluster.core.policy import Action, after_attempt
from get3d_cluster.schedulers.slurm_plan import bad_nodes

FRESH_S = 30.0
"""Progress younger than this is that of a living attempt, even one that was started by hand."""
FAILURES = frozenset({Cause.CRASHED, Cause.HUNG, Cause.DIVERGED, Cause.REFUSED})
ENDED = frozenset(
    {RunState.DONE, RunState.SUSPENDED, RunState.HELD, RunState.CANCELLED, RunState.FAILED, RunState.LOST}
)
"""Nothing happens any more until a person does something."""
SILENT = "the scheduler does not answer"
_STOPPED = {str(Cause.SUSPENDED): RunState.SUSPENDED, str(Cause.CANCELLED): RunState.CANCELLED}
_WORST_FIRST = (
    RunState.FAILED,
    RunState.HELD,
    RunState.CANCELLED,
    RunState.SUSPENDED,
    RunState.RUNNING,
    RunState.LOST,
)
"""Which element of a job array speaks for the run once none is with the scheduler: the one that needs a person most."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of ``status``; its fields are those of ``--json``."""

    name: str
    path: str
    job: str
    kind: str
    scheduler: str
    state: str
    why: str
    epoch: int
    step: int
    num_steps: int
    images: int
    images_per_s: float | None
    """While it runs: over all workers, since the newest attempt began, or in all of a training."""
    given_up: int
    """Items that came to nothing, such as quarantined models."""
    percent: float | None
    eta_s: float | None
    attempt: int
    """Number of the newest."""
    num_elements: int
    """Elements of its job array that left an outcome; 0 for a run that is one job."""
    preempted: int
    failed: int
    causes: Mapping[str, int]
    """How many attempts ended with each cause."""
    last_cause: str
    last_causes: Sequence[str]
    """Of an array: why its elements that have to come back ended last, each cause once."""
    saved_step: int
    saved_age_s: float | None
    at_risk_steps: int | None
    """Steps beyond the newest checkpoint, done again if the attempt died now; None for a run of items."""
    not_bitwise_from: int | None
    """Step from which on its bits may be others than those of the uninterrupted run: it went on in another numeric
    environment. None: the same."""
    rollbacks: int
    """How often the training diverged and went back to a checkpoint of before."""
    goodput: float | None
    """Share of the time of all attempts that brought the run forward."""
    time_s: Mapping[str, float]
    """Where that time went."""
    hosts: Sequence[str]
    without: Sequence[str]
    """Nodes on which its next attempts do not start, since they failed it twice."""
    scheduler_answers: bool
    after: Sequence[str]


def row_of(facts: Facts) -> Row:
    """Return the line of one run."""
    state, why = state_of(facts)
    without = bad_nodes(ends_of(facts))
    step, num_steps = facts.progress.get("step", facts.saved_step), facts.progress.get("num_steps", 0)
    spec, ends = facts.spec, ends_of(facts)
    kind = spec.kind if spec else ""
    images, given_up = facts.progress.get("images", 0), facts.progress.get("given_up", 0)
    speed = _steps_per_s(facts, step) if state is RunState.RUNNING else None
    images_per_s = speed * images / step if speed and step and images else None
    lasts = [element[-1] for element in _by_element(ends)]
    causes = Counter(str(outcome.cause) for outcome in ends)
    hosts = facts.standing.hosts or (ends[-1].hosts if ends and state != RunState.PENDING else ())
    return Row(
        name=facts.name,
        path=facts.path,
        job=spec.job if spec else "",
        kind=kind,
        scheduler=spec.scheduler if spec else "",
        state=str(state),
        why=_joined(
            why,
            f"{images_per_s:.3g} images/s" if images_per_s and kind == "items" else "",
            f"{given_up:,} given up" if given_up else "",
            "" if state is RunState.DONE else _excluded(without),
            _parted(facts.not_bitwise_from),
            _rolled_back(facts.progress),
        ),
        epoch=facts.progress.get("epoch", 0),
        step=step,
        num_steps=num_steps,
        images=images,
        images_per_s=None if images_per_s is None else round(images_per_s, 3),
        given_up=given_up,
        percent=round(100 * step / num_steps, 1) if num_steps else None,
        eta_s=(num_steps - step) / speed if speed and num_steps else None,
        attempt=max(facts.attempts, default=0),
        num_elements=len({outcome.element for outcome in ends} - {None}),
        preempted=causes[Cause.PREEMPTED],
        failed=sum(causes[cause] for cause in FAILURES),
        causes=dict(causes),
        last_cause=str(ends[-1].cause) if ends else "",
        last_causes=sorted({str(last.cause) for last in lasts if last.cause is not Cause.FINISHED}),
        saved_step=facts.saved_step,
        saved_age_s=facts.saved_age_s,
        at_risk_steps=None if kind == "items" else 0 if facts.is_done else max(0, step - facts.saved_step),
        not_bitwise_from=facts.not_bitwise_from,
        rollbacks=facts.progress.get("rollbacks", 0),
        goodput=facts.goodput.share,
        time_s={name: round(value, 3) for name, value in asdict(facts.goodput).items()},
        hosts=hosts,
        without=without,
        scheduler_answers=facts.standing.state != "unknown",
        after=spec.after if spec else (),
    )


def state_of(facts: Facts) -> tuple[RunState, str]:
    """Return what the run is doing, and why in one phrase."""
    if facts.is_done or facts.spec is None:
        return (RunState.DONE, "") if facts.is_done else (RunState.LOST, facts.standing.why)
    match facts.standing.state:
        case "running":
            return RunState.RUNNING, facts.standing.why
        case "pending":
            return _pending_state(facts)
        case "unknown":
            return _last_known_state(facts)
        case _:
            return _absent_state(facts)


def ends_of(facts: Facts) -> list[Outcome]:
    """Return how the attempts ended, oldest first: as they say, or as the scheduler says of the newest."""
    return [*facts.outcomes, *([facts.post_mortem] if facts.post_mortem else [])]


def _pending_state(facts: Facts) -> tuple[RunState, str]:
    ends = ends_of(facts)
    last = ends[-1] if ends else None
    came_back = last is not None and last.cause in (Cause.CRASHED, Cause.HUNG)
    waits = came_back and after_attempt(_of_element(ends, ends[-1].element), facts.retry).delay_s > 0
    if not waits:
        return RunState.PENDING, facts.standing.why
    return RunState.BACKING_OFF, f"{facts.standing.why}{_added(_first_line(last))}"


def _last_known_state(facts: Facts) -> tuple[RunState, str]:
    """Return how a run stood when the scheduler was last heard, as its files tell: never LOST."""
    state, why = _absent_state(facts)
    if state in (RunState.LOST, RunState.NEW):
        state, why = (RunState.RUNNING if _is_open(facts) else RunState.PENDING), ""
    silent_s = facts.silent_s or 0.0
    silence = f"the scheduler has not answered for {duration(silent_s)}" if silent_s >= 1 else SILENT
    age_s = facts.progress_age_s
    progress = (
        f"last progress {duration(age_s)} ago" if state is RunState.RUNNING and age_s is not None else why
    )
    known = f"; last known {state}{f', {progress}' if progress else ''}"
    return state, f"UNKNOWN: {silence}{_added(facts.standing.why)}{known}"


def _absent_state(facts: Facts) -> tuple[RunState, str]:
    """Return how a run stands that no scheduler has."""
    ends = ends_of(facts)
    last = ends[-1] if ends else None
    if facts.held:
        return RunState.HELD, f"{facts.held}{_added(_first_line(last))}"
    if facts.stopped in _STOPPED:
        return _STOPPED[facts.stopped], _first_line(last) or f"{facts.stopped} before it started"
    if not facts.attempts:
        return RunState.NEW, facts.standing.why or "not queued: give the submit command again"
    found = [_left_state(facts, element) for element in _by_element(ends)]
    found = [pair for pair in found if pair[0] is not RunState.DONE]
    if _is_open(facts):
        is_array = any(outcome.element is not None for outcome in ends)
        found = [*found, _open_state(facts)] if is_array else [_open_state(facts)]
    if not found:
        return RunState.LOST, f"ended as {Cause.FINISHED}, but the run is not DONE"
    return min(found, key=lambda pair: _WORST_FIRST.index(pair[0]))


def _is_open(facts: Facts) -> bool:
    """Say whether nothing is known of how the newest attempt ended."""
    newest = max(facts.attempts, default=0)
    return bool(newest) and all(outcome.attempt != newest for outcome in ends_of(facts))


def _open_state(facts: Facts) -> tuple[RunState, str]:
    """Return how a run stands whose newest attempt left no outcome, although no scheduler runs it."""
    if facts.progress_age_s is not None and facts.progress_age_s < FRESH_S:
        return RunState.RUNNING, facts.standing.why or "started by hand"
    return RunState.LOST, f"attempt {max(facts.attempts)} left no outcome{_added(facts.standing.why)}"


def _left_state(facts: Facts, ends: Sequence[Outcome]) -> tuple[RunState, str]:
    """Return how a run stands, or one element of its array, that neither runs nor waits; DONE: it has finished."""
    last = ends[-1]
    who = "" if last.element is None else f"element {last.element}: "
    message = f"{who}{_first_line(last)}" if who or last.message else ""
    if last.cause is Cause.FINISHED:
        return RunState.DONE, ""
    if last.cause is Cause.SUSPENDED:
        return RunState.SUSPENDED, message or f"saved at step {last.saved_step}"
    if last.cause is Cause.CANCELLED:
        return RunState.CANCELLED, message
    if last.cause is Cause.REFUSED:
        return RunState.FAILED, message
    decision = after_attempt(ends, facts.retry)
    if decision.action is Action.HOLD:
        return RunState.HELD, f"{decision.why}{_added(message)}"
    return RunState.LOST, f"left as {last.cause} and is not queued{_added(facts.standing.why or message)}"


def _by_element(ends: Sequence[Outcome]) -> list[list[Outcome]]:
    """Return the ends of each element of a job array, oldest first; those of an ordinary run are one list."""
    elements = dict.fromkeys(outcome.element for outcome in ends)
    return [_of_element(ends, element) for element in elements]


def _of_element(ends: Sequence[Outcome], element: int | None) -> list[Outcome]:
    return [outcome for outcome in ends if outcome.element == element]


def _excluded(without: Sequence[str]) -> str:
    return f"without {','.join(without)}: failed twice" if without else ""


def _parted(step: int | None) -> str:
    return "" if step is None else f"not bitwise from step {step} on"


def _rolled_back(progress: Mapping[str, int]) -> str:
    number, before = progress.get("rollbacks", 0), progress.get("rolled_back_from", 0)
    if not number:
        return ""
    return f"rolled back from step {before} to {progress.get('rolled_back_to', 0)} ({_ordinal(number)} time)"


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if 10 < number % 100 < 14 else ending}"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _first_line(outcome: Outcome | None) -> str:
    return outcome.message.splitlines()[0] if outcome and outcome.message else ""


def _added(text: str) -> str:
    return f": {text}" if text else ""


def _steps_per_s(facts: Facts, step: int) -> float | None:
    """Return the speed. A ``steps`` run counts its active time over all attempts, one of items anew in each.

    Of a job array the element that told last counts its own time, in which all elements made the items since it began.
    """
    is_items = facts.spec is not None and facts.spec.kind == "items"
    before = facts.outcomes[-1].saved_step if is_items and facts.outcomes else 0
    done = step - facts.progress.get("start_step", before)
    active_s = facts.progress.get("active_s", 0.0)
    return done / active_s if done > 0 and active_s else None
