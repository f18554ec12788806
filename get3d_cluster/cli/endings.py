"""How attempts ended that left no word: asked of the scheduler and written down before a run comes back."""

from get3d_cluster.cli.facts import gather, open_attempts
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import open_scheduler


def write_post_mortems(run: RunFolder) -> None:
    """Write the outcomes of attempts that left none, as far as the scheduler of a run that stands still knows them.

    Of a job array each attempt counts, otherwise the newest alone: what came before it is history. An attempt whose
    worker still lives, on a node that the scheduler lost, writes none any more: the next attempt fences it out.
    """
    facts = gather(run)
    if facts.spec is None or facts.is_done or facts.standing.state != "absent":
        return
    is_array = any(outcome.element is not None for outcome in facts.outcomes)
    scheduler = open_scheduler(facts.spec.scheduler)
    for attempt in open_attempts(facts) if is_array else open_attempts(facts)[-1:]:
        outcome = scheduler.post_mortem(run, attempt)
        if outcome is not None and run.outcome(attempt) is None:
            run.write_outcome(outcome)
