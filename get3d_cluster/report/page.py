"""The report of a run: one HTML file beside its data, with relative links only."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import jinja2

from get3d_cluster.errors import UsageError
from get3d_cluster.report import curves, timeline
from get3d_cluster.report.reading import (
    Ending,
    Evaluated,
    Event,
    Measurement,
    RunFacts,
    number,
    read_run,
    whole,
)
from get3d_cluster.report.rendering import rendering_of
from get3d_cluster.report.viewer import write_viewer
from get3d_cluster.runtime.fingerprint import told
from get3d_cluster.runtime.goodput import Goodput, goodput_of
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage.local import write_atomic

REPORT = "report.html"

MOST_STEPS = 6
"""Steps in a table of measurements; curves show all."""

_LAST_SECOND = 253402300799.0
"""End of the year 9999, the last that has a date."""

_TURNTABLES = (".gif", ".webp")
_INTERRUPTIONS = frozenset({"preempted", "time-limit", "node-failure", "requeued", "suspended"})
_FAULTS = frozenset({"crashed", "hung", "diverged", "refused", "unknown"})


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRow:
    """One line of the table of attempts."""

    number: int
    started: str
    ran: str
    workers: str
    pid: int
    came_back_at: int | None
    """Step of the checkpoint it went on from; None for a start from nothing."""
    steps: str
    lost: int
    cause: str
    tone: str
    exit_code: str
    left_in: str
    """Time from the notice to having left."""
    message: str
    log: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """One part of where the time went."""

    name: str
    tone: str
    seconds: float
    percent: float
    """Of all parts together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSeries:
    """Pictures of one kind over the run."""

    title: str
    pictures: tuple[tuple[str, str], ...]
    """Link and caption, oldest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshCard:
    """One exported shape."""

    title: str
    picture: str
    """Link to a turntable, else to its views, else to the texture, else empty."""
    files: tuple[tuple[str, str], ...]
    """Link and label."""
    is_sheet: bool = False
    """A picture of many shapes, not the files of one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationTable:
    """What was measured with the same settings."""

    title: str
    steps: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    """Name of a number, and its values at those steps."""
    charts: tuple[curves.Chart, ...]


def write_report(run_path: Path) -> Path:
    """Write ``report.html`` into the run folder from its files alone, and return its path.

    Whatever is absent or torn is left out.

    Raises: UsageError if there is no such folder; StorageError if it cannot be written.
    """
    if not run_path.is_dir():
        raise UsageError(f"{run_path} is no run folder", "list runs with: python launch.py status")
    target, facts = run_path / REPORT, read_run(run_path)
    viewer = write_viewer(run_path, facts.meshes)
    write_atomic(target, page(facts, run_path, viewer).encode(errors="replace"))
    return target


def page(facts: RunFacts, run_path: Path, viewer: Path | None = None) -> str:
    """Return the report as HTML; ``run_path`` is asked for file sizes and for where the time went.

    ``viewer`` is a page in the run folder that shows the meshes.
    """
    goodput = goodput_of(RunFolder(run_path))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "tone": tone, "short": curves.short_number}
    environment.filters["link"] = lambda target: link(Path(os.path.relpath(target, run_path)))
    resumed = [whole(e.fields.get("step")) for e in facts.events if e.name == "resume"]
    return environment.get_template("template.html").render(
        facts=facts,
        state=state(facts),
        tiles=tiles(facts),
        details=details(facts),
        rows=attempt_rows(facts),
        timeline=timeline.timeline(facts),
        share=goodput.share,
        spent=[("all", time_spent(goodput.total))]
        + [(f"attempt {number}", time_spent(item)) for number, item in goodput.attempts.items()],
        charts=curves.charts(facts.measurements, resumed) if facts.measurements else [],
        paper=curves,
        evaluations=evaluation_tables(facts.evaluations),
        rendering=rendering_of(facts.config),
        samples=sample_series(facts.samples),
        meshes=mesh_cards(facts.meshes, run_path),
        viewer=link(viewer) if viewer else "",
    )


def state(facts: RunFacts) -> tuple[str, str, str]:
    """Return a word, its tone and a sentence for where the run stands."""
    if facts.done is not None:
        return "done", "good", f"Finished in {_counted(len(facts.attempts), 'attempt')}."
    if not facts.attempts:
        return "new", "plain", "No attempt has started yet."
    last = facts.attempts[-1]
    ending = facts.endings.get(last)
    if ending is None:
        return "in progress", "busy", f"Attempt {last} has not said how it ended."
    return ending.cause, tone(ending.cause), f"Attempt {last} ended at step {ending.end_step:,}."


def tiles(facts: RunFacts) -> list[tuple[str, str, str]]:
    """Return the few numbers everyone asks for: value, name, remark."""
    step = _last_step(facts)
    images = max((m.images for m in facts.measurements), default=0)
    causes = [ending.cause for ending in facts.endings.values()]
    lost, is_complete = steps_lost(facts)
    stops = sum(cause in _INTERRUPTIONS for cause in causes)
    faults = sum(cause in _FAULTS for cause in causes)
    speed = images_per_second(facts)
    epoch = f"epoch {max((m.epoch for m in facts.measurements), default=0):,}"
    seen = (
        curves.short_number(images),
        "images seen",
        f"{speed:.3g} images/s" if speed else "speed not measured",
    )
    return [
        (f"{step:,}", "steps", epoch if facts.measurements else ""),
        *([seen] if facts.measurements else []),  # a run of items measures nothing
        (f"{len(facts.attempts)}", "attempts", f"{stops} interrupted, {faults} failed"),
        (f"{'' if is_complete else '≥ '}{lost:,}", "steps lost", "computed again after an interruption"),
    ]


def details(facts: RunFacts) -> list[tuple[str, str]]:
    """Return the facts a person may want to quote: name and value."""
    preemptions = sum(ending.cause == "preempted" for ending in facts.endings.values())
    saves = [e for e in facts.events if e.name == "save" and e.rank == 0]
    slowest = max((number(e.fields.get("seconds")) for e in saves), default=0.0)
    found = {
        "job": str(facts.spec.get("job", "")),
        "scheduler": str(facts.spec.get("scheduler", "")),
        "created": str(facts.spec.get("created", "")),
        "preemptions": f"{preemptions}",
        "time in attempts": duration(sum(ending.seconds for ending in facts.endings.values())),
        "saves": f"{len(saves)}, the longest {slowest:.2f} s" if saves else "",
        "checkpoints kept": ", ".join(f"{step:,}" for step in facts.checkpoints),
        "state digest": digest(facts),
        "not bitwise": "; ".join(
            f"from step {row['step']:,} on: {told(row['changed'])}" for row in facts.environments
        ),
    }
    return [(name, value) for name, value in found.items() if value]


def digest(facts: RunFacts) -> str:
    """Return the digest of the newest state that anything recorded, with its step."""
    if facts.done and facts.done.get("digest"):
        return f"{facts.done['digest']} (final, step {number(facts.done.get('step')):,.0f})"
    for event in reversed(facts.events):
        if event.fields.get("digest"):
            return f"{event.fields['digest']} (step {number(event.fields.get('step')):,.0f})"
    return ""


def steps_lost(facts: RunFacts) -> tuple[int, bool]:
    """Return the steps that were computed more than once, and whether every ended attempt told its last step."""
    ended = facts.attempts if facts.done is not None else facts.attempts[:-1]
    silent = [attempt for attempt in ended if attempt not in facts.endings]
    return sum(_lost_in(ending) for ending in facts.endings.values()), not silent


def images_per_second(facts: RunFacts) -> float:
    """Return images over active training time; 0 if the run did not measure it."""
    pairs = [(b.images - a.images, b.seconds - a.seconds) for a, b in pairwise(facts.measurements)]
    timed = [(images, seconds) for images, seconds in pairs if seconds > 0.0 and images >= 0]
    total_s = sum(seconds for _, seconds in timed)
    return sum(images for images, _ in timed) / total_s if total_s else 0.0


def attempt_rows(facts: RunFacts) -> list[AttemptRow]:
    """Return the table of attempts, oldest first."""
    return [_attempt_row(attempt, facts) for attempt in facts.attempts]


def time_spent(goodput: Goodput) -> list[Spent]:
    """Return where time went, part by part; parts that took none are left out."""
    parts = (
        ("productive", "good", goodput.productive_s),
        ("waiting for data", "c4", goodput.waiting_s),
        ("done again", "bad", goodput.redone_s),
        ("saving", "c0", goodput.saving_s),
        ("starting", "c3", goodput.starting_s),
        ("leaving or cut short", "plain", goodput.other_s),
        ("queued", "stop", goodput.queued_s),
        ("stopped by a person", "line", goodput.stopped_s),
    )
    total_s = sum(seconds for _, _, seconds in parts)
    return [
        Spent(name=name, tone=tone, seconds=seconds, percent=100.0 * seconds / total_s)
        for name, tone, seconds in parts
        if seconds > 0.0
    ]


def sample_series(samples: Sequence[Path]) -> list[SampleSeries]:
    """Gather pictures whose names differ in numbers only, such as ``fakes-000100.png`` and ``fakes-000200.png``."""
    groups: dict[str, list[Path]] = {}
    for path in samples:
        groups.setdefault(re.sub(r"[0-9]+", "#", path.as_posix()), []).append(path)
    return [
        SampleSeries(title=_title(paths[0]), pictures=tuple((link(p), _caption(p)) for p in paths))
        for paths in groups.values()
    ]


def evaluation_tables(evaluations: Sequence[Evaluated]) -> list[EvaluationTable]:
    """Return a table for each way of measuring, of its last few steps, with curves once there are two."""
    groups: dict[str, list[Evaluated]] = {}
    for each in evaluations:
        groups.setdefault(each.settings_key, []).append(each)
    return [_evaluation_table(group) for group in groups.values()]


def mesh_cards(meshes: Sequence[Path], run_path: Path) -> list[MeshCard]:
    """Gather the files of each exported shape: those of one folder that share their name up to its first dot."""
    groups: dict[Path, list[Path]] = {}
    for path in meshes:
        groups.setdefault(path.with_name(path.name.partition(".")[0] or path.name), []).append(path)
    return [_mesh_card(stem, paths, run_path) for stem, paths in groups.items()]


def link(path: Path) -> str:
    """Return a relative link that any browser follows, whatever the name holds."""
    return "./" + quote(os.fsencode(path.as_posix()))


def duration(seconds: float) -> str:
    """Return a duration in the two largest units that matter.

    >>> [duration(s) for s in (0.25, 12.3, 75, 4000, 100000)]
    ['0.25 s', '12.3 s', '1 min 15 s', '1 h 7 min', '1 d 4 h']
    """
    if seconds < 60.0:
        return f"{seconds:.3g} s"
    units = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
    large, name, small, rest = next(u for u in units if seconds >= u[0])
    whole, remainder = divmod(round(seconds), large)
    return f"{whole} {name}" + (f" {remainder // small} {rest}" if remainder >= small else "")


def tone(cause: str) -> str:
    """Return how a cause is coloured: good, busy, stop, bad or plain."""
    if cause == "finished":
        return "good"
    if cause in _INTERRUPTIONS:
        return "stop"
    if cause in _FAULTS:
        return "bad"
    return "busy" if cause == "running" else "plain"


def _evaluation_table(group: Sequence[Evaluated]) -> EvaluationTable:
    last = group[-MOST_STEPS:]
    names = list(dict.fromkeys(name for each in group for name in each.values))
    rows = [
        (name, tuple(curves.short_number(e.values[name]) if name in e.values else "" for e in last))
        for name in names
    ]
    points = [Measurement(step=e.step, images=e.images, epoch=0, seconds=0.0, values=e.values) for e in group]
    features = f"features: {group[-1].features}, " if group[-1].features else ""
    return EvaluationTable(
        title=f"{features}settings {group[-1].settings_key[:8]}",
        steps=tuple(f"{each.step:,}" for each in last),
        rows=tuple(rows),
        charts=tuple(curves.charts(points)) if len(group) > 1 else (),
    )


def _attempt_row(attempt: int, facts: RunFacts) -> AttemptRow:
    events = [e for e in facts.events if e.attempt == attempt]
    ending = facts.endings.get(attempt)
    cause = ending.cause if ending else "running" if attempt == facts.attempts[-1] else "no word"
    resume = _first(events, "resume")
    return AttemptRow(
        number=attempt,
        started=_clock(events[0].t) if events else "",
        ran=duration(_ran(events, ending)),
        workers=_workers(events, ending),
        pid=next((e.pid for e in events if e.rank == 0), 0),
        came_back_at=whole(resume.fields.get("step")) if resume else None,
        steps=f"{ending.start_step:,} → {ending.end_step:,}" if ending else "",
        lost=_lost_in(ending) if ending else 0,
        cause=cause,
        tone=tone(cause),
        exit_code=str(ending.exit_code) if ending else "",
        left_in=_left_in(events),
        message=ending.message if ending else "",
        log=link(facts.logs[attempt]) if attempt in facts.logs else "",
    )


def _left_in(events: Sequence[Event]) -> str:
    notice, suspend = _first(events, "notice"), _first(events, "suspend")
    return duration(max(0.0, suspend.t - notice.t)) if notice and suspend else ""


def _ran(events: Sequence[Event], ending: Ending | None) -> float:
    seen = events[-1].t - events[0].t if events else 0.0
    return max(seen, ending.seconds if ending else 0.0)


def _workers(events: Sequence[Event], ending: Ending | None) -> str:
    start = _first(events, "attempt-start")
    count = ending.world_size if ending else whole(start.fields.get("world_size")) if start else 0
    hosts = ", ".join(ending.hosts) if ending else str(start.fields.get("host", "")) if start else ""
    return f"{count or '?'} on {hosts}" if hosts else f"{count or '?'}"


def _lost_in(ending: Ending) -> int:
    return 0 if ending.cause == "finished" else max(0, ending.end_step - ending.saved_step)


def _first(events: Sequence[Event], name: str) -> Event | None:
    return next((e for e in events if e.name == name), None)


def _last_step(facts: RunFacts) -> int:
    known = [m.step for m in facts.measurements[-1:]]
    known += [ending.end_step for ending in facts.endings.values()]
    known += [whole(e.fields.get("step")) for e in facts.events if e.name in {"save", "finish"}]
    return max([whole((facts.done or {}).get("step")), *known])


def _mesh_card(stem: Path, paths: Sequence[Path], run_path: Path) -> MeshCard:
    moving = [p for p in paths if p.suffix.lower() in _TURNTABLES]
    still = [p for p in paths if p.suffix.lower() in {".png", ".jpg", ".jpeg"}]
    views = [
        p for p in still if p.suffixes[:-1]
    ]  # such as shape-00001.views.png; the plain one is its texture
    shown = [*moving, *views]
    pictures = shown or still
    return MeshCard(
        title=stem.relative_to("meshes").as_posix(),
        picture=link(pictures[0]) if pictures else "",
        files=tuple(
            (link(p), f"{p.suffix[1:].upper()} {_size(run_path / p)}") for p in paths if p not in shown
        ),
        is_sheet=paths == still,
    )


def _size(path: Path) -> str:
    try:
        return curves.short_number(path.stat().st_size) + "B"
    except OSError:
        return ""


def _title(path: Path) -> str:
    words = re.sub(r"[0-9]+", " ", path.relative_to("samples").with_suffix("").as_posix())
    return (
        " ".join(re.split(r"[-_./\s]+", words)).strip().removesuffix(" step").removesuffix(" images")
        or "samples"
    )


def _caption(path: Path) -> str:
    return re.sub(r"0*([0-9]+)", lambda m: f"{int(m[1]):,}", path.stem).replace("-", " ").replace("_", " ")


def _clock(t: float) -> str:
    return datetime.fromtimestamp(min(max(t, 0.0), _LAST_SECOND), UTC).strftime("%Y-%m-%d %H:%M:%S")


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" + ("" if count == 1 else "s")
