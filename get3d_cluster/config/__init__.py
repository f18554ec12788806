"""Configurations: YAML and dotted overrides <-> frozen nested dataclasses, strictly. Finds a job by its name.

Defaults are overruled by the file, the file by the overrides, an earlier override by a later one. Refused with the
key, the value and the way out: unknown keys, values of another type, interpolation.
"""

from get3d_cluster.config.changes import Difference, differences
from get3d_cluster.config.jobs_by_name import JobModule, find_job, job_configs_dir, job_names
from get3d_cluster.config.listing import Key, keys
from get3d_cluster.config.loading import (
    MissingKeysError,
    load,
    read_run_config,
    read_section,
    read_section_or_default,
)
from get3d_cluster.config.values import anchored, flat, plain, save_text, show, updated_text

__all__ = [
    "Difference",
    "JobModule",
    "Key",
    "MissingKeysError",
    "anchored",
    "differences",
    "find_job",
    "flat",
    "job_configs_dir",
    "job_names",
    "keys",
    "load",
    "plain",
    "read_run_config",
    "read_section",
    "read_section_or_default",
    "save_text",
    "show",
    "updated_text",
]
