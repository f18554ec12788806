"""A report shows the images that its run rendered, packed or learned from, and the models that failed a gate."""

import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from get3d_cluster.report.page import write_report
from get3d_cluster.report.rendering import NUM_FAILED

VERDICTS = [
    {"synset": "02958343", "model": "0 <b>", "reason": "edge", "message": "view 3: cut off & lost"},
    {"synset": "02958343", "model": "1", "reason": "blank", "message": "nothing is visible"},
    {"synset": "02958343", "model": "2", "reason": "edge", "message": "view 0: cut off"},
]


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value or "" for name, value in attrs if name in {"href", "src"}]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def rendered(tmp_path: Path) -> Path:
    folder = tmp_path / "car images #1"
    for model in range(5):
        (folder / "img" / "02958343" / f"m{model}").mkdir(parents=True)
    (folder / "quarantine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in VERDICTS) + '{"torn')
    (folder / "left_out.jsonl").write_text('{"why": "no model file"}\n')
    for name in ("summary.html", "sheet.png", "render.json"):
        (folder / name).write_text("x")
    return folder


def report_of(run: Path, config: str) -> Seen:
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(config)
    seen = Seen()
    seen.feed(write_report(run).read_text())
    return seen


def test_a_render_run_shows_its_sheet_its_summary_and_why_models_failed(
    rendered: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "render"
    seen = report_of(run, f"models: /models\nout: {json.dumps(str(rendered))}\n")
    targets = {(run / unquote(target)).resolve() for target in seen.targets}
    assert {rendered / "sheet.png", rendered / "summary.html"} <= targets
    text = " ".join(seen.text.split())
    assert "5 models rendered, 3 quarantined, 1 left out (2 edge, 1 blank)" in text
    assert "02958343/0 <b>edgeview 3: cut off & lost" in text  # three cells


@pytest.mark.parametrize("config", ["data:\n  path: {}\n", "data: {}\n", "images: {}\nout: /nowhere\n"])
def test_what_learns_from_packs_or_checks_such_a_folder_shows_it_too(
    rendered: Path, tmp_path: Path, config: str
) -> None:
    run = tmp_path / "runs" / "other"
    seen = report_of(run, config.format(json.dumps(str(rendered))))
    assert "../../car%20images%20%231/sheet.png" in " ".join(seen.targets)


def test_a_dataset_with_copies_of_sheet_and_summary_claims_no_numbers(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "sheet.png").write_text("x")
    seen = report_of(tmp_path / "runs" / "t", f"data:\n  path: {packed}\n")
    assert "../../packed/sheet.png" in " ".join(seen.targets)
    assert "models rendered" not in seen.text


def test_thousands_of_failures_are_counted_and_some_of_them_listed(rendered: Path, tmp_path: Path) -> None:
    rows = "".join(json.dumps(VERDICTS[1] | {"model": f"m{n}"}) + "\n" for n in range(3000))
    (rendered / "quarantine.jsonl").write_text(rows)
    seen = report_of(tmp_path / "run", f"out: {json.dumps(str(rendered))}\n")
    assert "3,000" in seen.text
    assert seen.text.count("nothing is visible") == NUM_FAILED


@pytest.mark.parametrize(
    "config",
    [
        "",
        "out: 3\n",
        "out: [1, {}]\n",
        "data: s3://bucket/cars\n",
        "data:\n  path: s3://bucket/cars\n",
        "out: relative\n",
        "out: {torn",
        'out: "/a\\0b"\n',
        "- a list",
        "out: /" + "x" * 5000,
    ],
)
def test_without_such_a_folder_the_report_says_nothing_of_it(tmp_path: Path, config: str) -> None:
    assert "Rendered images" not in report_of(tmp_path / "run", config).text
