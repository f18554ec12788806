"""A job that computes nothing, for tests of the command line."""

from dataclasses import dataclass, field
from typing import Any

from get3d_cluster.core.job import Resources, RetryConfig

KIND = "steps"


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int = 0
    """Decides every random number."""
    num_steps: int = field(default=10, metadata={"changeable": True})
    """Steps to do."""
    synset: str = "03001627"
    """Category."""
    resources: Resources = field(default_factory=Resources)
    retry: RetryConfig = field(default_factory=RetryConfig)


def make(config: Config, session: Any) -> Any:
    raise NotImplementedError
