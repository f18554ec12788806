"""Which class each real image has, and which one each generated image is to have."""

from collections.abc import Sequence

import torch
from torch import Tensor

from get3d_cluster.core.philox import Phase
from get3d_cluster.data.format import Sample
from get3d_cluster.errors import UsageError
from get3d_cluster.train import random


def labels_of(samples: Sequence[Sample], classes: Sequence[str]) -> Tensor | None:  # [dataset] int64
    """Return the class of each image: the place of its synset in ``classes``; None if there are no classes.

    Raises: UsageError if an image is of another synset, or a class has no image.
    """
    if not classes:
        return None
    number = {name: place for place, name in enumerate(classes)}
    synsets = [sample.key.partition("/")[0] for sample in samples]
    found = set(synsets)
    if found - set(classes):
        raise UsageError(
            f"generator.classes={list(classes)} lacks {min(found - set(classes))}, which the dataset has images of",
            f"name all of the dataset's synsets: generator.classes={sorted(found)}, "
            f"discriminator.num_classes={len(found)}, or pack fewer",
        )
    if set(classes) - found:
        raise UsageError(
            f"generator.classes names {min(set(classes) - found)}, which the dataset has no image of",
            f"name what there is: generator.classes={sorted(found)}, discriminator.num_classes={len(found)}",
        )
    return torch.tensor([number[synset] for synset in synsets])


def draw_classes(
    seed: int,
    step: int,
    phase: Phase,
    samples: Tensor,  # [N] int64
    labels: Tensor | None,  # [dataset] int64
) -> Tensor | None:  # [N] int64
    """Draw the classes of generated images: as frequent as real ones, or the class itself would tell them apart."""
    if labels is None:
        return None
    places = random.integers(seed, step, phase, samples, 1, len(labels))[:, 0]
    return labels.to(samples.device)[places]


def in_turn(samples: Tensor, num_classes: int) -> Tensor | None:  # [N] int64 -> [N] int64
    """Return the classes of shapes that are shown: one after the other; None if there are no classes."""
    return samples % num_classes if num_classes else None
