"""The plain job with a hole: Adam is not in its state. `simulate` has to see it."""

from collections.abc import Mapping
from typing import Any

from get3d_cluster.runtime.session import Session, Work
from tests.plain import job as plain

KIND = plain.KIND
Config = plain.Config


def make(config: plain.Config, session: Session) -> Work:
    work = plain.make(config, session)
    whole, load = work.state, work.load
    adam = whole()["adam"]

    def state() -> Mapping[str, Any]:
        return {name: part for name, part in whole().items() if name != "adam"}

    work.state = state
    work.load = lambda saved: load({**saved, "adam": adam})
    return work
