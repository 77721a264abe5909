"""The result format of every measurement, its page and its resuming."""

import json

import pytest

from bench import __main__ as program
from bench import rows
from bench.rows import Results, Row, render, table


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "ROOT", tmp_path)
    monkeypatch.setattr(program, "ROOT", tmp_path)
    monkeypatch.setattr(rows, "OUT", tmp_path / "bench-out")
    monkeypatch.setattr(rows, "commit", lambda: "abc1234")
    return tmp_path / "bench-out"


def test_a_row_is_on_disk_as_soon_as_it_is_known(out):
    results = Results("relay")
    results.add(Row("sealed", 150.0, "MB/s", "bare", 200.0))
    results.add(Row("other", 3.0, "s"))
    document = json.loads((out / "relay.json").read_text())
    assert document.pop("cores") >= 1
    assert document == {
        "name": "relay",
        "commit": "abc1234",
        "rows": [
            {"what": "sealed", "value": 150.0, "unit": "MB/s"}
            | {"peer": "bare", "peer_value": 200.0, "ratio": 0.75},
            {"what": "other", "value": 3.0, "unit": "s", "peer": None, "peer_value": None, "ratio": None},
        ],
    }  # fmt: skip


def test_a_resumed_measurement_keeps_the_rows_of_its_commit_and_no_others(out, monkeypatch):
    Results("crosscheck-long").add(Row("wall", 1.0, "s"))
    assert Results("crosscheck-long", resume=True).has("wall")
    assert not Results("crosscheck-long").has("wall")
    monkeypatch.setattr(rows, "commit", lambda: "def5678")
    assert not Results("crosscheck-long", resume=True).has("wall")


def test_the_table_shows_four_digits_and_leaves_blank_what_there_is_not():
    assert table(
        [Row("path", 44073.344, "exponentiations/s", "bare", 45380.2), Row("rss", 243.71, "MB")]
    ) == (
        "| what | value | unit | peer | peer value | ratio |\n"
        "|---|---:|---|---|---:|---:|\n"
        "| path | 44,073 | exponentiations/s | bare | 45,380 | 0.9712 |\n"
        "| rss | 243.7 | MB |  |  |  |"
    )


def test_the_page_holds_every_measurement(out, tmp_path):
    for name in ("tagging", "relay"):
        Results(name).add(Row("what", 1.0, "s"))
    page = tmp_path / "benchmarks.md"
    render(out, page)
    assert [line for line in page.read_text().splitlines() if line.startswith("## ")] == [
        "## relay",
        "## tagging",
    ]
    assert "Commit abc1234" in page.read_text()


def test_what_another_machine_measured_stays_on_the_page(out, tmp_path, monkeypatch):
    page = tmp_path / "benchmarks.md"
    for name in ("relay", "tagging"):
        Results(name).add(Row("what", 1.0, "s"))
    render(out, page)
    first = page.read_text()
    render(out, page)
    assert page.read_text() == first
    (out / "relay.json").unlink()
    monkeypatch.setattr(rows, "commit", lambda: "def5678")
    Results("tagging").add(Row("what", 2.0, "s"))
    render(out, page)
    found = page.read_text()
    assert found.split("## tagging")[0] == first.split("## tagging")[0]
    assert "Commit def5678" in found.split("## tagging")[1]
    assert first.count("\n## ") == found.count("\n## ") == 2


def test_the_command_measures_by_name_and_names_what_it_wrote(out, monkeypatch, capsys):
    assert {"crosscheck", "identifiers", "relay", "tagging"} <= set(program.NAMES)
    monkeypatch.setattr("bench.relay.compare", lambda *_: (1.5, 2.0))
    monkeypatch.setattr("sys.argv", ["bench", "relay", "--long"])
    assert program.main() == 0
    assert "| sealed | 1.5 | MB/s |" in capsys.readouterr().out
    monkeypatch.setattr("bench.relay.compare", None)  # not called again: the row is there
    assert program.main() == 0
    assert capsys.readouterr().out.endswith("written: bench-out/relay-long.json\n")
    assert json.loads((out / "relay-long.json").read_text())["rows"][0]["ratio"] == 0.75
