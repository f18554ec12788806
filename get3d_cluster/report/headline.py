"""Where a run stands, in a few words and numbers. Pure."""

from itertools import pairwise

from get3d_cluster.report.attempts import FAULTS, INTERRUPTIONS, steps_lost, tone
from get3d_cluster.report.axes import short_number
from get3d_cluster.report.reading import RunFacts, number, whole
from get3d_cluster.report.words import counted, duration
from get3d_cluster.runtime.fingerprint import told


def state(facts: RunFacts) -> tuple[str, str, str]:
    """Return a word, its tone and a sentence for where the run stands."""
    if facts.done is not None:
        return "done", "good", f"Finished in {counted(len(facts.attempts), 'attempt')}."
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
    stops = sum(cause in INTERRUPTIONS for cause in causes)
    faults = sum(cause in FAULTS for cause in causes)
    speed = images_per_second(facts)
    epoch = f"epoch {max((m.epoch for m in facts.measurements), default=0):,}"
    seen = (
        short_number(images),
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
        "weights of R1": _gammas(facts),
        "rolled back": _rolled_back(facts),
    }
    return [(name, value) for name, value in found.items() if value]


def _gammas(facts: RunFacts) -> str:
    """Return what `loss.gamma_scale` made of the given weights of R1; empty if it left them alone."""
    told = next((e.fields for e in facts.events if e.name == "gamma-scaled"), {})
    factor = number(told.get("factor"))
    if not factor:
        return ""
    scaled = {name: number(told.get(name)) for name in ("gamma_rgb", "gamma_mask")}
    values = ", ".join(f"{name} {value / factor:g} -> {value:g}" for name, value in scaled.items())
    return f"times {factor:g} by loss.gamma_scale: {values}"


def _rolled_back(facts: RunFacts) -> str:
    """Return how often the training diverged and went back; one that a kill cut short was told twice."""
    told = [e.fields for e in facts.events if e.name == "rollback" and "held" not in e.fields]
    rows = {number(row.get("number")): row for row in told if number(row.get("number"))}
    return "; ".join(
        f"from step {number(row.get('step')):,.0f} to {number(row.get('to')):,.0f}" for row in rows.values()
    )


def digest(facts: RunFacts) -> str:
    """Return the digest of the newest state that anything recorded, with its step."""
    if facts.done and facts.done.get("digest"):
        return f"{facts.done['digest']} (final, step {number(facts.done.get('step')):,.0f})"
    for event in reversed(facts.events):
        if event.fields.get("digest"):
            return f"{event.fields['digest']} (step {number(event.fields.get('step')):,.0f})"
    return ""


def images_per_second(facts: RunFacts) -> float:
    """Return images over active training time; 0 if the run did not measure it."""
    pairs = [(b.images - a.images, b.seconds - a.seconds) for a, b in pairwise(facts.measurements)]
    timed = [(images, seconds) for images, seconds in pairs if seconds > 0.0 and images >= 0]
    total_s = sum(seconds for _, seconds in timed)
    return sum(images for images, _ in timed) / total_s if total_s else 0.0


def _last_step(facts: RunFacts) -> int:
    known = [m.step for m in facts.measurements[-1:]]
    known += [ending.end_step for ending in facts.endings.values()]
    known += [whole(e.fields.get("step")) for e in facts.events if e.name in {"save", "finish"}]
    return max([whole((facts.done or {}).get("step")), *known])
