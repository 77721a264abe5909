"""Scenarios at the ci profile, as somebody would type them: real processes, real noise, an honest exit code.

Each takes twenty seconds, so they are `long`; `.ci/run` plays them by their commands.
"""

import csv
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.city import (
    PRIMARY_YEARS,
    SchoolPlaces,
    generate,
    load_deaths,
    load_marital,
    load_school_places,
)
from demo.scenarios.play import codes_of

DEMO = Path(sys.executable).with_name("minshu-demo")


@dataclass(frozen=True)
class Played:
    out: Path
    output: str

    @property
    def summary(self):
        return json.loads((self.out / "summary.json").read_text("utf-8"))

    def rows(self) -> list[dict[str, str]]:
        with (self.out / "table.csv").open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))

    def release(self, name: str) -> list[dict[str, object]]:
        with pa.OSFile(str(self.out / "releases" / name / "table.arrow")) as file:
            return pa.ipc.open_stream(file).read_all().to_pylist()


def play(folder: Path, number: int) -> Played:
    out = folder / "out"
    command = [str(DEMO), "scenario", str(number), "--profile", "ci", "--seed", "2", "--out", str(out)]
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "\x1b" not in done.stdout
    return Played(out, done.stdout)


def check_left(played: Played, number: int) -> None:
    """Check what every scenario leaves."""
    summary = played.summary
    assert (summary["scenario"], summary["profile"], summary["seed"]) == (number, "ci", 2)
    assert summary["equals_expected"] is True
    assert summary["journals_verified"] is True
    assert summary["seconds"]["total"] > 0
    for name in ("picture.png", "picture.svg", "table.csv", "roots.json"):
        assert (played.out / name).stat().st_size > 200
    assert {path.name for path in (played.out / "bundles").iterdir()} >= {"coordinator", "statistics"}
    assert not list(played.out.parent.glob(".out.work-*"))


def check_places_are_those_of_the_register(school_places: Played, truth: SchoolPlaces) -> None:
    found = {
        (row["street"], row["stage"]): row["value"]
        for row in school_places.release("places") if row["measure"] == "sum(places)"
    }  # fmt: skip
    for street, by_stage in truth.places.items():
        for stage, places in by_stage.items():
            assert found[street, stage] == places
    assert found["", ""] == sum(sum(by_stage.values()) for by_stage in truth.places.values())


def check_children_have_noise_and_intervals(school_places: Played, truth: SchoolPlaces) -> None:
    rows = school_places.release("children")
    assert len(rows) == len(codes_of("ci").streets) * len(PRIMARY_YEARS)
    shown = [row for row in rows if not row["withheld"]]
    assert all(row["low"] <= row["value"] <= row["high"] for row in shown)
    exact = [row["value"] == truth.children[row["street"]].get(row["year"], 0) for row in shown]
    # Noise of standard deviation above 1: that no figure is off happens less than once in 1e10 tables.
    assert not all(exact)


def check_every_area_has_a_gap_and_a_verdict_that_its_interval_allows(
    school_places: Played, truth: SchoolPlaces
) -> None:
    rows = {row["street"]: row for row in school_places.rows() if not row["year"]}
    assert set(rows) == {"", *codes_of("ci").districts, *codes_of("ci").streets}
    for area, row in rows.items():
        places = sum(by["primary"] for street, by in truth.places.items() if street.startswith(area))
        assert int(row["places"]) == places
        if row["withheld"] == "True":
            assert (row["children"], row["gap"], row["verdict"]) == ("", "", "open")
            continue
        low, high = float(row["gap low"]), float(row["gap high"])
        assert low <= float(row["gap"]) <= high
        assert row["verdict"] == ("lacking" if high < 0 else "enough" if low >= 0 else "open")
    counts = school_places.summary["streets"]
    assert sum(counts.values()) == len(codes_of("ci").streets)


@pytest.mark.long  # see the top
def test_school_places_are_exact_children_noisy_and_every_verdict_is_one_that_its_interval_allows(tmp_path):
    # One test, so that one worker plays the scenario once.
    played = play(tmp_path, 4)
    city = tmp_path / "city"
    generate("ci", 2, city, workers=2)
    truth = load_school_places(city)
    check_left(played, 4)
    assert "within ±" in played.output  # what the plan says, before anything is spent
    check_places_are_those_of_the_register(played, truth)
    check_children_have_noise_and_intervals(played, truth)
    check_every_area_has_a_gap_and_a_verdict_that_its_interval_allows(played, truth)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    command = [str(DEMO), "scenario", "4", "--profile", "ci", "--out", str(tmp_path / "mine")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "exists and is no earlier demo's folder" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.long  # see the top
def test_separation_is_exact_by_district_and_noisy_by_street(tmp_path):
    played = play(tmp_path, 3)
    check_left(played, 3)
    summary = played.summary
    assert summary["finer"] == "differencing"
    assert summary["districts"]["cells"] == 144
    assert 0 < summary["districts"]["withheld"] < 144  # a small city has small cells
    assert summary["streets"]["covered"] >= 0.8


@pytest.mark.long  # see the top
def test_villages_are_counted_by_three_departments_and_shown_from_fifty_people_on(tmp_path):
    played = play(tmp_path, 9)
    check_left(played, 9)
    summary = played.summary
    assert summary["areas"]["city"] == 1
    assert summary["areas"]["village"] == 27
    shown = [row for row in played.release("villages") if not row["withheld"]]
    assert shown
    assert all(row["value"] >= 150 for row in shown)
    assert summary["per_department"] == pytest.approx(summary["records"] / 3, abs=0.1)


def check_nobody_is_named(played: Played, city: Path) -> None:
    """Check that no identifier of the city stands in what was printed, or in the tables that are left."""
    people = pq.read_table(city / "truth" / "persons.parquet", columns=["resident_id"])
    ids = people["resident_id"].to_pylist()
    left = [played.output, *(path.read_text("utf-8") for path in played.out.glob("*.[cj]s*"))]
    found = {digits for text in left for digits in re.findall(r"\d{17}[\dX]", text)}
    assert not found & set(ids)


@pytest.mark.long  # see the top
def test_the_dead_are_told_to_their_departments_after_the_grace_and_counted_for_the_bureau(tmp_path):
    played = play(tmp_path, 2)
    city = tmp_path / "city"
    generate("ci", 2, city, workers=2)
    truth = load_deaths(city).questions
    check_left(played, 2)
    check_nobody_is_named(played, city)
    summary = played.summary
    assert summary["flagged"] == {name: one.flagged for name, one in truth.items()}
    assert summary["within_grace"] == {name: one.within_grace for name, one in truth.items()}
    assert summary["refused"] == {"cause": "negative-list", "no-grace": "differencing"}
    for name in truth:
        with pa.OSFile(str(played.out / "releases" / name / "street-table.arrow")) as file:
            rows = pa.ipc.open_stream(file).read_all().to_pylist()
        assert all(row["withheld"] or row["count"] >= 10 for row in rows)


@pytest.mark.long  # see the top
def test_models_are_trained_by_district_and_across_departments_and_are_what_their_cards_say(tmp_path):
    played = play(tmp_path, 6)
    city = tmp_path / "city"
    generate("ci", 2, city, workers=2)
    check_left(played, 6)
    check_nobody_is_named(played, city)
    summary = played.summary
    assert summary["refused"] == {"diagnosis": "negative-list", "exact": "exact-training"}
    assert summary["joined_gain"] > 0
    for name in ("districts", "boost", "joined"):
        folder = played.out / "releases" / name
        assert {path.name for path in folder.iterdir()} >= {
            "model.safetensors",
            "model-card.json",
            "curves.json",
        }
        assert summary["measured"][name]["epsilon"] == "1"
        assert abs(summary["released_auc"][name] - summary["central_auc"][name]) < 0.15
    assert all(abs(found - 0.5) < 0.15 for found in summary["membership_auc"].values())
    assert len(played.rows()) == 10


@pytest.mark.long  # see the top
def test_each_department_learns_which_of_its_own_records_differ_and_the_bureau_nothing(tmp_path):
    played = play(tmp_path, 8)
    city = tmp_path / "city"
    generate("ci", 2, city, workers=2)
    truth = load_marital(city)
    check_left(played, 8)
    check_nobody_is_named(played, city)
    summary = played.summary
    assert (summary["both"], summary["differing"]) == (truth.both, truth.differing)
    assert played.output.count(f": {truth.differing} people, suspected") == 2
    assert summary["refused"] == {"spouse": "negative-list", "held": "differencing"}
    assert not (played.out / "releases").exists()


@pytest.mark.long  # see the top
def test_a_clerk_verifies_the_own_street_and_nothing_else(tmp_path):
    played = play(tmp_path, 10)
    city = tmp_path / "city"
    generate("ci", 2, city, workers=2)
    check_left(played, 10)
    check_nobody_is_named(played, city)
    summary = played.summary
    assert (summary["lookups"], summary["found"], summary["wrong"]) == (300, 120, 0)
    refused = summary["refused"]
    assert "used up" in refused.pop("one-too-many")
    assert refused == {
        "another-street": "outside-scope",
        "too-many": "rows-above-rule",
        "another-field": "column-not-allowed",
    }
    assert len(played.rows()) == 140
