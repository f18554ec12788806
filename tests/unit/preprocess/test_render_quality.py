"""The gates: each defect is caught, good images pass, stored bytes are a function of the pixels."""

import numpy as np
import pytest
from PIL import Image

from preprocess.quality import (
    Gates,
    coverage,
    decode,
    defect_of,
    encode,
    magenta_share,
    without_hidden_colour,
)


def square(colour: tuple[int, int, int] = (200, 150, 100), low: int = 8, high: int = 24) -> np.ndarray:
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[low:high, low:high] = (*colour, 255)
    return pixels


def code_of(pixels: np.ndarray, gates: Gates | None = None) -> str:
    defect = defect_of(pixels, 32, gates or Gates())
    return defect.code if defect else ""


@pytest.mark.parametrize(
    "pixels, code",
    [
        (square(), ""),
        (square((255, 255, 255)), ""),
        (square((200, 60, 160)), ""),  # a pink car is no missing texture
        (np.zeros((32, 32, 4), np.uint8), "blank"),
        (np.zeros((16, 16, 4), np.uint8), "size"),
        (np.full((32, 32, 4), 255, np.uint8), "edge"),
        (square(low=0, high=16), "edge"),
        (square(low=15, high=17), "coverage"),
        (square((180, 0, 181)), "magenta"),
        (square((0, 0, 0)), "black"),
    ],
)
def test_each_defect_is_named_and_good_images_pass(pixels: np.ndarray, code: str) -> None:
    assert code_of(pixels) == code


def test_the_object_is_judged_and_not_the_hidden_colour_around_it() -> None:
    pixels = square()
    pixels[..., :3][pixels[..., 3] == 0] = (255, 0, 255)
    assert magenta_share(pixels) == 0.0
    assert code_of(pixels) == ""


def test_gates_can_be_opened() -> None:
    assert code_of(square((180, 0, 181)), Gates(max_magenta=1.0)) == ""
    assert code_of(square(low=0, high=16), Gates(max_edge=1.0)) == ""


def test_a_corner_that_touches_the_frame_passes_unless_told_otherwise() -> None:
    pixels = square()
    pixels[8:24, 24:31] = pixels[9, 9]
    pixels[12:14, 31] = pixels[9, 9]
    assert code_of(pixels) == ""
    assert code_of(pixels, Gates(max_edge=0.0)) == "edge"


def test_impossible_gates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"min_coverage=0\.96"):
        Gates(min_coverage=0.96)


def test_a_half_covered_pixel_counts_half() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0, 3], pixels[0, 1, 3] = 255, 51
    assert coverage(pixels) == pytest.approx((1 + 0.2) / 4)


def test_hidden_colour_goes_and_visible_colour_stays() -> None:
    pixels = np.full((4, 4, 4), 77, np.uint8)
    pixels[0, :, 3] = 0
    cleaned = without_hidden_colour(pixels)
    assert not cleaned[0].any()
    np.testing.assert_array_equal(cleaned[1:], pixels[1:])


def test_storing_keeps_each_pixel_and_adds_no_metadata() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 4), dtype=np.uint8)
    data = encode(pixels)
    np.testing.assert_array_equal(decode(data), pixels)
    assert encode(decode(data)) == data
    kinds = [data[i + 4 : i + 8] for i in chunk_starts(data)]
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


def chunk_starts(data: bytes) -> list[int]:
    starts, at = [], 8
    while at < len(data):
        starts.append(at)
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return starts


def test_every_truncation_of_a_file_is_noticed() -> None:
    data = encode(np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8))
    for length in range(0, len(data) - 16, 7):  # the last 16 bytes hold no pixel
        with pytest.raises(ValueError):
            decode(data[:length])


def test_an_image_without_alpha_is_refused() -> None:
    import io

    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    with pytest.raises(ValueError, match="RGB, not RGBA"):
        decode(file.getvalue())
