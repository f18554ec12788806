"""Jobs by their names: the one place that looks up from the library to its users."""

import difflib
import importlib
import pkgutil
from pathlib import Path
from typing import Any, Protocol, cast

from get3d_cluster.errors import UsageError

_KINDS = ("steps", "items")


class JobModule(Protocol):
    """What a file in ``jobs`` has to define."""

    Config: type[Any]
    KIND: str
    """``steps`` or ``items``, as in JobSpec."""

    def make(self, config: Any, session: Any) -> Any:
        """Build what the workers do; imports its heavy parts inside."""
        ...


def find_job(name: str) -> JobModule:
    """Return the job called ``name``: a module of ``jobs``, or a dotted module name.

    Raises: UsageError with the nearest name and the list of jobs, or with what the module lacks.
    """
    full = name if "." in name else f"jobs.{name}"
    if not all(part.isidentifier() for part in full.split(".")):
        raise _unknown_job(name)
    try:
        module = importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name and f"{full}.".startswith(f"{error.name}."):
            raise _unknown_job(name) from None
        what = f"job {name} needs the module {error.name}, which is not installed"
        raise UsageError(what, "pip install -r requirements.txt") from error
    _check_job(module, full)
    return cast(JobModule, module)


def job_names() -> list[str]:
    """Return the names of the modules in ``jobs``, without importing them."""
    found = pkgutil.iter_modules(importlib.import_module("jobs").__path__)
    return sorted(module.name for module in found if not module.ispkg and not module.name.startswith("_"))


def job_configs_dir() -> Path:
    """Return the folder of the configurations that are kept beside the jobs."""
    return Path(next(iter(importlib.import_module("jobs").__path__))) / "configs"


def _check_job(module: Any, full: str) -> None:
    if lacking := [word for word in ("Config", "make", "KIND") if not hasattr(module, word)]:
        what = f"{full} is no job: it lacks {', '.join(lacking)}"
        raise UsageError(what, f"jobs are: {', '.join(job_names())}")
    if module.KIND not in _KINDS:
        what = f"{full}: KIND={module.KIND!r} must be one of {', '.join(_KINDS)}"
        raise UsageError(what, "mend the job's file")


def _unknown_job(name: str) -> UsageError:
    names = job_names()
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return UsageError(f"there is no job {name}{hint}", f"jobs are: {', '.join(names) or 'none'}")
