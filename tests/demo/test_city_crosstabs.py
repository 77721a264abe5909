"""The right answers of scenarios 3, 4 and 9 are what the dirty registers say, read by other means."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from demo.city import (
    AREA_CODES,
    PRIMARY_YEARS,
    SNAPSHOT,
    generate,
    load_manifest,
    load_school_places,
    load_separation,
    load_villages,
)
from demo.city.crosstabs import CHILDREN_LISTS, VILLAGE_LISTS
from protocols.errors import InputError
from protocols.identifiers import demo_area_table, normalise


@pytest.fixture(scope="module", params=["ci", "demo"])
def city(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cities") / request.param
    generate(request.param, 3, folder, workers=2)
    return folder


def counted(city: Path, name: str, inside: Callable[[pd.DataFrame], pd.Series] | None = None) -> pd.DataFrame:
    """Return each person's newest row of those `inside`, by the identifiers that stand in the register."""
    rows = pq.read_table(city / "registers" / f"{name}.parquet")
    keys = normalise(rows["resident_id"], "resident-id", as_of=SNAPSHOT, areas=demo_area_table())
    frame = rows.to_pandas().iloc[keys.rows]
    frame["key"] = [key.decode() for key in keys.keys.tolist()]
    frame["at"] = range(len(frame))
    if inside is not None:
        frame = frame[inside(frame)]
    return frame.sort_values(["last_seen_month", "at"], ascending=[False, True]).drop_duplicates("key")


def of_primary_age(rows: pd.DataFrame) -> pd.Series:
    return (rows["authoritative"] == "yes") & rows["primary_year"].isin(PRIMARY_YEARS)


def nested(counts: Counter) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for (row, column), count in counts.items():
        table.setdefault(row, {})[column] = count
    return table


def kept(table: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {row: counts for row, counts in table.items() if counts}


def test_the_separation_matrix_is_the_register_s_own_pair_of_columns(city: Path) -> None:
    register = counted(city, "police/register")
    pairs = Counter(zip(register["register_street"], register["residence_street"], strict=True))
    expected = load_separation(city)
    assert kept(expected.streets) == nested(pairs)
    assert expected.persons == len(register)
    assert expected.separated == sum(n for (there, here), n in pairs.items() if there != here)
    # To the person what the census says of the residents; the dead on the register live nowhere else.
    assert expected.separated == load_manifest(city).population * 828 // 10_000
    assert (
        register["separated"].eq("yes") == register["register_street"].ne(register["residence_street"])
    ).all()
    assert (register["register_district"] == register["register_street"].str[:6]).all()
    assert (register["residence_district"] == register["residence_street"].str[:6]).all()


def test_children_are_counted_where_the_list_that_counts_them_says_they_live(city: Path) -> None:
    expected = load_school_places(city)
    cells: Counter = Counter()
    for name in CHILDREN_LISTS:
        rows = counted(city, name, of_primary_age)
        place = "residence_street" if name == "police/register" else "street"
        cells.update(zip(rows[place], rows["primary_year"], strict=True))
        assert expected.lists[name] == len(rows)
    assert kept(expected.children) == nested(cells)
    assert sum(expected.lists.values()) == sum(cells.values())


def test_no_child_counts_in_two_lists_whatever_id_a_list_knows_it_by(city: Path) -> None:
    people = pq.read_table(city / "truth" / "persons.parquet", columns=["resident_id", "known_as"])
    own = {
        f"RIC:{number}": person
        for person, known_as in zip(*(people[name].to_pylist() for name in people.column_names), strict=True)
        for number in (person, known_as)
        if number
    }
    seen: Counter = Counter()
    for name in CHILDREN_LISTS:
        rows = counted(city, name)
        rows = rows[(rows["authoritative"] == "yes") & rows["primary_year"].notna()]
        seen.update({own[key] for key in rows["key"]})
    assert set(seen.values()) == {1}


def test_the_children_s_year_of_entry_follows_from_the_year_of_birth(city: Path) -> None:
    for name in CHILDREN_LISTS[:2]:
        rows = pq.read_table(
            city / "registers" / f"{name}.parquet",
            columns=["birth_date", "primary_year", "authoritative"],
        )
        for row in rows.to_pylist():
            child = SNAPSHOT.year - row["birth_date"].year <= 14
            assert row["primary_year"] == (str(row["birth_date"].year + 6) if child else None)
            assert (row["authoritative"] is None) == (not child)


def test_villagers_are_counted_on_each_list_in_the_village_of_their_newest_row(city: Path) -> None:
    expected = load_villages(city)
    for name in VILLAGE_LISTS:
        villages = counted(city, name, lambda rows: rows["village"].notna())["village"]
        assert Counter(villages) == {v: n[name] for v, n in expected.villages.items() if n[name]}
    assert len(expected.villages) == (27 if load_manifest(city).profile == "ci" else 271)
    assert {code[:6] for code in expected.villages} <= set(AREA_CODES)
    assert set(expected.living) == set(expected.villages)


def test_what_is_so_stands_in_the_truth(city: Path) -> None:
    persons = duckdb.read_parquet(str(city / "truth" / "persons.parquet"))  # noqa: F841  # named in the SQL
    found = dict(
        duckdb.sql(
            "select village, count(*) from persons where living and village is not null group by 1"
        ).fetchall()
    )
    expected = load_villages(city)
    assert found == {village: count for village, count in expected.living.items() if count}
    children = duckdb.sql(
        "select street, year(birth_date) + 6 as entry, count(*) from persons "
        f"where living and {SNAPSHOT.year} - year(birth_date) <= 5 group by all"
    ).fetchall()
    assert kept(load_school_places(city).living) == nested(
        Counter({(street, str(entry)): count for street, entry, count in children})
    )


def test_a_village_lies_in_the_street_of_its_row(city: Path) -> None:
    for name in VILLAGE_LISTS:
        column = "residence_street" if name == "police/population" else "street"
        rows = pq.read_table(city / "registers" / f"{name}.parquet", columns=[column, "village"]).to_pandas()
        rows = rows[rows["village"].notna()]
        assert len(rows)
        assert (rows["village"].str[:9] == rows[column]).all()
        assert rows["village"].str.len().eq(12).all()


def test_school_places_are_those_of_the_register_without_people(city: Path) -> None:
    rows = pq.read_table(city / "registers/education/places.parquet").to_pandas()
    places = {(row.street, row.stage): row.places for row in rows[["street", "stage", "places"]].itertuples()}
    expected = load_school_places(city).places
    assert {(street, stage): n for street, by in expected.items() for stage, n in by.items()} == places


@pytest.mark.parametrize("load", [load_separation, load_school_places, load_villages])
def test_a_folder_without_the_answer_is_refused(tmp_path: Path, load) -> None:
    (tmp_path / "expected").mkdir()
    for number in (3, 4, 9):
        (tmp_path / "expected" / f"scenario-{number}.json").write_text(json.dumps({"schema": "other/1"}))
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError) as caught:
            load(folder)
        assert caught.value.code == "no-city"
