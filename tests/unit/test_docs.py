"""What the documents name exists: tests, files, headings."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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
        if not path.is_file() or (function and function not in functions_of(path)):
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


def test_the_table_of_failures_names_a_test_in_each_row() -> None:
    rows = [
        line for line in (ROOT / "docs" / "failures.md").read_text().splitlines() if line.startswith("| ")
    ]
    data = [row for row in rows if not row.startswith("| what breaks")]
    assert len(data) > 30
    assert [row for row in data if not _NODE.search(row)] == []
