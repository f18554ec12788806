"""Cameras of real and of generated images over each other, as the report and TensorBoard show them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from get3d_cluster.data.camera_counts import camera_counts
from get3d_cluster.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from get3d_cluster.report.cameras import histograms, picture
from get3d_cluster.report.page import write_report
from get3d_cluster.report.reading import Cameras, read_cameras


def cameras(folder: Path, elevations: list[float], drawn: tuple[float, float] = (0.0, 30.0)) -> Cameras:
    around = np.linspace(0.0, 360.0, len(elevations), endpoint=False).tolist()
    file = folder / "dataset" / "cameras.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(camera_counts(around, elevations, drawn)))
    found = read_cameras(folder)
    assert found is not None
    return found


def test_bars_are_as_high_as_their_shares_and_the_outline_is_where_images_are_drawn(tmp_path: Path) -> None:
    elevation = histograms(cameras(tmp_path, [2.0] * 30 + [12.0] * 60 + [22.0] * 30))[1]
    heights = [bar.height for bar in elevation.bars]
    assert len(heights) == 6  # of 5 degrees
    assert heights[2] == pytest.approx(2 * heights[0])
    assert heights[1] == 0
    assert elevation.bars[4].height == pytest.approx(heights[0])
    level = {round(y, 3) for _, y in elevation.outline[1:-1]}
    floor = HEIGHT - BOTTOM
    assert len(level) == 1  # even
    assert floor - level.pop() == pytest.approx(heights[2] / 3, abs=1e-3)  # a sixth against a half


@pytest.mark.parametrize("drawn", [(0.0, 30.0), (-90.0, 90.0), (5.0, 5.0), (60.0, 70.0)])
def test_everything_lies_on_the_paper(tmp_path: Path, drawn: tuple[float, float]) -> None:
    for chart in histograms(cameras(tmp_path, [-3.0, 0.0, 7.5, 41.0], drawn)):
        for bar in chart.bars:
            assert LEFT - 1e-6 <= bar.x <= bar.x + bar.width <= WIDTH - RIGHT + 1e-6
            assert TOP - 1e-6 <= bar.y <= bar.y + bar.height <= HEIGHT - BOTTOM + 1e-6
        assert all(LEFT - 1e-6 <= x <= WIDTH - RIGHT + 1e-6 and TOP <= y <= HEIGHT for x, y in chart.outline)


def test_cameras_that_differ_are_named_and_equal_ones_are_not(tmp_path: Path) -> None:
    below = np.linspace(-30.0, 29.9, 1200).tolist()
    assert (
        histograms(cameras(tmp_path, below))[1].warning
        == "50 % of the real images lie where none are generated"
    )
    low = np.linspace(0.0, 14.9, 1200).tolist()
    assert "50 % of the generated images lie where there are no real ones" in (
        histograms(cameras(tmp_path, low))[1].warning
    )
    assert not any(each.warning for each in histograms(cameras(tmp_path, np.linspace(0, 30, 1200).tolist())))


def test_the_picture_shows_both(tmp_path: Path) -> None:
    pixels = np.asarray(picture(histograms(cameras(tmp_path, [2.0] * 30 + [12.0] * 60))))
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)[::7]}
    assert {(167, 192, 231), (200, 87, 27), (255, 255, 255)} <= colours


def test_the_report_shows_cameras_and_real_images_beside_generated_ones(tmp_path: Path) -> None:
    cameras(tmp_path, [2.0, 12.0])
    (tmp_path / "dataset" / "real.png").write_bytes(b"x")
    page = write_report(tmp_path).read_text()
    assert "<h2>Cameras</h2>" in page
    assert 'src="./dataset/real.png"' in page  # also before the first sheet
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "000000800.png").write_bytes(b"x")
    page = write_report(tmp_path).read_text()
    assert page.count('src="./dataset/real.png"') == 1
    assert page.index("./samples/000000800.png") < page.index("./dataset/real.png") < page.index("Cameras")
    assert '<div class="pair">' in page


def test_norms_are_drawn_with_the_names_of_the_largest_parameters(tmp_path: Path) -> None:
    row = {"grad_norm_g": 2.0, "grad_most_g": "colour.<bias>", "weight_norm_g": 9.0, "update_ratio_g": 1e-3}
    lines = [json.dumps({"step": step, "images": 8 * step, **row}) for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    page = write_report(tmp_path).read_text()
    for title in ("norms of gradients", "norms of weights", "change of weights in a step / weights"):
        assert f"<h3>{title}" in page
    assert "largest parts: g in colour.&lt;bias&gt;" in page


leaves = st.sampled_from([None, True, "x", -1, 0, 0.5, 1, 30, 10**400, float("nan"), float("inf")])
lists = st.lists(leaves, max_size=4)
spread = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("edges", "data", "drawn", "data_range", "drawn_range"), lists | leaves)
)


@settings(max_examples=150, deadline=None)
@given(
    data=st.fixed_dictionaries({"azimuth_deg": spread | leaves, "elevation_deg": spread | leaves}) | leaves
)
def test_no_content_of_the_file_breaks_the_report(
    tmp_path_factory: pytest.TempPathFactory, data: object
) -> None:
    run = tmp_path_factory.mktemp("any")
    (run / "dataset").mkdir()
    (run / "dataset" / "cameras.json").write_text(json.dumps(data))
    assert write_report(run).read_text().rstrip().endswith("</html>")
