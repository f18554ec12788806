"""The command line: the only place that talks to people. Imports no torch."""

from get3d_cluster.cli.entry import main

__all__ = ["main"]
