"""`minshu-node quality`: what an engineer reads of the department's datasets, in a terminal and on a page."""

import html
import json
import os
import re
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulator import START, World, person

from audit.canaries import forms
from node.cli import main
from node.state import read_state

THRESHOLDS = 'min_completeness = "0.99"\nmin_valid_keys = "0.99"\nmax_age_days = 7\nmax_drift = "0.02"'


@pytest.fixture(autouse=True)
def at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.page._now", lambda: START)


@pytest.fixture(scope="module")
def read_only(founded: World, memory: Path) -> World:
    """A department with a list of 400 rows, dirty and nine days old."""
    world = founded.clone(memory / "dirty")
    ids: list[str | None] = [person(number % 350) for number in range(400)]
    ids[:6] = [None, "", "无", "－", " ", "n/a"]
    for at in range(10, 20):
        spoilt = ids[at] or ""
        ids[at] = spoilt[:-1] + ("1" if spoilt[-1] != "1" else "2")
    table = pa.table(
        {
            "id": ids,
            "姓名": ["<script>alert(1)</script>"] * 400,
            "street": [f"S{number % 3}" for number in range(400)],
            "seen": pa.array([date(1899, 1, 1), *[date(2026, 1, 1)] * 398, None]),
        }
    )
    path = world.folder / "dirty.parquet"
    pq.write_table(table, path)
    os.utime(path, (START.timestamp() - 9 * 86_400,) * 2)
    world.activate("health", quality=THRESHOLDS, accepts=["age"])
    assert run(world, "dataset", "add", "people", str(path), "--key", "id") == 0
    return world


@pytest.fixture
def dirty(read_only: World, folder: Path) -> World:
    """One that a test may change."""
    return read_only.clone(folder / "world")


def run(world: World, *words: str) -> int:
    return main([*words, "--home", str(world.homes["health"].path)])


def said(world: World, capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capfd.readouterr()
    code = run(world, "quality", *words)
    return code, capfd.readouterr().out


def test_a_table_of_columns_and_what_the_policy_says_to_it(read_only: World, capfd: Any) -> None:
    code, out = said(read_only, capfd)
    assert code == 1
    lines = out.splitlines()
    assert lines[0] == "people people: 400 rows, written 2026-11-13T08:00:00Z (9 days ago)"
    table = {line.split()[0]: line.split()[1:] for line in lines[1:6]}
    assert table["column"][:6] == ["type", "complete", "null", "blank", "placeholder", "unmapped"]
    assert table["id"][:8] == ["text", "98.5", "%", "1", "2", "3", ".", "."]
    assert table["seen"][-5:] == ["0", "/", "1", "/", "0"]
    assert "wrong check digit 10" in out
    assert "fails   id is there in 98.5 % of the rows (asked: at least 99 %" in out
    assert "fails   97.4 % of the identifiers are valid" in out
    assert "refuses jobs of: R1" in out
    assert "note    it was written 9 days ago (asked: written at most 7 days ago); accepted by: R1" in out
    assert "最近一次写入距今 9 天" in out


def test_a_script_reads_the_same_figures(read_only: World, capfd: Any) -> None:
    code, out = said(read_only, capfd, "people", "--json")
    assert code == 1
    [found] = json.loads(out)["datasets"]
    assert (found["ok"], found["age_days"], found["thresholds"]) == (False, 9, True)
    assert [(f["metric"], f["found"], f["refused"], f["accepted"]) for f in found["findings"]] == [
        ("completeness", 985, ["R1"], []),
        ("valid-keys", 974, ["R1"], []),
        ("age", 9, [], ["R1"]),
    ]
    with read_state(read_only.homes["health"].database) as reader:
        kept = reader.preflight("people")
    assert kept is not None
    assert json.loads(kept[1])["counts"] == found["counts"]


def test_the_page_loads_nothing_runs_nothing_and_shows_no_value(read_only: World, capfd: Any) -> None:
    page = read_only.folder / "quality.html"
    said(read_only, capfd, "--page", str(page))
    text = page.read_text("utf-8")
    assert "default-src 'none'" in html.unescape(text)
    assert not re.search(r"<script|<link|<img|<iframe|https?://|@import|url\(|\bon\w+=", text)
    assert "数据集质量报告" in text
    assert "98.5 %" in text
    assert "姓名" in text
    data = page.read_bytes()
    assert not any(form in data for number in range(350) for form in forms(person(number)))
    assert b"alert(1)" not in data


def test_names_are_text_to_the_page(world: World, capfd: Any) -> None:
    path = world.folder / "odd.parquet"
    pq.write_table(pa.table({"id": [person(1)], "<b>x</b>": ["1"]}), path)
    assert run(world, "dataset", "add", "people", str(path), "--key", "id", "--title", "<i>人</i>") == 0
    page = world.folder / "quality.html"
    said(world, capfd, "--page", str(page))
    text = page.read_text("utf-8")
    assert "<b>x" not in text
    assert "<i>" not in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text


def test_a_dataset_that_cannot_be_read_is_named_and_the_others_are_looked_at(
    dirty: World, capfd: Any
) -> None:
    pq.write_table(pa.table({"id": [person(1)]}), dirty.folder / "more.parquet")
    assert run(dirty, "dataset", "add", "more", str(dirty.folder / "more.parquet"), "--key", "id") == 0
    (dirty.folder / "dirty.parquet").unlink()
    page = dirty.folder / "quality.html"
    code, out = said(dirty, capfd, "--page", str(page))
    assert code == 1
    assert "error   people: the dataset's file cannot be read" in out
    assert "note    no policy in force asks anything of its quality" in out
    assert str(dirty.folder) not in page.read_text("utf-8")


def test_an_unknown_dataset_is_refused_with_the_closest(read_only: World, capfd: Any) -> None:
    assert run(read_only, "quality", "poeple") == 1
    assert "no dataset poeple is registered, closest: people" in capfd.readouterr().err


def test_a_dataset_that_meets_everything_ends_well(world: World, capfd: Any) -> None:
    os.utime(world.folder / "health.csv", (START.timestamp(),) * 2)
    world.activate("health", quality=THRESHOLDS)
    code, out = said(world, capfd)
    assert code == 0
    assert "ok      meets all that the policy in force asks\n        达到现行策略的全部质量要求" in out


def test_adding_a_dataset_anew_forgets_what_was_found_of_its_old_table(dirty: World) -> None:
    def kept() -> tuple[str, bytes] | None:
        with read_state(dirty.homes["health"].database) as reader:
            return reader.preflight("people")

    before = kept()
    path = Path(dirty.folder / "other.parquet")
    pq.write_table(pa.table({"id": [person(1)]}), path)
    assert run(dirty, "dataset", "add", "people", str(path), "--key", "id") == 0
    after = kept()
    assert before is not None
    assert after is not None
    assert json.loads(after[1])["counts"]["rows"] == 1
    assert before[0] != after[0]
