"""What the documents name exists: tests, files, headings."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FAILURES = ROOT / "docs" / "failures.md"
ALL = set(range(1, 109))
"""Numbers of the scenarios that docs/failures.md has to answer."""
MAY_NOT_APPLY = {40, 41}
"""Those of checkpoints in two places."""
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_NODE = re.compile(r"tests/[\w/]+\.py(?:::\w+)*")


def functions_of(path: Path) -> set[str]:
    """Return the tests of a file as pytest names them, without parameters."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def collected(path: Path) -> set[str]:
    """Return those of them that pytest runs when it is given their name."""
    names = functions_of(path) if path.name.startswith("test_") else set()
    return {name for name in names if "::" not in name or name.startswith("Test")}


def headings(path: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a document."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_test_that_a_document_names_exists(document: Path) -> None:
    missing = []
    for named in sorted(set(_NODE.findall(document.read_text()))):
        file, _, function = named.partition("::")
        path = ROOT / file
        if not path.is_file() or (function and function not in collected(path)):
            missing.append(named)
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_relative_link_leads_somewhere(document: Path) -> None:
    broken = []
    for link in _LINK.findall(document.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in headings(target)):
            broken.append(link)
    assert broken == []


def scenario_rows() -> list[tuple[set[int], str]]:
    """Return the rows of the tables of failures with the numbers of the scenarios that each shows."""
    lines = [line for line in FAILURES.read_text().splitlines() if line.startswith("| ")]
    rows = [line for line in lines if not line.startswith("| no. |")]
    return [({int(number) for number in re.findall(r"\d+", row.split("|")[1])}, row) for row in rows]


def scenarios_that_do_not_apply() -> set[int]:
    part = FAILURES.read_text().partition("## Does not apply")[2].partition("\n## ")[0]
    return {int(number) for number in re.findall(r"^- (\d+): \S", part, re.MULTILINE)}


def test_the_table_of_failures_names_a_test_in_each_row() -> None:
    rows = scenario_rows()
    assert len(rows) > 100
    assert [row for _, row in rows if not _NODE.search(row.split("|")[-2]) or row.count("|") != 6] == []


def test_every_scenario_has_its_row_or_a_reason_why_it_does_not_apply() -> None:
    shown = set().union(*(numbers for numbers, _ in scenario_rows()))
    besides = scenarios_that_do_not_apply()
    assert sorted(ALL - shown - besides) == [], "scenarios without a row"
    assert shown & besides == set()
    assert shown | besides <= ALL
    assert besides <= MAY_NOT_APPLY
