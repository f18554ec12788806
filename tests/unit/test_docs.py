"""What the documents name exists: tests, files, headings, commands, settings."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from get3d_cluster.cli.app import app
from get3d_cluster.config import find_job, job_names, keys
from get3d_cluster.config.hints import hint_at
from get3d_cluster.config.loading import _with_section

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


CLI = typer.main.get_command(app)
CONFIGS = {name: find_job(name).Config for name in job_names()}
KEYS = {
    ".".join(parts[start:])
    for config in CONFIGS.values()
    for parts in (key.path.split(".") for key in keys(config))
    for start in range(len(parts))
}
"""Each key of each job as a text may name it: whole, or without the sections that it has been speaking of."""
_COMMAND = re.compile(r"launch\.py ((?:\\\n|[^\n`])*)")
_QUOTED = re.compile(r"`([^`\n]+)`")
_SETTING = re.compile(r"([a-z_]+(?:\.[a-z0-9_]+)*)=(?=\S)")
_PLACE = re.compile(r"(?:docs|docker|get3d_cluster|jobs|preprocess|tests)/[\w./-]*")


def commands(document: Path) -> list[list[str]]:
    """Return the words after ``launch.py`` of each command; those of a chain one by one, with the verb."""
    found = []
    for line in _COMMAND.findall(document.read_text()):
        words = shlex.split(line.replace("\\\n", " ").partition(" # ")[0])
        verb, links = words[0], " ".join(words[1:]).split(" --then ")
        found += [[verb, *link.split()] for link in links]
    return found


def key_is_known(config: type[Any], key: str) -> bool:
    return hint_at(config, _with_section(config, key)) is not None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_command_has_a_verb_flags_a_job_and_keys_that_exist(document: Path) -> None:
    wrong = []
    for verb, *words in commands(document):
        if not verb.islower():
            continue
        known = CLI.commands.get(verb)
        flags = {option for each in known.params for option in each.opts} if known else set()
        wrong += [f"{verb} {word}" for word in words if word.startswith("--") and word not in flags]
        wrong += [] if known else [verb]
        jobs = [word for word in words if word in CONFIGS][:1]
        given = [match[1] for word in words if (match := _SETTING.match(word))]
        wrong += [f"{jobs[0]} {key}" for key in given if jobs and not key_is_known(CONFIGS[jobs[0]], key)]
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_each_place_key_and_make_target_in_quotes_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong = []
    for quoted in _QUOTED.findall(document.read_text()):
        if _PLACE.fullmatch(quoted) and "NAME" not in quoted and not (ROOT / quoted).exists():
            wrong.append(quoted)
        if quoted.startswith("make ") and not set(quoted.split()[1:2]) <= targets:
            wrong.append(quoted)
        setting = _SETTING.match(quoted)
        if setting and not quoted.endswith(("=True", "=False")) and not KEYS & {setting[1]}:  # not of Python
            wrong.append(quoted)
    assert wrong == []
