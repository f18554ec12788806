"""How data is read; nothing here changes what is read. Pure."""

from dataclasses import dataclass, field
from pathlib import Path

from get3d_cluster.errors import UsageError

_FREE = {"changeable": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadConfig:
    """How images come from their place into memory, ahead of their use. Any values give the same bits."""

    threads: int = field(default=2, metadata=_FREE)
    """Threads of each worker that read and decode images ahead; 0: none. 8 or more for a remote store."""
    ahead_mb: int = field(default=256, metadata=_FREE)
    """Memory for decoded images that are not yet used, in each worker."""
    memory_mb: int = field(default=512, metadata=_FREE)
    """Memory for the decoded images used last, in each worker."""
    cache: Path | None = field(default=None, metadata=_FREE)
    """Folder for copies of a remote dataset, shared by the workers of a machine; null: one of the user's in TMPDIR."""
    cache_gb: float = field(default=20.0, metadata=_FREE)
    """Most bytes of copies on each machine; 0: none."""

    def __post_init__(self) -> None:
        for name in ("threads", "ahead_mb", "memory_mb", "cache_gb"):
            if getattr(self, name) < 0:
                raise UsageError(
                    f"{name}={getattr(self, name)} must not be negative", f"set {name} to 0 or more"
                )
