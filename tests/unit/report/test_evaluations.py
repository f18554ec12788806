"""What the job evaluate measured, in the report."""

import json
from pathlib import Path

from get3d_cluster.report.evaluations import evaluation_tables
from get3d_cluster.report.page import write_report
from get3d_cluster.report.reading import read_run


def result(folder: Path, step: int, key: str, **values: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    metrics = [
        {"name": name, "value": value, "features": {"name": "inception"}} for name, value in values.items()
    ]
    told = {"format": 1, "step": step, "images": 8 * step, "settings_key": key, "metrics": metrics}
    (folder / f"step-{step:09d}-{key}.json").write_text(json.dumps(told))


def test_results_of_the_same_settings_share_a_table_and_curves(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    for step in (200, 100):
        result(folder, step, "aa", fid=1000.0 / step, cov_cd=0.5)
    result(folder, 200, "bb", fid=7.25)
    first, second = evaluation_tables(read_run(tmp_path).evaluations)
    assert (first.steps, second.steps) == (("100", "200"), ("200",))
    assert first.rows == (("fid", ("10", "5")), ("cov_cd", ("0.5", "0.5")))
    assert first.title == "features: inception, settings aa"
    assert {chart.title for chart in first.charts} == {"fid", "cov_cd"}
    assert second.charts == ()
    page = write_report(tmp_path).read_text()
    assert "<h2>Evaluation</h2>" in page
    assert "7.25" in page


def test_torn_and_foreign_files_are_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    result(folder, 1, "aa", fid=float("nan"), kid="x", precision=None, recall=0.25)
    (folder / "step-2.json").write_text('{"step": 2, "metr')
    (folder / "step-3.json").write_text('{"step": "x", "metrics": {"a": 1}}')
    (folder / "step-4.json").write_text('{"metrics": [1, {"name": "a", "features": 3}]}')
    found = read_run(tmp_path).evaluations
    assert [dict(each.values) for each in found if each.values] == [{"recall": 0.25}]
    assert "recall" in write_report(tmp_path).read_text()


def test_without_results_there_is_no_section(tmp_path: Path) -> None:
    assert "Evaluation" not in write_report(tmp_path).read_text()
