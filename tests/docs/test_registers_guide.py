"""docs/registers.md: who types what the page says sees what it shows; what it writes down is what is read."""

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from node.config import load_config
from node.description import read_description
from node.mapping import known_tables
from node.sources.connections import Connection

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / name).read_text("utf-8") for name in ("registers.md", "registers.zh.md")}
ENGLISH, CHINESE = PAGES.values()
pages = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", page)


def settings(page: str, begin: str) -> list[str]:
    return [block for block in blocks(page, "toml") if re.search(begin, block, re.MULTILINE)]


def missing(shown: str, printed: str) -> list[str]:
    """Return the lines that were not printed, or not in this order; `…` stands for anything."""
    lines = iter(printed.splitlines())
    return [
        line
        for line in shown.splitlines()
        if not any(re.fullmatch(".*".join(map(re.escape, line.split("…"))), each) for each in lines)
    ]


@pytest.mark.alone  # a dozen programs, some ten seconds
def test_whoever_types_what_the_page_says_sees_what_it_shows(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(blocks(ENGLISH, "sh"))],
        cwd=ROOT, env={**os.environ, "PATH": path, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert not missing("".join(blocks(ENGLISH, "text")), done.stdout)
    assert not re.search(r"\b\d{17}[\dXx]\b", done.stdout)  # no identifier, of all the commands


def test_both_languages_show_the_same_commands_and_the_same_output() -> None:
    for language in ("sh", "bash", "text", "sql", "csv"):
        assert blocks(ENGLISH, language) == blocks(CHINESE, language) != []
    one, other = ([tomllib.loads(block) for block in blocks(page, "toml")] for page in PAGES.values())
    assert one == other


@pages
def test_every_connection_and_cluster_of_the_page_is_one_that_a_node_takes(page: str, tmp_path: Path) -> None:
    home = tmp_path / "node.toml"
    for block in settings(page, r"^\[(connections\.|compute\])"):
        home.write_text(f'name = "police.gz.example/node-a"\n{block}', "utf-8")
        config = load_config(home)
        assert config.connections or config.compute.processes or config.compute.cluster
    known = {each.name for each in fields(Connection) if each.metadata.get("set", True)}
    rows = {
        name
        for row in re.findall(r"(?m)^\| (`[a-z_`、, ]+) \|.*\|.*\|$", page)
        for name in re.findall(r"`([a-z_]+)`", row)
    }
    assert {"url", "password_file"} <= known <= rows


@pages
def test_every_description_of_the_page_is_one_that_a_dataset_takes(page: str, tmp_path: Path) -> None:
    file = tmp_path / "description.toml"
    found = settings(page, r"^(title = |\[mapping)")
    assert len(found) == 2
    for block in found:
        file.write_text(block, "utf-8")
        description = read_description(file)
        assert description.mapping or description.title


@pages
def test_the_code_table_of_the_page_has_the_version_that_its_mapping_names(page: str, tmp_path: Path) -> None:
    (table,) = blocks(page, "csv")
    (tmp_path / "districts.csv").write_text(table, "utf-8")
    tables = known_tables(tmp_path)
    (mapping,) = settings(page, r"^\[mapping")
    named = {each["table"] for each in tomllib.loads(mapping)["mapping"].values()}
    assert {tables[each].id for each in named} == named
    for row in re.findall(r"(?m)^\| `([a-z0-9.-]+@[0-9]+)` \|", page):
        assert tables[row].id == row


@pages
def test_every_code_that_the_page_explains_is_one_that_is_raised(page: str) -> None:
    code = "".join(
        path.read_text("utf-8")
        for folder in ("node", "policies", "protocols")
        for path in (ROOT / folder).rglob("*.py")
    )
    explained = {
        word
        for row in re.findall(r"(?m)^\| (`[a-z-]+`(?:[,、] ?`[a-z-]+`)*) \|", page)
        for word in re.findall(r"`([a-z]+-[a-z-]+)`", row)
    }
    assert {"formula-cell", "series-over", "duplicate-column"} <= explained
    assert {word for word in explained if f'"{word}"' not in code} == set()


@pages
def test_every_place_in_the_page_that_another_part_points_at_is_there(page: str) -> None:
    titles = {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-")
              for title in re.findall(r"(?m)^#+ (.*)$", page)}  # fmt: skip
    targets = set(re.findall(r"\]\(#([^)]+)\)", page))
    assert len(targets) > 8
    assert targets <= titles
