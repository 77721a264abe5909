"""The right answers of scenario 6 are what the dirty registers say, and depend on what is documented."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from demo.city import SNAPSHOT, generate, load_manifest, load_vaccination
from demo.city.registers import DISTRICT_LISTS, DISTRICTS
from demo.city.uptake import AGE_EDGES, ANSWERS, KINDS, SCHEMES, STREET_TYPES, VISIT_EDGES, WIDTHS
from demo.city.vaccination import ENROLLED, IMMUNISATION, JOINED, RESIDENTS
from protocols.errors import InputError
from protocols.identifiers import demo_area_table, normalise


@pytest.fixture(scope="module", params=["ci", pytest.param("demo", marks=pytest.mark.long)])
def city(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vaccination") / request.param
    generate(request.param, 3, folder, workers=2)
    return folder


def people(city: Path, name: str) -> pd.DataFrame:
    """Return each person's newest row, by the identifier as a node reads it."""
    rows = pq.read_table(city / "registers" / f"{name}.parquet")
    found = normalise(rows["resident_id"], "resident-id", as_of=SNAPSHOT, areas=demo_area_table())
    frame = rows.to_pandas().iloc[found.rows].assign(key=found.keys.astype("U"))
    return frame.sort_values("last_seen_month", ascending=False, kind="stable").groupby("key").first()


def codes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the bands and codes of some rows, as far as they have the columns."""
    texts = {"sex": (1, 2), "kind": KINDS, "street_type": STREET_TYPES, "checkup": ANSWERS,
             "scheme": SCHEMES, "vaccinated": ANSWERS}  # fmt: skip
    found = {name: rows[name].map(dict(zip(v, range(len(v)), strict=True)))
             for name, v in texts.items() if name in rows}  # fmt: skip
    for name, edges in (("age", AGE_EDGES), ("visits", VISIT_EDGES)):
        if name in rows:
            found[name] = np.searchsorted(edges, rows[name], side="right")
    return pd.DataFrame(found, index=rows.index)


def cells(rows: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Return people by cell: not vaccinated, and vaccinated."""
    found: dict[str, list[int]] = {}
    for *code, label in rows[[*WIDTHS, "vaccinated"]].itertuples(index=False):
        found.setdefault("".join(map(str, code)), [0, 0])[label] += 1
    return {code: (others, vaccinated) for code, (others, vaccinated) in found.items()}


@pytest.mark.parametrize("name", DISTRICT_LISTS)
def test_a_district_s_cells_are_those_of_its_register(city: Path, name: str) -> None:
    rows = people(city, name)
    found, expected = codes(rows), load_vaccination(city)
    assert cells(found) == expected.questions[name].cells
    assert expected.questions[name].persons == expected.lists[name] == len(rows)
    assert expected.questions[name].vaccinated == found["vaccinated"].sum() > 0
    assert set(rows["street"].str[:6]) == {name.removeprefix("health-").partition("/")[0]}


def test_nobody_is_in_the_registers_of_two_districts(city: Path) -> None:
    keys = [set(people(city, name).index) for name in DISTRICT_LISTS]
    assert len(DISTRICTS) == len(keys) == 3
    assert sum(map(len, keys)) == len(set.union(*keys))


def test_joined_cells_are_those_of_three_registers_joined_by_identifier(city: Path) -> None:
    lists = {name: people(city, name) for name in (RESIDENTS, IMMUNISATION, ENROLLED)}
    parts = [codes(rows) for rows in lists.values()]
    both = parts[0].join(parts[1], how="inner").join(parts[2], how="inner")
    expected = load_vaccination(city)
    assert cells(both.dropna().astype(int)) == expected.questions[JOINED].cells
    assert expected.questions[JOINED].persons == len(both)
    assert {name: len(rows) for name, rows in lists.items()} == {name: expected.lists[name] for name in lists}


def test_departments_agree_on_what_they_both_know(city: Path) -> None:
    health = people(city, IMMUNISATION)
    for name in DISTRICT_LISTS:
        both = people(city, name).join(health.add_suffix(" there"), how="inner")
        assert len(both) > 100
        for column in ("visits", "checkup", "vaccinated"):
            assert (both[column] == both[f"{column} there"]).all()


def test_who_is_vaccinated_was_drawn_with_the_chance_that_stands_in_the_truth(city: Path) -> None:
    truth = pq.read_table(city / "truth" / "vaccination.parquet").to_pandas()
    persons = pq.read_table(
        city / "truth" / "persons.parquet", columns=["resident_id", "living", "birth_date"]
    )
    grown = persons.to_pandas().query("living")
    ages = SNAPSHOT.year - pd.to_datetime(grown["birth_date"]).dt.year
    assert set(truth["resident_id"]) == set(grown["resident_id"][ages >= 15])
    variance = (truth["chance"] * (1 - truth["chance"])).sum()
    assert abs(truth["vaccinated"].sum() - truth["chance"].sum()) < 5 * variance**0.5
    for word in STREET_TYPES:
        of_type = truth[truth["street_type"] == word]
        assert 0 < of_type["vaccinated"].mean() < 1
    rates = truth.groupby("street_type")["vaccinated"].mean()
    assert rates["core"] > rates["suburb"] > rates["village"]


def test_the_public_panel_is_about_nobody_and_looks_like_the_residents(city: Path) -> None:
    path = city / "registers" / "statistics" / "panel.parquet"
    panel = pq.read_table(path).to_pandas()
    assert not {"resident_id", "name", "phone"} & set(panel)
    assert load_manifest(city).files["registers/statistics/panel.parquet"].distinct_keys == -1
    residents = people(city, DISTRICT_LISTS[0])
    for column in ("age", "visits"):
        assert panel[column].mean() == pytest.approx(residents[column].mean(), rel=0.1)
    assert (panel["vaccinated"] == "yes").mean() == pytest.approx(
        (residents["vaccinated"] == "yes").mean(), abs=0.06
    )


def test_a_folder_without_the_answer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "expected").mkdir()
    (tmp_path / "expected" / "scenario-6.json").write_text(json.dumps({"schema": "other/1"}))
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError) as caught:
            load_vaccination(folder)
        assert caught.value.code == "no-city"
