import math

import pytest

from get3d_cluster.report.axes import HEIGHT, LEFT, RIGHT, TOP, WIDTH
from get3d_cluster.report.curves import MOST_POINTS, Chart, charts
from get3d_cluster.report.reading import Ending, Event, Measurement, RunFacts, natural_key
from get3d_cluster.report.timeline import MARK_WIDTH, timeline
from get3d_cluster.report.timeline import WIDTH as LINE


def measured(values: dict[str, list[float]], images: bool = True) -> list[Measurement]:
    length = max(map(len, values.values()))
    return [
        Measurement(
            step=k + 1,
            images=8 * (k + 1) if images else 0,
            epoch=0,
            seconds=0.0,
            values={name: numbers[k] for name, numbers in values.items() if k < len(numbers)},
        )
        for k in range(length)
    ]


def places(chart: Chart, index: int = 0) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in chart.curves[index].points.split()]  # type: ignore[misc]


def event(t: float, name: str, attempt: int, rank: int = 0) -> Event:
    return Event(t=t, name=name, attempt=attempt, rank=rank, pid=7, fields={"step": 3})


def facts(events: list[Event], seconds: dict[int, float] | None = None) -> RunFacts:
    endings = {
        number: Ending(
            cause="preempted",
            exit_code=75,
            start_step=0,
            end_step=1,
            saved_step=1,
            seconds=s,
            message="",
            hosts=(),
            world_size=1,
        )
        for number, s in (seconds or {}).items()
    }
    return RunFacts(
        name="r", spec={}, done=None, config="", events=tuple(events), measurements=(), endings=endings, checkpoints=(),
        samples=(), meshes=(), attempts=tuple(sorted({e.attempt for e in events})),
    )  # fmt: skip


def test_numbers_are_grouped_by_their_first_word_and_quality_comes_first() -> None:
    found = charts(
        measured({"loss_g": [1.0], "loss_d": [2.0], "iou": [0.5], "distance": [3.0], "distance_floor": [1.0]})
    )
    assert [[c.name for c in chart.curves] for chart in found] == [
        ["distance", "distance_floor"],
        ["iou"],
        ["loss_d", "loss_g"],
    ]
    assert [c.is_floor for c in found[0].curves] == [False, True]


def test_a_higher_value_is_drawn_higher_and_later_is_to_the_right() -> None:
    (chart,) = charts(measured({"loss": [1.0, 3.0, 2.0]}))
    (x0, y0), (x1, y1), (x2, y2) = places(chart)
    assert x0 < x1 < x2
    assert y1 < y2 < y0


@pytest.mark.parametrize(
    "values", [[5.0], [0.0, 1.0], [-3.0, 4.0], [1e-9, 1e9], [7.0] * 999, [-1e300, 1e300]]
)
def test_every_point_lies_on_the_paper(values: list[float]) -> None:
    (chart,) = charts(measured({"loss": values}))
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT for x, y in places(chart))
    assert all(TOP <= tick.at <= HEIGHT for tick in chart.y_ticks)


def test_a_wide_range_of_positive_values_gets_a_logarithmic_axis() -> None:
    wide, narrow, signed = charts(measured({"a": [250.0, 10.0, 0.8], "b": [2.0, 1.0], "c": [250.0, -0.8]}))
    assert [wide.logarithmic, narrow.logarithmic, signed.logarithmic] == [True, False, False]
    assert {tick.label for tick in wide.y_ticks} >= {"1", "10", "100"}
    ys = {tick.label: tick.at for tick in wide.y_ticks}
    assert ys["10"] - ys["100"] == pytest.approx(ys["1"] - ys["10"], abs=0.2)


def test_a_long_curve_is_thinned_but_ends_where_it_ended() -> None:
    (chart,) = charts(measured({"loss": [math.sin(k / 500) for k in range(9973)] + [0.123]}))
    assert len(places(chart)) <= MOST_POINTS + 1
    assert chart.curves[0].last == "0.123"
    assert places(chart)[-1][0] == pytest.approx(WIDTH - RIGHT, abs=0.1)


def test_without_images_the_axis_counts_steps() -> None:
    (chart,) = charts(measured({"loss": [1.0, 2.0]}, images=False))
    assert chart.x_label == "step"


def test_a_resume_is_drawn_at_its_step() -> None:
    (chart,) = charts(measured({"loss": [1.0, 2.0, 3.0, 4.0]}), [3])
    assert chart.resumes == pytest.approx([places(chart)[2][0]], abs=0.1)


def test_more_curves_than_colours_are_split() -> None:
    found = charts(measured({f"loss_{k}": [1.0] for k in range(8)}))
    assert [len(chart.curves) for chart in found] == [6, 2]


def test_attempts_follow_each_other_and_fill_the_width() -> None:
    drawn = timeline(
        facts([event(0, "save", 1), event(60, "suspend", 1), event(61, "resume", 2), event(100, "finish", 2)])
    )
    first, second = drawn.bars
    assert first.x == 0
    assert first.width == pytest.approx(LINE * 0.6)
    assert second.x + second.width == pytest.approx(LINE)


def test_a_long_wait_is_shortened_and_says_how_long_it_was() -> None:
    drawn = timeline(
        facts(
            [
                event(0, "save", 1),
                event(50, "suspend", 1),
                event(9e6, "resume", 2),
                event(9e6 + 50, "save", 2),
            ]
        )
    )
    (wait,) = drawn.waits
    assert wait.shortened
    assert wait.seconds == pytest.approx(9e6 - 50)
    assert wait.width < 0.06 * LINE
    assert drawn.bars[0].width == pytest.approx(drawn.bars[1].width)


def test_two_attempts_that_live_at_once_are_both_drawn() -> None:
    drawn = timeline(
        facts([event(0, "save", 1), event(50, "resume", 2), event(80, "crash", 1), event(100, "finish", 2)])
    )
    assert [(round(bar.x), round(bar.width)) for bar in drawn.bars] == [(0, 800), (500, 500)]
    assert drawn.waits == ()


def test_marks_that_fall_together_stay_distinguishable() -> None:
    story = ["notice", "save", "suspend"]
    (bar,) = timeline(
        facts([event(0, "resume", 1), *(event(500 + k / 10, n, 1) for k, n in enumerate(story))])
    ).bars
    at = {mark.kind: mark.x for mark in bar.marks}
    assert at["suspend"] - at["notice"] >= MARK_WIDTH - 1e-9
    assert at["suspend"] == pytest.approx(LINE)
    assert at["save"] == pytest.approx(LINE, abs=1)


def test_rank_zero_speaks_for_all_but_what_only_others_heard_is_kept() -> None:
    events = [
        event(0, "resume", 1),
        event(0, "resume", 1, rank=1),
        event(5, "notice", 1, rank=1),
        event(9, "suspend", 1),
    ]
    (bar,) = timeline(facts(events)).bars
    assert sorted(mark.kind for mark in bar.marks) == ["notice", "resume", "suspend"]


def test_an_attempt_killed_without_a_word_lasts_as_long_as_its_outcome_says() -> None:
    bars = timeline(facts([event(0, "attempt-start", 1)], {1: 30.0})).bars
    assert (bars[0].seconds, bars[0].cause) == (30.0, "preempted")
    assert timeline(facts([event(0, "attempt-start", 1)])).bars[0].cause == "running"


def test_names_are_ordered_by_their_numbers() -> None:
    names = ["step-100", "step-20", "a", "step-3b", "step-3", "²", "10"]
    assert sorted(names, key=natural_key) == ["a", "step-3", "step-3b", "step-20", "step-100", "²", "10"]


def test_what_was_zero_all_along_gets_no_chart() -> None:
    assert charts(measured({"skipped_steps": [0.0, 0.0]})) == []
