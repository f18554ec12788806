"""Schedulers by name. To add one: a module with the seven verbs of ``base.Scheduler``, and a line here."""

import importlib

from get3d_cluster.errors import UsageError
from get3d_cluster.schedulers.base import Scheduler

SCHEDULERS = {
    "local": "get3d_cluster.schedulers.local:LocalScheduler",
    "slurm": "get3d_cluster.schedulers.slurm:SlurmScheduler",
}


def open_scheduler(name: str) -> Scheduler:
    """Return the scheduler ``name``, importing it only now. Raises: UsageError naming those there are."""
    if name not in SCHEDULERS:
        known = ", ".join(SCHEDULERS)
        raise UsageError(f"scheduler={name!r} is not available in this version", f"choose one of: {known}")
    module, _, attribute = SCHEDULERS[name].partition(":")
    scheduler: Scheduler = getattr(importlib.import_module(module), attribute)()
    return scheduler
