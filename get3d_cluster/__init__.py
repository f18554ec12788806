"""Train GET3D on a cluster that may take its machines back at any moment, without losing a step."""

__version__ = "0.1.0"
