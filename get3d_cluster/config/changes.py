"""What differs between two configurations, and whether a run may come back with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from get3d_cluster.config.listing import keys
from get3d_cluster.config.values import flat


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A key whose value differs between two configurations."""

    path: str
    old: Any
    new: Any
    changeable: bool


def differences(old: Any, new: Any) -> list[Difference]:
    """Return the keys whose values differ, in the order of their declaration."""
    before, after = flat(old), flat(new)
    changeable = {key.path: key.changeable for key in keys(type(new))}
    return [
        Difference(
            path=path, old=before.get(path), new=after.get(path), changeable=_may_change(changeable, path)
        )
        for path in after | before
        if before.get(path) != after.get(path)
    ]


def _may_change(changeable: Mapping[str, bool], path: str) -> bool:
    """Return whether ``path`` may change: a section that is null now is judged by the keys below it."""
    below = [value for key, value in changeable.items() if key == path or key.startswith(f"{path}.")]
    return bool(below) and all(below)
