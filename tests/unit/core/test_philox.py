import pytest

from get3d_cluster.core.philox import Phase, key_of, philox4x32, uniform, words

# Known answers published with Random123 (kat_vectors, philox4x32 10).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_the_authors_known_answers_are_met(counter, key, expected) -> None:
    assert philox4x32(counter, key) == expected


def test_words_are_the_blocks_of_the_documented_counter() -> None:
    seed = (7 << 32) | 5
    assert words(seed, 11, 3, 2, 6) == [
        *philox4x32((0, 2, 11, 3), (5, 7)),
        *philox4x32((1, 2, 11, 3), (5, 7))[:2],
    ]


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    assert words(1, 2, 3, 4, 9)[:5] == words(1, 2, 3, 4, 5)
    assert words(1, 2, 3, 4, 0) == []


@pytest.mark.parametrize(
    ("name", "value"), [("step", 2**32), ("sample", -1), ("phase", 2**40), ("seed", 2**64)]
)
def test_what_does_not_fit_is_refused_by_name(name: str, value: int) -> None:
    arguments = {"seed": 0, "step": 0, "phase": 0, "sample": 0} | {name: value}
    with pytest.raises(ValueError, match=f"{name}={value}"):
        words(**arguments, count=1)


def test_uniform_stays_below_one_even_in_float32() -> None:
    import numpy as np

    assert uniform(0xFFFFFFFF) < 1
    assert np.float32(uniform(0xFFFFFFFF)) < 1
    assert uniform(0) == 0


def test_name_parts_are_kept_apart() -> None:
    assert key_of("a", "bc") != key_of("ab", "c")
    assert key_of("0", "02958343", "x") == key_of("0", "02958343", "x") < 2**64


def test_phase_values_are_frozen() -> None:
    assert {phase.name: phase.value for phase in Phase} == {
        "LATENT_GEO": 1,
        "LATENT_TEX": 2,
        "MIX_LATENT_GEO": 3,
        "MIX_LATENT_TEX": 4,
        "MIX_CUTOFF": 5,
        "CAMERA": 6,
        "D_LATENT_GEO": 17,
        "D_LATENT_TEX": 18,
        "D_MIX_LATENT_GEO": 19,
        "D_MIX_LATENT_TEX": 20,
        "D_MIX_CUTOFF": 21,
        "D_CAMERA": 22,
        "ORDER": 33,
        "RENDER_CAMERA": 34,
        "SHAPES": 42,
        "CLASS": 43,
        "D_CLASS": 44,
        "AUGMENT": 45,
        "D_AUGMENT": 46,
        "AUGMENT_REAL": 47,
        "AUGMENT_R1": 48,
        "NOISE": 49,
        "D_NOISE": 50,
    }
