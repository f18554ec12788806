from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from get3d_cluster.export.pictures import (
    BACKGROUND,
    contact_sheet,
    enlarged,
    face_normals,
    over_background,
    shade,
    turntable_gif,
    write_png,
)

TOP = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0]], np.float32)  # looks to +Y
FACE = np.array([[0, 1, 2]], np.int32)


def test_premultiplied_colours_are_laid_over_the_background_without_a_dark_fringe() -> None:
    half_white = np.array([[[0.5, 0.5, 0.5, 0.5]]])
    assert over_background(half_white, (255, 255, 255)).tolist() == [[[255, 255, 255]]]
    assert over_background(np.zeros((1, 1, 4)), (10, 20, 30)).tolist() == [[[10, 20, 30]]]
    assert over_background(np.array([[[1.0, 0.0, 0.0, 1.0]]])).tolist() == [[[255, 0, 0]]]


def test_bytes_pass_over_a_background_unchanged() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(over_background(values), values)


def test_images_with_two_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[4, 4, 2\]"):
        over_background(np.zeros((4, 4, 2)))


@pytest.mark.parametrize(
    ("size", "shown"), [(32, 96), (48, 144), (64, 192), (100, 200), (144, 144), (512, 512)]
)
def test_small_pictures_are_enlarged_by_whole_factors(size: int, shown: int) -> None:
    assert enlarged(np.zeros((2, size, size, 3), np.uint8)).shape == (2, shown, shown, 3)


def test_enlarging_keeps_pixels_square_and_unmixed() -> None:
    source = np.random.default_rng(0).integers(0, 255, (48, 48, 3)).astype(np.uint8)
    np.testing.assert_array_equal(enlarged(source)[1::3, 2::3], source)


def test_each_image_of_a_contact_sheet_stands_at_its_row_and_column() -> None:
    colours = np.array(
        [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 0], [0, 255, 255], [255, 0, 255]]]
    )
    images = np.broadcast_to(colours[:, :, None, None, :], (2, 3, 150, 150, 3)).astype(np.uint8)
    pixels = np.asarray(contact_sheet(images, title="t", row_captions=["a", "b"]))
    centres = [[np.argwhere((pixels == c).all(axis=-1)).mean(axis=0) for c in row] for row in colours]
    rows, columns = np.array(centres)[..., 0], np.array(centres)[..., 1]
    assert (np.ptp(rows, axis=1) == 0).all()
    assert (np.ptp(columns, axis=0) == 0).all()
    assert (np.diff(columns, axis=1) > 150).all()
    assert (np.diff(rows, axis=0) > 150).all()
    for colour in colours.reshape(-1, 3):
        assert (pixels == colour).all(axis=-1).sum() == 150 * 150  # nothing is drawn over, nothing is cut off


def test_captions_are_drawn_and_may_not_be_forgotten() -> None:
    images = np.zeros((2, 1, 150, 150, 4))
    bare, captioned = contact_sheet(images), contact_sheet(images, row_captions=["seed 1", "seed 2"])
    assert captioned.height > bare.height
    assert (np.asarray(bare) == BACKGROUND).all()
    assert (np.asarray(captioned) != BACKGROUND).any()
    with pytest.raises(ValueError, match="1 row captions for 2 rows"):
        contact_sheet(images, row_captions=["seed 1"])


def test_a_long_title_is_not_cut_off() -> None:
    images = np.zeros((1, 1, 150, 150, 4))
    wide = contact_sheet(images, title="a title much longer than one small image is wide")
    assert (np.asarray(wide)[:, -10:] == BACKGROUND).all()
    assert wide.width > 350


def test_a_turntable_loops_with_the_right_frames_and_speed(tmp_path: Path) -> None:
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    for index in range(5):
        frames[index, :, index : index + 3] = (200, 40, 40)
    turntable_gif(tmp_path / "turn.gif", frames, fps=10)
    with Image.open(tmp_path / "turn.gif") as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (5, 0, 100)
        gif.seek(4)
        last = np.asarray(gif.convert("RGB"))[::3, ::3].astype(int)
    assert np.abs(last - frames[4]).max() <= 8
    assert [p.name for p in tmp_path.iterdir()] == ["turn.gif"]


def test_equal_neighbouring_frames_keep_their_time(tmp_path: Path) -> None:
    turntable_gif(tmp_path / "turn.gif", np.full((3, 8, 8, 3), 90, np.uint8), fps=20)
    with Image.open(tmp_path / "turn.gif") as gif:
        total = sum(_duration(gif, index) for index in range(gif.n_frames))
    assert total == 150


def _duration(gif: Image.Image, index: int) -> int:
    gif.seek(index)
    return int(gif.info["duration"])


def test_a_turntable_without_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        turntable_gif(tmp_path / "turn.gif", np.zeros((0, 8, 8, 3)))


def test_face_normals_point_outside_and_vanish_without_area() -> None:
    faces = np.array([[0, 1, 2], [0, 2, 1], [0, 1, 1]], np.int32)
    np.testing.assert_allclose(face_normals(TOP, faces), [[0, 1, 0], [0, -1, 0], [0, 0, 0]])


def test_shading_is_brighter_the_more_a_face_looks_at_the_camera() -> None:
    ids = np.array([[1, 0]])
    above, beside = (shade(TOP, FACE, ids, np.array(c, np.float32)) for c in ([0, 2, 0], [2, 0.4, 0]))
    assert above[0, 0, 0] > beside[0, 0, 0] + 0.1
    assert above[0, 0, 3] == 1
    assert above[0, 1].tolist() == [0, 0, 0, 0]


def test_what_faces_the_camera_depends_on_where_it_stands_not_on_its_direction() -> None:
    # a wall 0.5 to the right that looks to -X: a camera on the axis sees its front, one far to the right its back
    wall = np.array([[0.5, 0, 0], [0.5, 0, 1], [0.5, 1, 0]], np.float32)
    front, behind = (
        shade(wall, FACE, np.array([[1]]), np.array(c, np.float32))[0, 0] for c in ([0.2, 0, 2], [1, 0, 2])
    )
    assert front[2] > front[0]
    assert behind[0] > behind[2]


def test_a_face_seen_from_behind_is_red() -> None:
    red, green, blue, _ = shade(TOP, FACE, np.array([[1]]), np.array([0, -1, 0], np.float32))[0, 0]
    assert red > 2 * max(green, blue)


def test_each_camera_of_a_batch_has_its_own_light() -> None:
    ids = np.array([[[1]], [[1]]])
    cameras = np.array([[0, 2, 0], [2, 0.4, 0]], np.float32)
    batch = shade(TOP, FACE, ids, cameras)
    assert batch.shape == (2, 1, 1, 4)
    for index in range(2):
        np.testing.assert_array_equal(batch[index], shade(TOP, FACE, ids[index], cameras[index]))


def test_supersampling_turns_partial_cover_into_premultiplied_coverage() -> None:
    camera = np.array([0, 1, 0], np.float32)
    full = shade(TOP, FACE, np.array([[1]]), camera)[0, 0]
    quarter = shade(TOP, FACE, np.array([[1, 0], [0, 0]]), camera, supersampling=2)
    np.testing.assert_allclose(quarter, full[None, None] / 4)
    with pytest.raises(ValueError, match="supersampling=2"):
        shade(TOP, FACE, np.array([[1, 0, 1]]), camera, supersampling=2)


def test_shading_no_faces_gives_an_empty_picture() -> None:
    picture = shade(TOP, FACE[:0], np.zeros((4, 4), np.int32), np.array([0, 0, 1], np.float32))
    assert not picture.any()


def test_png_is_lossless_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3)).astype(np.uint8)
    write_png(tmp_path / "a.png", pixels)
    write_png(tmp_path / "b.png", Image.fromarray(pixels))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels)
