"""Procedural textured cars and chairs in ShapeNetCore v1 layout: a dataset free of licences, for demos and tests.

Every model is a function of (seed, synset, model) alone and its files have the same bytes each time. As in ShapeNet,
Y is up, the model is centred and its bounding box has a diagonal of 1; cars point their nose along +Z, chairs face +Z.
Until the very end, lengths are metres.
"""

from preprocess.shapes.car_body import CAR_KINDS
from preprocess.shapes.chair import CHAIR_KINDS
from preprocess.shapes.models import Shape, is_written, made, planned, write_shape, write_shapes

__all__ = [
    "CAR_KINDS",
    "CHAIR_KINDS",
    "Shape",
    "is_written",
    "made",
    "planned",
    "write_shape",
    "write_shapes",
]
