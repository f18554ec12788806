"""Random numbers that are a function of the model's name."""

from collections.abc import Sequence
from typing import TypeVar

from get3d_cluster.core.philox import Phase, key_of, uniform, words

VERSION = 1
"""To be raised whenever a model changes: files that another version wrote are made again."""

Value = TypeVar("Value")


class Draw:
    """A row of random numbers for one model."""

    def __init__(self, seed: int, synset: str, model: str) -> None:
        self._words = iter(words(key_of(str(seed), synset, model), VERSION, Phase.SHAPES, 0, 256))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * uniform(next(self._words))

    def one_of(self, values: Sequence[Value]) -> Value:
        return values[int(len(values) * uniform(next(self._words)))]
