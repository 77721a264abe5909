"""The right answers over joined rows are what the dirty registers say, joined by the identifiers in them."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from demo.city import (
    SNAPSHOT,
    generate,
    keys_sha256,
    load_deaths,
    load_flexible_work,
    load_hardship,
    load_overpaid,
    load_residents,
)
from demo.city.joins import BURDENS, MOMENTS, MONTHLY_HIGH
from protocols.errors import InputError
from protocols.identifiers import demo_area_table, normalise


@pytest.fixture(scope="module", params=["ci", pytest.param("demo", marks=pytest.mark.long)])
def city(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joins") / request.param
    generate(request.param, 3, folder, workers=2)
    return folder


def people(city: Path, name: str) -> pd.DataFrame:
    """Return each person's newest row, by the identifier as a node reads it."""
    rows = pq.read_table(city / "registers" / f"{name}.parquet")
    found = normalise(rows["resident_id"], "resident-id", as_of=SNAPSHOT, areas=demo_area_table())
    frame = rows.to_pandas().iloc[found.rows].assign(key=found.keys.astype("U"))
    return frame.sort_values("last_seen_month", ascending=False, kind="stable").groupby("key").first()


def months(values: pd.Series) -> pd.Series:
    """Return whole months to the extracts, of days or of yyyymm."""
    if values.dtype.kind in "iu":
        return 2025 * 12 + 12 - (values // 100 * 12 + values % 100)
    days = pd.to_datetime(values)
    return 2025 * 12 + 12 - (days.dt.year * 12 + days.dt.month)


def test_the_overpaid_total_is_what_the_pension_and_the_funeral_list_say(city: Path) -> None:
    funerals = people(city, "civil-affairs/funeral")[["funeral_date"]]
    both = people(city, "human-resources/pension").join(funerals, how="inner")
    days = pd.to_datetime(both["funeral_date"])
    past = days < "2025-10-01"
    paid = months(both["funeral_date"])
    expected = load_overpaid(city)
    assert expected.persons == len(both) > 10
    assert expected.total_fen == (both["monthly_fen"] * paid).sum()
    assert expected.past_grace == sum(past) > 0
    assert expected.past_grace_fen == (both["monthly_fen"] * paid)[past].sum()
    assert sum(days <= "2025-10-02") == load_deaths(city).questions["pension"].flagged >= sum(past)
    assert expected.bounded_fen == (both["monthly_fen"].clip(upper=MONTHLY_HIGH) * paid)[past].sum()
    assert expected.bounded == (both["monthly_fen"][past] > MONTHLY_HIGH).sum()
    assert expected.months == {str(n): count for n, count in Counter(paid).items()}
    assert set(paid) <= set(range(12))


def test_residents_are_joined_with_the_operator_s_newest_month(city: Path) -> None:
    register, monthly = people(city, "police/register"), people(city, "telecom/monthly")
    assert set(monthly["last_seen_month"]) == {202512}
    assert (monthly["district"] == monthly["street"].str[:6]).all()
    both = register[["register_street"]].join(monthly[["street"]], how="inner")
    cells = Counter(zip(both["register_street"], both["street"], strict=True))
    expected = load_residents(city)
    assert expected.persons == len(both)
    assert expected.separated == sum(n for (there, here), n in cells.items() if there != here) > 0
    assert {(a, b): n for a, row in expected.streets.items() for b, n in row.items()} == cells


def joined_amounts(city: Path, name: str) -> tuple[pd.DataFrame, list[int]]:
    """Return one of scenario 5's questions' amounts, held to their bounds, and how many that changed."""
    found: pd.DataFrame | None = None
    for word, column in MOMENTS[name].items():
        rows = people(city, column.dataset)[column.name]
        amounts = (months(rows) if column.months else rows.astype("int64")).rename(word).to_frame()
        found = amounts if found is None else found.join(amounts, how="inner")
    assert found is not None
    held = found.copy()
    for word, column in MOMENTS[name].items():
        held[word] = held[word].clip(column.low, column.high)
    return held, [int((held[word] != found[word]).sum()) for word in MOMENTS[name]]


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_are_those_of_the_pooled_rows(city: Path, name: str) -> None:
    expected = load_flexible_work(city).questions[name]
    held, changed = joined_amounts(city, name)
    assert expected.columns == tuple(held)
    assert expected.persons == len(held) > 200
    assert list(expected.bounded) == changed
    exact = held.to_numpy(dtype=object)
    assert list(expected.sums) == exact.sum(axis=0).tolist()
    assert [list(row) for row in expected.products] == exact.T.dot(exact).tolist()


def test_every_list_of_scenario_5_has_its_people(city: Path) -> None:
    lists = load_flexible_work(city).lists
    assert lists == {name: len(people(city, name)) for name in lists}


def poor(city: Path) -> set[str]:
    """Return who is in hardship, by the truth's own columns."""
    truth = pd.read_parquet(city / "truth" / "persons.parquet").set_index("resident_id")
    age = SNAPSHOT.year - pd.to_datetime(truth["birth_date"]).dt.year
    pension = (truth["living"] & truth["register_street"].notna() & (age >= 60)) * 3_600_000
    earned = truth["income_fen"] + pension
    household = earned.astype("int64")
    for other in ("spouse_id", "mother_id", "father_id"):
        household = household + truth[other].map(earned).fillna(0).astype("int64")
    costly = truth["living"] & (truth["illness_fen"] >= 1_200_000)
    share = truth["illness_fen"].map(Fraction) / household.clip(lower=1).map(Fraction)
    return set(truth.index[costly & (share >= Fraction(2, 5))])


def test_leads_to_hardship_follow_from_four_registers_and_are_held_against_the_truth(city: Path) -> None:
    settled = people(city, "medical-insurance/settlements")
    helped = people(city, "civil-affairs/low_income").index
    joined = settled[~settled.index.isin(helped)]
    rent = people(city, "housing/leases")["rent_fen"].reindex(joined.index).fillna(0).astype("int64")
    pupil = joined.index.isin(people(city, "education/enrolment").index)
    paid = joined["self_paid_fen"].clip(upper=20_000_000)
    burden = 2 * paid + rent + 400_000 * pupil
    alone = (paid >= 600_000) & (rent <= 600_000)
    flagged = {key.removeprefix("RIC:") for key in joined.index[alone & (burden >= 2_000_000)]}
    truth, expected = poor(city), load_hardship(city)
    assert (expected.settled, expected.joined) == (len(settled), len(joined))
    assert expected.flagged == len(flagged)
    assert expected.flagged_sha256 == keys_sha256(key.encode() for key in flagged)
    assert expected.found == len(flagged & truth)
    assert expected.in_hardship == len(truth)
    assert expected.helped == len(truth & {key.removeprefix("RIC:") for key in helped})
    assert expected.bounded == {"self_paid": (joined["self_paid_fen"] > 20_000_000).sum(), "rent": 0}
    assert expected.precision == len(flagged & truth) / len(flagged)
    assert expected.recall == expected.found / (expected.in_hardship - expected.helped)
    for least in BURDENS:
        would = {key.removeprefix("RIC:") for key in joined.index[alone & (burden >= least)]}
        assert expected.thresholds[str(least)] == (len(would), len(would & truth))


def test_the_leads_are_neither_perfect_nor_useless_and_every_clause_counts(city: Path) -> None:
    expected = load_hardship(city)
    assert 0.5 < expected.precision < 0.95
    assert 0.5 < expected.recall < 0.95
    flagged = [expected.thresholds[str(least)][0] for least in BURDENS]
    assert flagged == sorted(flagged, reverse=True)
    assert len(set(flagged)) > len(flagged) // 2
    # Somebody on two lists under two identifiers is joined under neither: such people exist.
    assert np.isin(pq.read_table(city / "truth/persons.parquet")["cohort"], ["double", "mistyped"]).any()


@pytest.mark.parametrize("load", [load_overpaid, load_residents, load_flexible_work, load_hardship])
def test_a_folder_without_the_joined_answer_is_refused(tmp_path: Path, load) -> None:
    (tmp_path / "expected").mkdir()
    for name in ("scenario-2-overpaid", "scenario-3-residents", "scenario-5", "scenario-7"):
        (tmp_path / "expected" / f"{name}.json").write_text(json.dumps({"schema": "other/1"}))
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError) as caught:
            load(folder)
        assert caught.value.code == "no-city"
