import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from get3d_cluster.errors import UsageError
from get3d_cluster.report.attempts import attempt_rows, steps_lost, time_spent
from get3d_cluster.report.headline import details, digest, images_per_second, state, tiles
from get3d_cluster.report.page import page, write_report
from get3d_cluster.report.reading import read_run
from get3d_cluster.runtime.goodput import Goodput, goodput_of
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers.ending import Ending, Exit, missing_outcome

DIGEST = "9f3b2c7d1e5a4860"


def rows(path: Path, *items: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


def event(t: float, name: str, attempt: int, **fields: object) -> dict[str, object]:
    return {"t": t, "event": name, "attempt": attempt, "rank": 0, "pid": 100 + attempt, **fields}


def outcome(run: Path, attempt: int, cause: str, start: int, end: int, saved: int, **more: object) -> None:
    facts = {"attempt": attempt, "cause": cause, "exit_code": 75, "start_step": start, "end_step": end}
    facts |= {"saved_step": saved, "seconds": 60.0, "message": "", "hosts": ["n1"], "world_size": 2}
    folder = run / "attempts" / f"{attempt:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "outcome.json").write_text(json.dumps(facts | more))


def ending_of_a_crash() -> Ending:
    """What a supervisor knows when rank 0 failed at step 80, ten steps after a save."""
    return Ending(
        attempt=2,
        exits=(Exit(rank=0, code=1, at=1.0),),
        notice=None,
        start_step=50,
        saved_step=70,
        end_step=80,
        seconds=60.0,
        world_size=2,
        is_done=False,
        hosts=("here",),
        failure="RuntimeError: <b>boom</b>",
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was preempted once, crashed once and finished."""
    run = tmp_path / "cars"
    run.mkdir()
    (run / "spec.json").write_text(
        json.dumps({"format": 1, "name": "tiny cars", "job": "train", "scheduler": "local"})
    )
    (run / "config.yaml").write_text("lr: 0.002  # <fast>\n")
    outcome(run, 1, "preempted", 0, 50, 50)
    crashed = missing_outcome(ending_of_a_crash())
    outcome(
        run,
        2,
        str(crashed.cause),
        crashed.start_step,
        crashed.end_step,
        crashed.saved_step,
        exit_code=crashed.exit_code,
        message=crashed.message,
    )
    outcome(run, 3, "finished", 70, 100, 100, exit_code=0)
    rows(
        run / "events.jsonl",
        event(1000, "attempt-start", 1, world_size=2, host="n1"),
        event(1058, "notice", 1, cause="preempted", signal="SIGUSR2", grace_s=30, step=49),
        event(1058.3, "save", 1, step=50, seconds=0.2, bytes=5, digest="aa", why="notice"),
        event(1060, "suspend", 1, step=50, cause="preempted"),
        event(9000, "attempt-start", 2, world_size=2, host="n1"),
        event(9001, "resume", 2, step=50, epoch=1, images=400, checkpoint="step-000000050", digest="aa"),
        event(9060, "crash", 2, step=80, error="boom"),
        event(9070, "attempt-start", 3, world_size=2, host="n1"),
        event(9071, "resume", 3, step=70, epoch=1, images=560, checkpoint="step-000000070", digest="bb"),
        event(9130, "finish", 3, step=100, digest=DIGEST),
    )
    measured = [
        {"step": s, "images": 8 * s, "epoch": s // 40, "seconds": s * 0.4, "loss_g": 1.0 / s}
        for s in range(10, 101, 10)
    ]
    rows(run / "metrics.jsonl", *measured)
    (run / "DONE").write_text(json.dumps({"step": 100, "digest": DIGEST}))
    for name in (
        "samples/fakes-step-9.png",
        "samples/fakes-step-10.png",
        "meshes/a #1.glb",
        "meshes/a #1.gif",
    ):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(b"x" * 2048)
    return run


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value or "" for name, value in attrs if name in {"href", "src"}]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(run: Path) -> tuple[Links, str]:
    html = write_report(run).read_text()
    links = Links()
    links.feed(html)
    return links, html


def test_every_link_leads_to_a_file_of_the_run_and_none_to_the_network(run: Path) -> None:
    links, html = parsed(run)
    assert len(links.targets) >= 4
    assert all((run / unquote(target)).is_file() for target in links.targets)
    assert not re.search(r"https?://|//cdn|@import|url\(", html)


def test_the_report_says_what_happened(run: Path) -> None:
    facts = read_run(run)
    assert state(facts)[0] == "done"
    assert [(value, name) for value, name, _ in tiles(facts)] == [
        ("100", "steps"),
        ("800", "images seen"),
        ("3", "attempts"),
        ("10", "steps lost"),
    ]
    text = " ".join(parsed(run)[0].text)
    for said in (
        "tiny cars",
        DIGEST,
        "preempted",
        "crashed",
        "finished",
        "1 interrupted, 1 failed",
        "20 images/s",
    ):
        assert said in text


def test_each_attempt_tells_where_it_came_back_and_how_fast_it_left(run: Path) -> None:
    table = attempt_rows(read_run(run))
    assert [(row.came_back_at, row.left_in, row.lost, row.pid) for row in table] == [
        (None, "2 s", 0, 101),
        (50, "", 10, 102),
        (70, "", 0, 103),
    ]


def test_what_files_hold_cannot_become_markup(run: Path) -> None:
    _, html = parsed(run)
    assert "<b>boom" not in html
    assert "&lt;b&gt;boom" in html
    assert "&lt;fast&gt;" in html


def test_text_that_is_no_unicode_is_shown_as_far_as_it_goes(run: Path) -> None:
    outcome(run, 2, "crashed", 50, 80, 70, message="bad byte \ud800 here")
    (run / "samples" / "caf\udce9.png").write_bytes(b"x")  # the byte 0xe9 alone: Latin-1
    links, html = parsed(run)
    assert "bad byte ? here" in html
    assert "./samples/caf%E9.png" in links.targets


def test_a_sample_name_cannot_end_the_script(run: Path) -> None:
    (run / "samples" / "x'\"<img src=q>-1.png").write_bytes(b"")
    (run / "samples" / "x'\"<img src=q>-2.png").write_bytes(b"")
    links, html = parsed(run)
    assert "q" not in links.targets
    assert "<img src=q" not in html


def test_pictures_that_differ_in_numbers_share_a_slider_in_order_of_the_numbers(run: Path) -> None:
    _, html = parsed(run)
    (series,) = re.findall(r'<script type="application/json">(.*?)</script>', html)
    assert [caption for _, caption in json.loads(series)] == ["fakes step 9", "fakes step 10"]


def test_torn_and_broken_files_leave_the_rest_readable(run: Path) -> None:
    with (run / "events.jsonl").open("a") as file:
        file.write('[1, 2]\n{"t": "noon", "event": "save"}\n{"t": 9200.0, "even')
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "images": 880, "loss_g": NaN, "note": "hot"}\nnull\n{"step": 12')
    (run / "attempts" / "0002" / "outcome.json").write_text('{"attempt": 2, "cause": "cra')
    facts = read_run(run)
    assert len(facts.events) == 10
    assert facts.measurements[-1].step == 110
    assert dict(facts.measurements[-1].values) == {}
    assert sorted(facts.endings) == [1, 3]
    assert steps_lost(facts) == (0, False)
    assert "≥ 0" in parsed(run)[1]


@pytest.mark.parametrize(
    "absent",
    ["spec.json", "config.yaml", "events.jsonl", "metrics.jsonl", "DONE", "attempts", "samples", "meshes"],
)
def test_any_part_of_a_run_may_be_absent(run: Path, absent: str) -> None:
    (run / absent).rename(run.parent / "elsewhere")
    links, html = parsed(run)
    assert "</html>" in html
    assert all((run / unquote(target)).is_file() for target in links.targets)


def test_an_empty_folder_is_a_new_run(tmp_path: Path) -> None:
    assert state(read_run(tmp_path))[0] == "new"
    assert "No attempt has started yet" in parsed(tmp_path)[1]


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is no run folder"):
        write_report(tmp_path / "nowhere")


def test_a_run_that_still_goes_on_shows_its_last_attempt_as_running(run: Path) -> None:
    (run / "DONE").unlink()
    (run / "attempts" / "0003" / "outcome.json").unlink()
    facts = read_run(run)
    assert state(facts)[0] == "in progress"
    assert attempt_rows(facts)[-1].cause == "running"
    assert steps_lost(facts) == (10, True)


def test_without_a_final_digest_the_newest_recorded_one_is_shown(run: Path) -> None:
    (run / "DONE").unlink()
    rows(
        run / "events.jsonl",
        event(1, "save", 1, step=1200, digest="old"),
        event(2, "save", 1, step=1300, digest="new"),
    )
    assert digest(read_run(run)) == "new (step 1,300)"


def test_a_step_that_was_measured_twice_counts_once(run: Path) -> None:
    rows(
        run / "metrics.jsonl", {"step": 10, "loss": 5.0}, {"step": 20, "loss": 4.0}, {"step": 10, "loss": 3.0}
    )
    assert [(m.step, m.values["loss"]) for m in read_run(run).measurements] == [(10, 3.0), (20, 4.0)]


def test_speed_ignores_a_clock_that_starts_again(run: Path) -> None:
    seconds = [10.0, 20.0, 1.0, 11.0]
    rows(
        run / "metrics.jsonl", *({"step": k, "images": 100 * k, "seconds": s} for k, s in enumerate(seconds))
    )
    assert images_per_second(read_run(run)) == pytest.approx(10.0)


def test_the_same_files_give_the_same_bytes(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_the_report_of_a_long_run_stays_small(run: Path) -> None:
    rows(
        run / "metrics.jsonl",
        *({"step": k, "images": 8 * k, "seconds": k, "loss_g": k % 7, "loss_d": 1.0} for k in range(20000)),
    )
    assert write_report(run).stat().st_size < 60_000


def test_reading_needs_no_torch() -> None:
    program = "import sys, get3d_cluster.report.page; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=root).returncode == 0


odd = st.sampled_from(
    [None, True, -1, 10**400, 1e300, float("nan"), float("-inf"), "x", "\ud800", [], [1], {}, {"a": 1}]
)
plain = st.integers(0, 5) | st.floats(0, 1e10) | odd
names = ["attempt-start", "resume", "notice", "save", "suspend", "finish", "crash", "measure"]
numbers = [
    "step",
    "images",
    "epoch",
    "seconds",
    "world_size",
    "loss_g",
    "loss_d",
    "start_step",
    "end_step",
    "saved_step",
]
words = st.fixed_dictionaries(
    {"t": plain, "event": st.sampled_from(names) | odd, "attempt": st.integers(0, 3) | odd},
    optional=dict.fromkeys(
        [*numbers, "rank", "pid", "digest", "cause", "hosts", "message", "name", "job"], plain
    ),
)
some_row = st.dictionaries(st.sampled_from(numbers), plain) | words


@settings(max_examples=100, deadline=None)
@given(
    events=st.lists(some_row, max_size=5),
    metrics=st.lists(some_row, max_size=5),
    done=some_row | odd,
    spec=some_row,
)
def test_no_content_of_the_files_breaks_the_report(
    tmp_path_factory: pytest.TempPathFactory,
    events: list[object],
    metrics: list[object],
    done: object,
    spec: object,
) -> None:
    run = tmp_path_factory.mktemp("any")
    rows(run / "events.jsonl", *events)
    rows(run / "metrics.jsonl", *metrics)
    (run / "DONE").write_text(json.dumps(done))
    (run / "spec.json").write_text(json.dumps(spec))
    (run / "attempts" / "0001").mkdir(parents=True)
    (run / "attempts" / "0001" / "outcome.json").write_text(json.dumps(spec))
    assert write_report(run).read_text().rstrip().endswith("</html>")


def test_the_page_shows_where_the_time_went(run: Path) -> None:
    found = goodput_of(RunFolder(run)).total
    spent = time_spent(found)
    assert sum(part.percent for part in spent) == pytest.approx(100.0)
    assert {part.name for part in spent} >= {"productive", "queued", "done again", "saving"}
    assert sum(part.seconds for part in spent) == pytest.approx(found.wall_s)
    text = page(read_run(run), run)
    assert "Where the time went" in text
    assert f"<b>{100 * found.share:.1f} %</b> productive" in text
    assert time_spent(Goodput()) == []


def test_rescaled_weights_of_r1_are_told_with_both_values(run: Path) -> None:
    assert "weights of R1" not in dict(details(read_run(run)))
    told = event(3.0, "gamma-scaled", 1, factor=0.015625, gamma_rgb=0.625, gamma_mask=1.25)
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps(told) + "\n")
    line = "times 0.015625 by loss.gamma_scale: gamma_rgb 40 -> 0.625, gamma_mask 80 -> 1.25"
    assert dict(details(read_run(run)))["weights of R1"] == line
    assert "gamma_rgb 40 -&gt; 0.625" in page(read_run(run), run)
