"""Random numbers as a function of where they are used: Philox4x32-10, counter-based. Pure, standard library.

Nothing in this project carries a generator along: a draw is keyed by (seed, step, phase, sample), so a
resumed run, or one on another number of workers, draws the same numbers without being told where it stopped.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; tested against the authors' known
answers.
"""

import hashlib
from enum import IntEnum

WORD_MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
NUM_ROUNDS = 10
UNIFORM_BITS = 24
"""Bits of a word that become a uniform number: as many as a float32 holds: never rounded up to 1.0."""


class Phase(IntEnum):
    """What a draw is for; part of its counter.

    The values are frozen: renumbering one changes every run that is resumed or repeated. Add new ones at the
    end, never reuse one. The generator's phase uses the plain names, the discriminator's those with ``D_``.
    """

    LATENT_GEO = 1
    LATENT_TEX = 2
    MIX_LATENT_GEO = 3
    MIX_LATENT_TEX = 4
    MIX_CUTOFF = 5
    CAMERA = 6
    D_LATENT_GEO = 17
    D_LATENT_TEX = 18
    D_MIX_LATENT_GEO = 19
    D_MIX_LATENT_TEX = 20
    D_MIX_CUTOFF = 21
    D_CAMERA = 22
    ORDER = 33
    RENDER_CAMERA = 34
    SHAPES = 42
    CLASS = 43
    D_CLASS = 44
    AUGMENT = 45
    D_AUGMENT = 46
    AUGMENT_REAL = 47
    AUGMENT_R1 = 48
    NOISE = 49
    D_NOISE = 50


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the four random words of one counter block; all words are 32-bit unsigned."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(NUM_ROUNDS):
        left, right = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (right >> 32) ^ c1 ^ k0, right & WORD_MASK, (left >> 32) ^ c3 ^ k1, left & WORD_MASK
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD_MASK, (k1 + KEY_STEPS[1]) & WORD_MASK
    return c0, c1, c2, c3


def split_seed(seed: int) -> tuple[int, int]:
    """Return the low and the high 32 bits of a 64-bit seed: the key of its draws.

    Raises: ValueError if the seed does not fit.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed} must be at least 0 and below 2**64")
    return seed & WORD_MASK, seed >> 32


def words(seed: int, step: int, phase: int, sample: int, count: int) -> list[int]:
    """Return ``count`` 32-bit words for one sample of one step.

    The counter is (block, sample, step, phase): a longer draw begins with the shorter one.

    Raises: ValueError if ``step``, ``phase`` or ``sample`` does not fit into 32 bits.
    """
    for name, value in (("step", step), ("phase", phase), ("sample", sample)):
        if not 0 <= value <= WORD_MASK:
            raise ValueError(f"{name}={value} must be at least 0 and below 2**32")
    key = split_seed(seed)
    blocks = (philox4x32((block, sample, step, phase), key) for block in range(-(-count // 4)))
    return [word for block in blocks for word in block][:count]


def uniform(word: int) -> float:
    """Return the number in [0, 1) that a word stands for; exact in float32 too."""
    return (word >> (32 - UNIFORM_BITS)) / float(1 << UNIFORM_BITS)


def key_of(*parts: str) -> int:
    """Return a 64-bit seed for a name, e.g. ``key_of(str(seed), synset, model)``.

    Parts are kept apart: ("a", "bc") and ("ab", "c") give different seeds.
    """
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest()[:8], "little")
